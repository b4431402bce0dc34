"""A complete run folder with made-up numbers, for tests of what comes after the measuring."""

import io as io_
import wave
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from PIL import Image

from pelap.core import files
from pelap.core.paths import RunPaths

VARIANTS = ("baseline", "pelap", "invariant")
Row: TypeAlias = dict[str, float | None]
PLANS = ("25", "35")
STUDENTS = {
    "distilled": ("pruned", 1, 1, 1), "output-only": ("pruned", 1, 1, 0), "scratch": ("scratch", 1, 1, 1),
    "dense-finetuned": ("dense", 1, 0, 0),
}  # fmt: skip
"""Start, and weights of task, output and features."""
DENSE = {
    "latency_ms": 31.4, "latency_iqr_ms": 0.42, "image_ms": 12.9, "image_iqr_ms": 0.3, "params": 1_234_567,
    "macs": 67_517_168, "peak_memory_mib": 61.25, "disk_mib": 4.71,
}  # fmt: skip
SMALL = {
    "25": {**DENSE, "latency_ms": 23.87, "image_ms": 9.7, "params": 812_345, "disk_mib": 3.1},
    "35": {**DENSE, "latency_ms": 20.2, "image_ms": 8.3, "params": 612_345, "disk_mib": 2.34},
}


def _row(distance: float, costs: dict[str, float], **more: float | None) -> Row:
    quality = {
        "fd_effnet_lite0": distance, "fd_effnet_lite0_se": distance / 90, "kid_effnet_lite0": distance / 900,
        "kid_effnet_lite0_std": 0.0031, "precision_effnet_lite0": 0.612, "recall_effnet_lite0": 0.401,
        "density_effnet_lite0": 0.733, "coverage_effnet_lite0": 0.655,
    }  # fmt: skip
    return {**quality, **more, **costs}


METRICS: dict[str, Row] = {
    "baseline": _row(96.4213, {**DENSE, "latency_ms": 31.52}, psnr=24.1234, ssim=0.8123),
    "pelap": _row(214.9876, {**DENSE, "latency_ms": 31.61}, psnr=11.2345, ssim=0.2311),
    "invariant": _row(91.7345, DENSE, psnr=25.4567, ssim=0.8391),
    "pruned-25": _row(131.5511, SMALL["25"], psnr=None, psnr_to_dense=19.81, ssim_to_dense=0.61),
    "pruned-35": _row(172.2413, SMALL["35"], psnr_to_dense=15.33, ssim_to_dense=0.44),
    "distilled-25": _row(
        93.2222, SMALL["25"], psnr_to_dense=22.5, ssim_to_dense=0.71, recovered=0.9627, recovered_se=0.05
    ),
    "output-only-25": _row(
        97.1, SMALL["25"], psnr_to_dense=22.1, ssim_to_dense=0.70, recovered=0.8653, recovered_se=0.05
    ),
    "scratch-25": _row(118.8, SMALL["25"], psnr_to_dense=14.2, ssim_to_dense=0.38),
    "distilled-35": _row(
        99.81, SMALL["35"], psnr_to_dense=20.5, ssim_to_dense=0.65, recovered=0.8997, recovered_se=0.05
    ),
    "output-only-35": _row(
        104.3, SMALL["35"], psnr_to_dense=20.3, ssim_to_dense=0.64, recovered=0.8439, recovered_se=0.05
    ),
    "scratch-35": _row(125.6, SMALL["35"], psnr_to_dense=14.0, ssim_to_dense=0.37),
    "dense-finetuned": _row(88.9, DENSE, psnr_to_dense=21.9, ssim_to_dense=0.69),
    "real": _row(22.8765, {}),
}
BUDGET = {10: (6.6, 95.9), 5: (3.45, 121.3), 3: (2.2, 171.0)}
"""Time per image and distance of the dense model with fewer than the 20 steps."""
PROTOCOL: dict[str, Any] = {
    "dataset": "photos", "dataset_checksum": "fedcba98" * 8, "seed": 0, "num_images": 2000,
    "num_reference": 4000,
    "extractors": {
        "effnet-lite0": {"metric": "fd_effnet_lite0", "input_size": 224, "num_features": 1280,
                         "sha256": "0123abcd" * 8}
    },
    "sampler": {"kind": "ddim", "steps": 20}, "ema_decay": {"baseline": 0.99, "pelap": 0.99},
    "device": "cpu", "versions": {"torch": "2.9.0"}, "python": "3.11.9",
    "git_revision": "0a1b2c3", "latency_batch_sizes": [64, 1], "scored_variant": "invariant",
    "plans": ["25", "35"], "dense_students": ["dense-finetuned"],
    "notes": ["2,000 pictures are fewer than twice the 1,280 features: distances are biased upwards"],
}  # fmt: skip
RESULTS = {
    plan: {
        "num_operators": operators, "promised_time_reduction": int(plan) / 100,
        "measured_time_reduction": saved, "latency_ms_before": 31.4, "latency_ms_after": time,
        "latency_batch_size": 64, "params_before": 1_234_567, "params_after": SMALL[plan]["params"],
    }
    for plan, operators, saved, time in (("25", 31, 0.2398, 23.871), ("35", 40, 0.3567, 20.2))
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
    files.write_json(paths.metrics, metrics)
    seed = int(root.name.removeprefix("seed")) if root.name.startswith("seed") else 0
    files.write_json(paths.evaluate_protocol, PROTOCOL | {"seed": seed})
    _collapse(paths, variants, draw)
    _pruning(paths, draw)
    _distillation(paths)
    _evaluation(paths)
    for model in metrics:
        _grid(paths.samples(model), draw)
        if model in (*variants, "real"):
            _grid(paths.reconstructions(model), draw)
    return paths


PROMPTS = ["a photo of a cat", "a picture of a rocket"]
SOUNDS: dict[str, Any] = {
    "medium": "sounds",
    "sound": {"sample_rate": 16_000, "num_fft": 1024, "hop_length": 256, "range_db": 80.0},
    "classifier": {"test_accuracy": 0.9375, "num_test": 512},
    "prompts": {"number": 2, "guidance_scale": 3.0, "first": PROMPTS, "num_judged": 1500},
    "rows_per_latent": 2,
    "notes": ["fd_classifier: features of a small network that learnt from the train sounds"],
    "extractors": {"classifier": {"metric": "fd_classifier", "input_size": None, "num_features": 64,
                                  "sha256": "4567cdef" * 8}},
}  # fmt: skip
"""What the protocol has of a run whose models make sounds, of prompts, judged by a classifier."""


def turn_to_sounds(paths: RunPaths) -> None:
    """Make a complete run one of sounds."""
    for file in (paths.metrics, paths.budget, paths.differences, paths.distill_validation):
        file.write_text(file.read_text().replace("effnet_lite0", "classifier"))
    metrics = files.read_metrics(paths.metrics)
    for place, (model, values) in enumerate(metrics.items()):
        values |= {"prompt_agreement": 0.9 - place / 50, "prompt_agreement_se": 0.0125}
        paths.samples_sound(model).write_bytes(wav(place))
    metrics["real"]["fd_classifier_vocoded"] = 31.5
    files.write_json(paths.metrics, metrics)
    files.write_json(paths.evaluate_protocol, PROTOCOL | SOUNDS)


def wav(place: int, rate: int = 16_000) -> bytes:
    """Half a second of a tone that is another for every place."""
    tone = np.sin(2 * np.pi * (220 + 40 * place) * np.arange(rate // 2) / rate)
    buffer = io_.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes((tone * 20_000).astype("<i2").tobytes())
    return buffer.getvalue()


def scored(values: dict[str, float], **columns: Any) -> pd.DataFrame:
    """Scores by operator, each with an interval from half to twice."""
    score = pd.Series(list(values.values()), dtype=float)
    table = {"operator": pd.Series(list(values), dtype=str), "kind": "block", "parent": None, "score": score,
             "score_low": score / 2, "score_high": score * 2, "num_latents": 8, "stopped_early": False,
             "latency_share": 0.1}  # fmt: skip
    return pd.DataFrame(table | columns)


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
    files.write_csv(paths.train(variant).history, table)
    files.write_csv(paths.train(variant).validation, table[7::8].drop(columns=["lr", "images_per_s"]))


def _collapse(paths: RunPaths, variants: tuple[str, ...], draw: np.random.Generator) -> None:
    scale = np.geomspace(0.003, 1, len(variants))
    table = pd.DataFrame({"variant": variants, **_collapse_numbers(scale, len(variants))})
    table.insert(1, "verdict", ["mask collapse", *["partial mask"] * (len(variants) - 1)])
    table.insert(2, "reason", [f"{row.active_channels} of 4 channels are open" for row in table.itertuples()])
    files.write_csv(paths.collapse_table, table)
    epochs = []
    for epoch in range(1, 9):
        rows = _collapse_numbers(scale ** (epoch / 8), len(variants))
        epochs.append(pd.DataFrame({"variant": variants, "epoch": epoch, "step": 64 * epoch, **rows}))
    files.write_csv(paths.collapse_epochs, pd.concat(epochs))
    bins = [
        {"variant": variant, "first_step": 100 * i, "last_step": 100 * i + 99, "num_images": 100,
         "diffusion_loss": 0.01 + level / (i + 1), "gaussian_floor": level / (i + 1) / 2,
         "zero_latent_loss": 0.02}
        for variant, level in zip(variants, scale, strict=True)
        for i in range(10)
    ]  # fmt: skip
    files.write_csv(paths.collapse_timesteps, pd.DataFrame(bins))
    names = ("astronaut", "cat", "coffee", "lily", "rocket", "retina", "chelsea", "immunohistochemistry")
    rows = [(v, name, c, draw.uniform()) for v in variants for name in names for c in range(4)]
    columns = ["variant", "class_name", "channel", "mean_mask"]
    files.write_csv(paths.masks_per_class, pd.DataFrame(rows, columns=columns))


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
    files.write_csv(paths.scores, scores)
    files.write_json(paths.score_protocol, SCORE_PROTOCOL)
    tables = [_changes(scores, plan) for plan in PLANS]
    files.write_csv(paths.changes, pd.concat(tables))
    files.write_json(paths.prune_result, RESULTS)


def _distillation(paths: RunPaths) -> None:
    history, validation, result = [], [], {}
    rows: list[tuple[str, str | None]] = [(name, plan) for plan in PLANS for name in list(STUDENTS)[:3]]
    for place, (student, plan) in enumerate([*rows, ("dense-finetuned", None)]):
        row, (start, *factors) = f"{student}-{plan}" if plan else student, STUDENTS[student]
        weights = dict(zip(("task", "output", "feature"), factors, strict=True))
        history.append(_losses(row, np.arange(8, 248, 8), place, weights).assign(lr=5e-4, images_per_s=900.0))
        marks = _losses(row, np.arange(0, 241, 60), place, weights).drop(columns="loss")
        distance = 90 + 4 * place + 60 * np.exp(-marks["step"] / 60)
        pulls = {f"{term}_gradient_share": _share(marks["step"], term, weights) for term in weights}
        validation.append(marks.assign(fd_effnet_lite0=distance, fd_effnet_lite0_se=1.2, **pulls))
        how = {
            "student": student,
            "start": start,
            "plan": plan,
            "steps": 240,
            "kept_step": 240,
            "select": "last",
        }
        result[row] = how | {f"{key}_weight": value for key, value in weights.items()}
    files.write_csv(paths.distill_history, pd.concat(history))
    files.write_csv(paths.distill_validation, pd.concat(validation))
    files.write_json(paths.distill_result, result)


def _share(steps: Any, term: str, weights: dict[str, int]) -> Any:
    """Of the gradient: the first term's share rises, the others have like parts of the rest."""
    others, task = sum(map(bool, weights.values())) - 1, 0.2 + steps / 600
    if not weights[term]:
        return np.nan
    return (task if others else 1.0) if term == "task" else (1 - task) / others


def _losses(row: str, steps: Any, place: int, weights: dict[str, int]) -> pd.DataFrame:
    fall = np.exp(-steps / 60) * (1 + place / 5)
    terms = {"task": 0.12 + fall / 9, "output": 0.01 + fall / 5, "feature": 0.05 + fall}
    table = pd.DataFrame({"student": row, "step": steps, "loss": 0.0, **terms})
    for term, weight in weights.items():
        table["loss"] += weight * table[term]
        if not weight and term != "task":
            table[term] = np.nan
    return table


def _evaluation(paths: RunPaths) -> None:
    """Times by batch size, the budget, and differences against the dense networks."""
    timed = {name: row for name, row in METRICS.items() if "latency_ms" in row}
    latencies = [
        (name, size, mode, factor * (row["latency_ms"] or 0.0), 0.4, 30)
        for mode, less in (("eager", 1.0), ("compiled", 0.8))
        for size, factor in ((64, less), (1, less / 20))
        for name, row in timed.items()
    ]
    columns = ["model", "batch_size", "mode", "median_ms", "iqr_ms", "repeats"]
    files.write_csv(paths.latencies, pd.DataFrame(latencies, columns=columns))
    keys = ["image_ms", "image_iqr_ms", "fd_effnet_lite0", "fd_effnet_lite0_se"]
    faster = [f"{family}-{plan}" for plan in PLANS for family in ("pruned", "distilled", "output-only")]
    budget: list[Any] = [(name, 20, *(METRICS[name][key] for key in keys)) for name in ("invariant", *faster)]
    budget += [("invariant", steps, ms, 0.2, fd, 1.4) for steps, (ms, fd) in BUDGET.items()]
    files.write_csv(paths.budget, pd.DataFrame(budget, columns=["model", "steps", *keys]))
    distance = {name: row["fd_effnet_lite0"] or 0.0 for name, row in METRICS.items()}
    differences = [
        (name, against, "fd_effnet_lite0", distance[name] - distance[against], 1.1)
        for against in ("invariant", "dense-finetuned")
        for name in timed
        if name not in (against, *VARIANTS)
    ]
    columns = ["model", "against", "metric", "difference", "se"]
    files.write_csv(paths.differences, pd.DataFrame(differences, columns=columns))


def _changes(scores: pd.DataFrame, plan: str) -> pd.DataFrame:
    """The lowest scores replaced, those inside another one gone with it."""
    chosen: list[str] = []
    for name in scores["operator"].head(int(RESULTS[plan]["num_operators"])):
        if not any(name.startswith(f"{other}.") for other in chosen):
            chosen = [other for other in chosen if not other.startswith(f"{name}.")] + [name]
    after = RESULTS[plan]
    whole = (1_234_567, after["params_after"], 4_321_098_765, 10**9, 31.4, after["latency_ms_after"])
    rows: list[Any] = [("(whole denoiser)", f"{len(chosen)} replaced", *whole)]
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
    table = pd.DataFrame(rows, columns=["operator", "action", *sides])
    table.insert(0, "plan", plan)
    return table


def _grid(path: Path, draw: np.random.Generator) -> None:
    """8 x 4 smooth pictures of 32 pixels with two pixels between."""
    sheet = np.full((138, 274, 3), 255, np.uint8)
    for row, column in np.ndindex(4, 8):
        small = Image.fromarray(draw.integers(0, 255, (4, 4, 3), np.uint8)).resize((32, 32))
        top, left = 2 + 34 * row, 2 + 34 * column
        sheet[top : top + 32, left : left + 32] = np.asarray(small)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)
