"""report: one page, one figure and one table from everything that the run measured."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from pelap import io
from pelap.errors import DataError
from pelap.paths import RunPaths
from pelap.report import figures, html, tables
from pelap.report.changes import QUANTITIES
from pelap.report.data import RunData

if TYPE_CHECKING:
    from pelap.params import Params
    from pelap.stages.context import Context

_LOSSES = ("step", "noise", "recon", "mean_mask")
_COLLAPSE = ("variant", "verdict", "reason", "unet_input_std")
_TIMESTEPS = ("variant", "first_step", "last_step", "diffusion_loss", "gaussian_floor")

_SCORES = (
    "operator",
    "kind",
    "parent",
    "score",
    "score_low",
    "score_high",
    "num_latents",
    "stopped_early",
    "latency_share",
)
_SCORING = ("num_latents", "num_seeds", "formula", "early_stop", "rank_correlation", "latency_batch_size")
_CHANGES = ("operator", "action", *(f"{name}_{side}" for name in QUANTITIES for side in ("before", "after")))


def run(context: "Context") -> None:
    """Write the report of a run and print its table.

    Raises:
        DataError: A file of an earlier stage is missing or not what it should be.
    """
    paths = context.paths
    with io.exclusive(paths.report):
        data = load(context.params, paths)
        with io.atomic_dir(paths.report) as folder:
            io.write_text(folder / paths.report_page.name, html.render(data))
            io.write_text(folder / paths.report_table.name, tables.markdown_table(data.frame))
            (folder / paths.report_figure.name).write_bytes(_overview(data))
    show(paths)


def show(paths: RunPaths) -> None:
    """Print the table of models, and the page's path as the last line."""
    from rich.console import Console

    metrics, protocol = io.read_metrics(paths.metrics), io.read_mapping(paths.evaluate_protocol)
    frame = tables.metrics_frame(metrics, protocol.get("scored_variant"))
    Console().print(tables.rich_table(frame))
    print(paths.report_page if paths.report_page.is_file() else "no page yet: run pelap report")


def load(params: "Params", paths: RunPaths) -> RunData:
    """Read everything that the report shows."""
    metrics, variants = io.read_metrics(paths.metrics), tuple(params.variants)
    return RunData(
        dataset=params.dataset,
        seed=params.seed,
        metrics=metrics,
        protocol=io.read_mapping(paths.evaluate_protocol),
        history={name: io.read_csv(paths.train(name).history, _LOSSES) for name in variants},
        validation={name: io.read_csv(paths.train(name).validation, _LOSSES) for name in variants},
        collapse=io.read_csv(paths.collapse_table, _COLLAPSE),
        epochs=io.read_csv(paths.collapse_epochs, ("variant", "epoch")),
        timesteps=io.read_csv(paths.collapse_timesteps, _TIMESTEPS),
        masks=io.read_csv(paths.masks_per_class, ("variant", "class_name", "channel", "mean_mask")),
        scores=io.read_csv(paths.scores, _SCORES),
        score_protocol=io.read_mapping(paths.score_protocol, _SCORING),
        changes=io.read_csv(paths.changes, _CHANGES),
        prune_result=io.read_mapping(paths.prune_result),
        distill=io.read_csv(paths.distill_history, ("step", "loss")),
        samples={name: read_png(paths.samples(name)) for name in metrics},
        reconstructions=_reconstructions(paths, variants),
    )


def _reconstructions(paths: RunPaths, variants: Iterable[str]) -> dict[str, bytes]:
    """Originals and variants; pruning leaves the autoencoder alone."""
    return {name: read_png(paths.reconstructions(name)) for name in ("real", *variants)}


def _overview(data: RunData) -> bytes:
    strips = {name: figures.image_strip(png) for name, png in data.samples.items()}
    return figures.to_png(figures.overview(data.frame, strips, data.models))


def read_png(path: Path) -> bytes:
    """Read a picture and check that it is a whole PNG file."""
    from PIL import Image

    if not path.is_file():
        raise io.missing(path)
    content = path.read_bytes()
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path}: not a readable PNG picture ({io.one_line(error)}); make it again") from None
    return content
