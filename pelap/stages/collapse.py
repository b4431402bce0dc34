"""collapse: what each variant's mask did to its latents, and a verdict."""

import pandas as pd

from pelap.core import files
from pelap.core.digests import demand_unchanged, result_dir
from pelap.data.dataset import Split
from pelap.masking.collapse import channel_table, collapse_row, masks_per_class, timestep_table
from pelap.masking.observation import Observer, Thresholds
from pelap.models.model_io import said_if_another, trained_model
from pelap.stages.shared import Context

SHOWN = (
    *("variant", "mean_mask", "active_channels", "unet_input_std"),
    *("diffusion_loss", "gaussian_floor", "recon_mse"),
)


def run(context: Context) -> None:
    """Write the tables of docs/collapse.md for all variants together, and print the verdicts."""
    params, paths, seed = context.params.collapse, context.paths, context.params.seed
    thresholds = Thresholds(params.active_threshold, params.scale_threshold)
    dataset = context.dataset()
    test = Split(dataset.test.images[: params.num_images], dataset.test.labels[: params.num_images])
    tables: dict[str, list[pd.DataFrame]] = {}
    with files.exclusive(paths.collapse):
        for name in context.params.variants:
            model = trained_model(paths.train(name).model, dataset, context.device)
            said_if_another(model, paths.train(name).model, name)
            observer = Observer(model, test.images, seed, params.batch_size, thresholds, labels=test.labels)
            seen = observer()
            per_class = masks_per_class(seen.masks, test.labels, dataset.class_names)
            found = {
                "collapse": pd.DataFrame([collapse_row(seen, thresholds)]),
                "channels": channel_table(seen, thresholds),
                "timesteps": timestep_table(seen),
                "epochs": files.read_csv(paths.train(name).validation),
                "masks_per_class": per_class if model.mask is not None else per_class[:0],
            }
            demand_unchanged(paths.train(name).root)
            for table, frame in found.items():
                frame.insert(0, "variant", name)
                tables.setdefault(table, []).append(frame)
        whole = {table: pd.concat(frames, ignore_index=True) for table, frames in tables.items()}
        rows = whole["collapse"]
        with result_dir(paths.collapse) as partial:
            for table, frame in whole.items():
                files.write_csv(partial / paths.collapse_tables[table].name, frame)
            files.write_json(partial / paths.collapse_metrics.name, _metrics(rows))
    print(rows[list(SHOWN)].to_string(index=False, float_format="{:.4g}".format))
    for row in rows.itertuples(index=False):
        print(f"{row.variant}: {row.verdict}: {row.reason}")


def _metrics(rows: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The numbers of every variant, for `dvc exp show`; JSON has no NaN, so what is none is left out."""
    numbers = rows.set_index("variant").select_dtypes("number")
    return {
        str(name): {str(key): float(value) for key, value in row.dropna().items()}
        for name, row in numbers.iterrows()
    }
