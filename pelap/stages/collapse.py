"""collapse: what each variant's mask did to its latents, and a verdict."""

import pandas as pd

from pelap.core import files
from pelap.data.dataset import Split
from pelap.masking.collapse import (
    Observations,
    Thresholds,
    channel_table,
    masks_per_class,
    observe,
    summarise,
    timestep_table,
    verdict,
)
from pelap.models.model_io import trained_model
from pelap.stages.shared import Context

SHOWN = (
    "variant",
    "mean_mask",
    "active_channels",
    "unet_input_std",
    "diffusion_loss",
    "gaussian_floor",
    "recon_mse",
)


def run(context: Context) -> None:
    """Write the tables of docs/collapse.md for all variants together, and print the verdicts."""
    params, paths = context.params.collapse, context.paths
    thresholds = Thresholds(params.active_threshold, params.scale_threshold)
    dataset = context.dataset()
    test = Split(dataset.test.images[: params.num_images], dataset.test.labels[: params.num_images])
    tables: dict[str, list[pd.DataFrame]] = {}
    with files.exclusive(paths.collapse):
        for name in context.params.variants:
            model = trained_model(paths.train(name).model, dataset, context.device)
            seed, size = context.params.seed, params.batch_size
            seen = observe(model, test.images, seed, size, thresholds, test.labels)
            found = {
                "collapse": _row(seen, thresholds),
                "channels": channel_table(seen, thresholds),
                "timesteps": timestep_table(seen),
                "epochs": files.read_csv(paths.train(name).validation),
                "masks_per_class": masks_per_class(seen.masks, test.labels, dataset.class_names),
            }
            if model.mask is None:
                found["masks_per_class"] = found["masks_per_class"][:0]
            for table, frame in found.items():
                frame.insert(0, "variant", name)
                tables.setdefault(table, []).append(frame)
        with files.atomic_dir(paths.collapse) as partial:
            for table, frames in tables.items():
                files.write_csv(
                    partial / paths.collapse_tables[table].name, pd.concat(frames, ignore_index=True)
                )
            rows = pd.concat(tables["collapse"], ignore_index=True)
            files.write_json(partial / paths.collapse_metrics.name, _metrics(rows))
    print(rows[list(SHOWN)].to_string(index=False, float_format="{:.4g}".format))
    for row in rows.itertuples(index=False):
        print(f"{row.variant}: {row.verdict}: {row.reason}")


def _row(seen: Observations, thresholds: Thresholds) -> pd.DataFrame:
    row = summarise(seen, thresholds)
    name, reason = verdict(row, thresholds)
    return pd.DataFrame([{"verdict": name, "reason": reason, **row}])


def _metrics(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The numbers of every variant, for `dvc exp show`; JSON has no NaN, so what is none is left out."""
    numbers = rows.set_index("variant").select_dtypes("number")
    return {
        str(name): {str(key): float(value) for key, value in row.dropna().items()}
        for name, row in numbers.iterrows()
    }
