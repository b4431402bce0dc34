"""distill: bring the pruned UNet back with the dense one as teacher."""

import pandas as pd

from pelap import io
from pelap.loading import model_plan, save_model
from pelap.stages.context import Context
from pelap.stages.trained import trained_model
from pelap.training.checkpoint import drop_checkpoint
from pelap.training.distill import distill
from pelap.training.model_batches import ModelBatches


def run(context: Context) -> None:
    """Fine-tune the pruned model's UNet and save it with its plan."""
    params, paths = context.params.distill, context.paths
    with io.exclusive(paths.distill):
        dataset = context.dataset()
        variant = io.read_mapping(paths.score_protocol, ["variant"])["variant"]
        teacher = trained_model(context, paths.train(variant).model, dataset)
        student = trained_model(context, paths.pruned_model, dataset)
        plan, seed = model_plan(paths.pruned_model), context.params.seed
        configuration = [repr(teacher.info), params, seed, plan.to_json(), dataset.checksum]
        checkpoint = paths.checkpoint("distill", io.digest(configuration))
        batches = ModelBatches(teacher, dataset.train.images, params, seed, context.device)
        unet, progress = distill(student.unet, teacher.unet, batches, params, context.device, checkpoint)
        with io.atomic_dir(paths.distill) as partial:
            distilled = teacher.with_unet(unet, "distilled", params.ema_decay)
            save_model(distilled, partial / paths.distilled_model.name, plan)
            io.write_csv(partial / paths.distill_history.name, pd.DataFrame(progress.history))
        drop_checkpoint(checkpoint)
