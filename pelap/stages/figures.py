"""What models and pipelines are compared by: costs of denoisers, and what all figures were made with."""

from collections.abc import Mapping
from typing import Any

import torch

from pelap.data.dataset import ImageDataset
from pelap.evaluation.distances import Reference
from pelap.measure.cost import count_macs, count_params, peak_memory_mib
from pelap.measure.latency import measure_latency
from pelap.params import EvaluateParams
from pelap.stages.protocol import environment
from pelap.stages.subject import Subject


def compare_costs(
    subjects: Mapping[str, Subject], params: EvaluateParams, device: torch.device
) -> dict[str, dict[str, float]]:
    """What one pass of each denoiser costs; all are timed in turns, so that they can be compared.

    Args:
        subjects: Denoisers by name.
        params: The section `evaluate`: `latency_batch_size` latents a pass, timed `latency_repeats` times.
        device: Where they are.

    Returns:
        Metrics by name; nothing where `latency_repeats` is None.
    """
    if params.latency_repeats is None:
        return {}
    passes = {name: subject.forward(params.latency_batch_size) for name, subject in subjects.items()}
    latency = measure_latency(passes, device, params.latency_repeats)
    return {
        name: {
            "latency_ms": latency[name].median_ms,
            "latency_iqr_ms": latency[name].iqr_ms,
            "params": count_params(subject.network),
            "macs": count_macs(subject.network, passes[name])[""],
            "peak_memory_mib": peak_memory_mib(subject.network, passes[name], device),
        }
        for name, subject in subjects.items()
    }


def protocol_of_figures(
    dataset: ImageDataset, reference: Reference, seed: int, device: torch.device, extra: Mapping[str, Any]
) -> dict[str, Any]:
    """What stands beside a table of figures, as a JSON object; `extra` is what only this table has."""
    return {
        "dataset": dataset.name,
        "dataset_checksum": dataset.checksum,
        **reference.describe(),
        **extra,
        "latency_batch_size": reference.params.latency_batch_size,
        "latency_repeats": reference.params.latency_repeats,
        "seed": seed,
        **environment(device),
    }
