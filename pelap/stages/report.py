"""report: one page, one figure and one table from everything that the run measured."""

import wave
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelap.core import files
from pelap.core.errors import DataError
from pelap.core.listing import QUANTITIES
from pelap.core.paths import RunPaths
from pelap.report import page as html
from pelap.report import protocol, tables
from pelap.report.data import RunData
from pelap.report.figures import overview as figures
from pelap.report.figures.style import to_png
from pelap.report.modality import SOUNDS, modality_names

if TYPE_CHECKING:
    from pelap.config import Params
    from pelap.stages.shared import Context

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
_CHANGES = (
    "plan",
    "operator",
    "action",
    *(f"{name}_{side}" for name in QUANTITIES for side in ("before", "after")),
)
_TRAINED = (
    "start",
    "plan",
    "steps",
    "kept_step",
    "select",
    "task_weight",
    "output_weight",
    "feature_weight",
)
_LATENCIES = ("model", "batch_size", "mode", "median_ms", "iqr_ms")
_BUDGET = ("model", "steps", "image_ms", "image_iqr_ms")
_DIFFERENCES = ("model", "against", "metric", "difference", "se")


def run(context: "Context") -> None:
    """Write the report of a run and print its table.

    Raises:
        DataError: A file of an earlier stage is missing or not what it should be.
    """
    paths = context.paths
    with files.exclusive(paths.report):
        data = load(context.params, paths)
        with files.atomic_dir(paths.report) as folder:
            files.write_text(folder / paths.report_page.name, html.render(data))
            files.write_text(folder / paths.report_table.name, _table(data))
            (folder / paths.report_figure.name).write_bytes(_overview(data))
    show(paths)


def show(paths: RunPaths) -> None:
    """Print the table of models, what it was measured with, and the page's path as the last line."""
    from rich.console import Console

    metrics, measured_with = files.read_metrics(paths.metrics), files.read_mapping(paths.evaluate_protocol)
    frame = tables.metrics_frame(metrics, measured_with.get("scored_variant"))
    item = "sound" if modality_names(measured_with).many == SOUNDS else "image"
    Console().print(tables.rich_table(frame, item=item))
    print(protocol.terminal(measured_with))
    print(paths.report_page if paths.report_page.is_file() else "no page yet: run pelap report")


def load(params: "Params", paths: RunPaths) -> RunData:
    """Read everything that the report shows."""
    metrics, variants = files.read_metrics(paths.metrics), tuple(params.variants)
    measured_with = files.read_mapping(paths.evaluate_protocol)
    heard = modality_names(measured_with).many == SOUNDS
    return RunData(
        dataset=params.dataset,
        seed=params.seed,
        metrics=metrics,
        protocol=measured_with,
        history={name: files.read_csv(paths.train(name).history, _LOSSES) for name in variants},
        validation={name: files.read_csv(paths.train(name).validation, _LOSSES) for name in variants},
        collapse=files.read_csv(paths.collapse_table, _COLLAPSE),
        epochs=files.read_csv(paths.collapse_epochs, ("variant", "epoch")),
        timesteps=files.read_csv(paths.collapse_timesteps, _TIMESTEPS),
        masks=files.read_csv(paths.masks_per_class, ("variant", "class_name", "channel", "mean_mask")),
        scores=files.read_csv(paths.scores, _SCORES),
        score_protocol=files.read_mapping(paths.score_protocol, _SCORING),
        changes=files.read_csv(paths.changes, _CHANGES),
        prune_result=_objects(paths.prune_result),
        distill=files.read_csv(paths.distill_history, ("student", "step", "loss")),
        distill_validation=files.read_csv(paths.distill_validation, ("student", "step", "task")),
        students=_objects(paths.distill_result, _TRAINED),
        latencies=files.read_csv(paths.latencies, _LATENCIES),
        budget=files.read_csv(paths.budget, _BUDGET),
        differences=files.read_csv(paths.differences, _DIFFERENCES),
        samples={name: read_png(paths.samples(name)) for name in metrics},
        reconstructions=_reconstructions(paths, variants),
        sounds={name: read_wav(paths.samples_sound(name)) for name in metrics} if heard else {},
    )


def _objects(path: Path, keys: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
    """A JSON mapping of mappings that have at least these keys."""
    whole = files.read_mapping(path)
    for name, value in whole.items():
        absent = [key for key in keys if key not in value] if isinstance(value, dict) else ["a mapping"]
        if absent:
            raise DataError(f"{path}: {name}: lacks {', '.join(absent)}; make it again")
    return whole


def _reconstructions(paths: RunPaths, variants: Iterable[str]) -> dict[str, bytes]:
    """Originals and variants; pruning leaves the autoencoder alone."""
    return {name: read_png(paths.reconstructions(name)) for name in ("real", *variants)}


def _table(data: RunData) -> str:
    return data.modality_names.put(tables.markdown_table(data.frame)) + protocol.markdown(data.protocol)


def _overview(data: RunData) -> bytes:
    strips = {name: figures.image_strip(png) for name, png in data.samples.items()}
    return to_png(data.modality_names.label(figures.overview(data, strips)))


def read_png(path: Path) -> bytes:
    """Read a picture and check that it is a whole PNG file."""
    from PIL import Image

    if not path.is_file():
        raise files.missing(path)
    content = path.read_bytes()
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            image.load()
    except (OSError, SyntaxError) as error:
        raise DataError(
            f"{path}: not a readable PNG picture ({files.one_line(error)}); make it again"
        ) from None
    return content


def read_wav(path: Path) -> bytes:
    """Read a sound and check that it is a whole WAV file that browsers play."""
    if not path.is_file():
        raise files.missing(path)
    content = path.read_bytes()
    try:
        with wave.open(BytesIO(content)) as sound:
            expected = sound.getnframes() * sound.getnchannels() * sound.getsampwidth()
            complete = len(sound.readframes(sound.getnframes())) == expected > 0
    except (wave.Error, EOFError) as error:
        raise DataError(f"{path}: not a readable WAV file ({files.one_line(error)}); make it again") from None
    if not complete:
        raise DataError(f"{path}: the WAV file ends early; make it again")
    return content
