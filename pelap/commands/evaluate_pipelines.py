"""evaluate, for diffusers pipelines: dense, pruned and distilled ones side by side."""

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from pelap.api.quality import compare
from pelap.config import Params
from pelap.core import files
from pelap.core.errors import ConfigError
from pelap.core.paths import REAL_ROW, packed_dataset, reference_cache
from pelap.data.dataset import load_dataset
from pelap.data.prompts import read_prompts
from pelap.report import protocol as protocol_of
from pelap.report.tables import rich_table


def evaluate_pipelines(
    params: Params, folders: Sequence[Path], data: Path, out: Path, device: torch.device, prompts: Path | None
) -> None:
    """Write ``{pipeline: {metric: number}}`` with the floor, the protocol beside it, and print the table.

    Args:
        params: `dataset`, `seed` and the section `evaluate` are read. Of its sampler only the steps: every
            pipeline keeps its own scheduler.
        folders: Pipelines, pruned or not, each called by its folder's name. Times, and pictures one by one,
            are compared with the first's.
        data: Folder of the packed data sets.
        out: The JSON file.
        device: Where to compute.
        prompts: One prompt a line, for text-to-image.

    Raises:
        ConfigError: Two folders have the same name, prompts are missing or out of place, or the data set
            holds sounds.
        ModelError: Not a pipeline that can be used, or one for pictures of another size.
        DataError: The data set is not there or too small.
    """
    named, texts = _by_name(folders), None if prompts is None else read_prompts(prompts)
    with files.exclusive(out):
        dataset = load_dataset(packed_dataset(data, params.dataset))
        result = compare(named, dataset, params.evaluate, texts, params.seed, reference_cache(data), device)
        result.save(out)
    Console().print(rich_table(result.table, network="denoiser"))
    print(protocol_of.terminal(result.protocol))
    print(f"time change: against {next(iter(named))}; figures in {out}")


def _by_name(folders: Sequence[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for folder in folders:
        name = folder.resolve().name
        if name == REAL_ROW or name in named:
            other = "the row of real pictures" if name == REAL_ROW else str(named[name])
            raise ConfigError(
                f"{folder}: has the name of {other}; rename it, rows are called by folder names"
            )
        named[name] = folder
    return named
