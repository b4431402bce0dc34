"""distill: bring the pruned UNet back with the dense one as teacher."""

import pandas as pd

from pelap import io
from pelap.loading import load_model, load_plan, save_model
from pelap.stages.context import Context
from pelap.stages.prune import with_unet
from pelap.training.checkpoint import drop_checkpoint
from pelap.training.distill import distill


def run(context: Context) -> None:
    """Fine-tune the pruned model's UNet and save it with its plan."""
    params, paths = context.params.distill, context.paths
    with io.exclusive(paths.distill):
        plan = load_plan(paths.plan)
        variant = io.read_json(paths.score_protocol)["variant"]
        teacher = load_model(paths.train(variant).model, context.device)
        student = load_model(paths.pruned_model, context.device)
        dataset = context.dataset()
        configuration = [repr(teacher.info), params, plan.to_json(), dataset.checksum]
        checkpoint = paths.checkpoint("distill", io.digest(configuration))
        images = dataset.train.images
        unet, progress = distill(student, teacher, images, params, context.device, checkpoint)
        with io.atomic_dir(paths.distill) as partial:
            save_model(with_unet(teacher, unet, "distilled"), partial / paths.distilled_model.name, plan)
            io.write_csv(partial / paths.distill_history.name, pd.DataFrame(progress.history))
        drop_checkpoint(checkpoint)
