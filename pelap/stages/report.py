"""report: one page, one figure and one table from everything that the run measured."""

from typing import TYPE_CHECKING

from pelap.core import files
from pelap.core.digests import demand_unchanged
from pelap.core.paths import RunPaths
from pelap.core.records import EvaluateProtocol
from pelap.report import protocol, tables

if TYPE_CHECKING:
    from pelap.report.data import RunData
    from pelap.stages.shared import Context


def run(context: "Context") -> None:
    """Write the report of a run and print its table.

    Raises:
        DataError: A file of an earlier stage is missing or not what it should be.
    """
    from pelap.report import page  # with scipy and matplotlib, for which `show` need not wait
    from pelap.report.data import read_run

    params, paths = context.params, context.paths
    with files.exclusive(paths.report):
        data = read_run(params.dataset, params.seed, params.variants, paths)
        with files.atomic_dir(paths.report) as folder:
            files.write_text(folder / paths.report_page.name, page.render(data))
            files.write_text(folder / paths.report_table.name, _table(data))
            (folder / paths.report_figure.name).write_bytes(_overview(data))
    show(paths)


def show(paths: RunPaths) -> None:
    """Print the table of models, what it was measured with, and the page's path as the last line."""
    from rich.console import Console

    metrics = files.read_metrics(paths.metrics)
    measured_with = files.read_mapping(paths.evaluate_protocol, kind=EvaluateProtocol)
    demand_unchanged(paths.evaluate)
    frame = tables.metrics_frame(metrics, measured_with.get("scored_variant"))
    sounds = protocol.modality_names(measured_with).many == protocol.SOUNDS
    Console().print(tables.rich_table(frame, item="sound" if sounds else "image"))
    print(protocol.terminal(measured_with))
    print(paths.report_page if paths.report_page.is_file() else "no page yet: run pelap report")


def _table(data: "RunData") -> str:
    return data.modality_names.put(tables.markdown_table(data.frame)) + protocol.markdown(data.protocol)


def _overview(data: "RunData") -> bytes:
    from pelap.report.figures import overview
    from pelap.report.figures.style import to_png

    strips = {name: overview.image_strip(png) for name, png in data.samples.items()}
    return to_png(data.modality_names.label(overview.overview(data, strips)))
