"""A complete run folder with made-up numbers, for tests of what comes after the measuring."""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from PIL import Image

from pelap import io
from pelap.paths import RunPaths

VARIANTS = ("baseline", "pelap", "invariant")
Row: TypeAlias = dict[str, float | None]
COSTS: Row = {"latency_iqr_ms": 0.42, "params": 1_234_567, "macs": 4_321_098_765, "peak_memory_mib": 61.25}
METRICS: dict[str, Row] = {
    "baseline": {"fd_effnet_lite0": 96.4213, "psnr": 24.1234, "ssim": 0.8123, "latency_ms": 31.52, **COSTS},
    "pelap": {"fd_effnet_lite0": 214.9876, "psnr": 11.2345, "ssim": 0.2311, "latency_ms": 31.61, **COSTS},
    "invariant": {"fd_effnet_lite0": 91.7345, "psnr": 25.4567, "ssim": 0.8391, "latency_ms": 31.40, **COSTS},
    "pruned": {"fd_effnet_lite0": 131.5511, "psnr": None, "latency_ms": 23.87, **COSTS, "params": 812_345},
    "distilled": {"fd_effnet_lite0": 93.2222, "latency_ms": 23.91, **COSTS, "params": 812_345},
    "real": {"fd_effnet_lite0": 22.8765},
}
PROTOCOL: dict[str, Any] = {
    "dataset": "photos", "seed": 0, "num_images": 2000, "num_reference": 4000,
    "extractor": "efficientnet-lite0", "extractor_checksum": "0123abcd" * 8,
    "sampler": {"kind": "ddim", "steps": 20}, "ema_decay": {"baseline": 0.99, "pelap": 0.99},
    "device": "cpu", "versions": {"torch": "2.9.0"},
    "git_revision": "0a1b2c3", "latency_batch_size": 64, "scored_variant": "invariant",
}  # fmt: skip
RESULT = {
    "promised_time_reduction": 0.25, "measured_time_reduction": 0.2398, "num_operators": 31,
    "params_before": 1_234_567, "params_after": 812_345,
}  # fmt: skip
SCORE_PROTOCOL: dict[str, Any] = {
    "num_latents": 32, "num_seeds": 2, "formula": "avg+std", "early_stop": 0.5, "rank_correlation": 0.9876,
    "latency_batch_size": 64, "num_rows": 3000,
}  # fmt: skip
KINDS = {
    "norm1": "normalisation", "conv1": "convolution", "time_emb_proj": "linear", "norm2": "normalisation",
    "conv2": "convolution", "nonlinearity": "activation", "": "residual_block",
}  # fmt: skip
ATTENTION = {"group_norm": "normalisation", "to_q": "linear", "to_k": "linear", "to_out.0": "linear"}
REPLACEMENTS = {"residual_block": "residual", "linear": "projection"}


def operator_names() -> list[tuple[str, str]]:
    """Names and kinds like those of a diffusers UNet, about 120."""
    sides = [f"{side}_blocks.{level}" for side in ("down", "up") for level in range(3)]
    blocks = [f"{side}.resnets.{i}" for side in (*sides, "mid_block") for i in range(2)]
    tails = [f"{side}.attentions.{i}" for side in ("down_blocks.1", "up_blocks.1") for i in range(3)]
    names = [(f"{block}.{part}".rstrip("."), kind) for block in blocks for part, kind in KINDS.items()]
    return names + [(f"{block}.{part}", kind) for block in tails for part, kind in ATTENTION.items()]


def build_run(root: Path, variants: tuple[str, ...] = VARIANTS) -> RunPaths:
    """Write every file that the report reads."""
    paths, draw = RunPaths(root), np.random.default_rng(0)
    for variant in variants:
        _training(paths, variant, draw)
    metrics = {name: METRICS.get(name, METRICS["baseline"]) for name in (*variants, *list(METRICS)[3:])}
    io.write_json(paths.metrics, metrics)
    io.write_json(paths.evaluate_protocol, PROTOCOL)
    _collapse(paths, variants, draw)
    _pruning(paths, draw)
    for model in metrics:
        _grid(paths.samples(model), draw)
        _grid(paths.reconstructions(model), draw)
    return paths


def _training(paths: RunPaths, variant: str, draw: np.random.Generator) -> None:
    steps = np.arange(8, 520, 8)
    decay = np.exp(-steps / 150) * draw.lognormal(0, 0.08, len(steps))
    mask = np.ones(len(steps)) if variant == "baseline" else 0.95 * np.exp(-steps / 200)
    table = pd.DataFrame(
        {"step": steps, "epoch": steps // 64, "recon": 0.02 + 0.2 * decay, "kl": 3 * decay,
         "noise": 0.06 + 0.9 * decay, "sparsity": mask, "mean_mask": mask, "lr": 1e-3,
         "images_per_s": 900.0}
    )  # fmt: skip
    table["loss"] = table["recon"] + 1e-3 * table["kl"] + table["noise"]
    io.write_csv(paths.train(variant).history, table)
    io.write_csv(paths.train(variant).validation, table[7::8].drop(columns=["lr", "images_per_s"]))


def _collapse(paths: RunPaths, variants: tuple[str, ...], draw: np.random.Generator) -> None:
    scale = np.geomspace(0.003, 1, len(variants))
    table = pd.DataFrame({"variant": variants, **_collapse_numbers(scale, len(variants))})
    table.insert(1, "verdict", ["mask collapse", *["partial mask"] * (len(variants) - 1)])
    table.insert(2, "reason", [f"{row.active_channels} of 4 channels are open" for row in table.itertuples()])
    io.write_csv(paths.collapse_table, table)
    epochs = []
    for epoch in range(1, 9):
        rows = _collapse_numbers(scale ** (epoch / 8), len(variants))
        epochs.append(pd.DataFrame({"variant": variants, "epoch": epoch, "step": 64 * epoch, **rows}))
    io.write_csv(paths.collapse_epochs, pd.concat(epochs))
    bins = [
        {"variant": variant, "first_step": 100 * i, "last_step": 100 * i + 99, "num_images": 100,
         "diffusion_loss": 0.01 + level / (i + 1), "gaussian_floor": level / (i + 1) / 2,
         "zero_latent_loss": 0.02}
        for variant, level in zip(variants, scale, strict=True)
        for i in range(10)
    ]  # fmt: skip
    io.write_csv(paths.collapse_timesteps, pd.DataFrame(bins))
    names = ("astronaut", "cat", "coffee", "lily", "rocket", "retina", "chelsea", "immunohistochemistry")
    rows = [(v, name, c, draw.uniform()) for v in variants for name in names for c in range(4)]
    columns = ["variant", "class_name", "channel", "mean_mask"]
    io.write_csv(paths.masks_per_class, pd.DataFrame(rows, columns=columns))


def _collapse_numbers(scale: "np.ndarray[Any, np.dtype[np.float64]]", count: int) -> dict[str, Any]:
    """The numbers of the collapse of variants whose latents have these scales."""
    return {
        "latent_channels": 4, "mean_mask": scale, "min_mask": scale / 2, "max_mask": np.sqrt(scale),
        "mask_entropy": 0.1, "mask_std_images": 0.01, "active_channels": [i % 5 for i in range(count)],
        "unet_input_std": scale, "diffusion_loss": 0.05 + scale / 9, "gaussian_floor": scale / 4,
        "gaussian_floor_full": np.nan, "floor_ratio": 4 * (0.05 + scale / 9) / scale,
        "zero_latent_loss": 0.0345, "zero_latent_floor": 0.0234, "recon_mse": 80 + 50 * scale,
        "masked_recon_mse": 80 / scale, "hard_recon_mse": 81 / scale, "kl": 0.5,
    }  # fmt: skip


def _pruning(paths: RunPaths, draw: np.random.Generator) -> None:
    names, kinds = zip(*operator_names(), strict=True)
    share = draw.dirichlet(np.full(len(names), 0.5))
    blocks = [name.rpartition(".")[0] for name in names]
    scores = pd.DataFrame(
        {"operator": names, "kind": kinds, "replacement": [REPLACEMENTS.get(k, "identity") for k in kinds],
         "parent": [block if block in names else None for block in blocks], "num_calls": 1, "avg_dist": 0.0,
         "std_dist": 0.0, "score": draw.lognormal(-2, 2, len(names)), "num_latents": 32,
         "stopped_early": False, "params": 2000, "replacement_params": 0, "macs": 10**7,
         "latency_ms": share * 31, "latency_share": share}
    ).sort_values("score", ignore_index=True)  # fmt: skip
    scores.loc[0, "score"], scores.loc[len(scores) - 1, "score"] = 0.0, np.inf
    scores.insert(8, "score_low", scores["score"] * 0.8)
    scores.insert(9, "score_high", scores["score"] * 1.2)
    scores.loc[len(scores) - 4 : len(scores) - 2, ["num_latents", "stopped_early"]] = [8, True]
    io.write_csv(paths.scores, scores)
    io.write_json(paths.score_protocol, SCORE_PROTOCOL)
    io.write_csv(paths.changes, _changes(scores))
    io.write_json(paths.prune_result, RESULT)
    steps = np.arange(8, 248, 8)
    fall = np.exp(-steps / 60)
    terms = {"task": 0.12 + fall / 9, "output": 0.01 + fall / 5, "feature": 0.05 + fall, "lr": 5e-4}
    table = pd.DataFrame({"step": steps, **terms})
    table.insert(1, "loss", table[["task", "output", "feature"]].sum(axis=1))
    io.write_csv(paths.distill_history, table)


def _changes(scores: pd.DataFrame) -> pd.DataFrame:
    """The 31 lowest scores replaced, those inside another one gone with it."""
    chosen: list[str] = []
    for name in scores["operator"].head(31):
        if not any(name.startswith(f"{other}.") for other in chosen):
            chosen = [other for other in chosen if not other.startswith(f"{name}.")] + [name]
    rows = [
        (
            "(whole denoiser)",
            f"{len(chosen)} replaced",
            1_234_567,
            812_345,
            4_321_098_765,
            10**9,
            31.4,
            23.871,
        )
    ]
    for name, replacement in zip(scores["operator"], scores["replacement"], strict=True):
        around = [other for other in chosen if name.startswith(f"{other}.")]
        if name in chosen:
            rows.append((name, replacement, 2000, 8, 12_345_678, 0, 0.456, 0.0057))
        elif around:
            rows.append((name, f"gone with {around[0]}", 2000, 0, 10**7, 0, 0.4, 0.0))
        else:
            rows.append((name, "kept", 2000, 2000, 10**7, 10**7, 0.4, 0.4))
    columns = ("params", "macs", "latency_ms")
    sides = [f"{column}_{side}" for column in columns for side in ("before", "after")]
    return pd.DataFrame(rows, columns=["operator", "action", *sides])


def _grid(path: Path, draw: np.random.Generator) -> None:
    """8 x 4 smooth pictures of 32 pixels with two pixels between."""
    sheet = np.full((138, 274, 3), 255, np.uint8)
    for row, column in np.ndindex(4, 8):
        small = Image.fromarray(draw.integers(0, 255, (4, 4, 3), np.uint8)).resize((32, 32))
        top, left = 2 + 34 * row, 2 + 34 * column
        sheet[top : top + 32, left : left + 32] = np.asarray(small)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
