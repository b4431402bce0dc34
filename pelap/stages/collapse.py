"""collapse: what each variant's mask did to its latents."""

import pandas as pd

from pelap import io
from pelap.collapse import Observations, masks_per_class, observe, summarise
from pelap.data.dataset import Split
from pelap.diffusion import alphas_cumprod
from pelap.models.ldm import LatentDiffusion
from pelap.stages.context import Context
from pelap.stages.trained import trained_model


def run(context: Context) -> None:
    """Write one row a variant, and the masks by class of the variants that have one."""
    params, paths = context.params.collapse, context.paths
    dataset = context.dataset()
    test = Split(dataset.test.images[: params.num_images], dataset.test.labels[: params.num_images])
    rows, classes = [], []
    with io.exclusive(paths.collapse):
        for name in context.params.variants:
            model = trained_model(context, paths.train(name).model, dataset)
            seen = observe(model, test.images, context.params.seed, params.batch_size)
            rows.append(_row(name, model, seen, params.active_threshold))
            if model.mask is not None:
                table = masks_per_class(seen.masks, test.labels, dataset.class_names)
                table.insert(0, "variant", name)
                classes.append(table)
        with io.atomic_dir(paths.collapse) as partial:
            io.write_csv(partial / paths.collapse_table.name, pd.DataFrame(rows))
            io.write_csv(partial / paths.masks_per_class.name, _joined(classes))
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.4g}".format))


def _row(name: str, model: LatentDiffusion, seen: Observations, threshold: float) -> dict[str, object]:
    return {"variant": name, **summarise(seen, alphas_cumprod(model.info.diffusion), threshold)}


def _joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    columns = ["variant", "class_name", "channel", "mean_mask"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)
