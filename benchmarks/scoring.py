"""Scoring many operators a pass against the plain loop of the definition, and early stop against both.

    python benchmarks/scoring.py [--model DIR] [--latents 32] [--steps 20] [--rows 256] [--out FILE.json]

The plain loop takes one operator out by surgery and denoises, operator by operator, in the layout that a
model has when it is loaded. Both score the same operators from the same noise, in one process and in turns;
the least of the rounds counts, because other work on the machine only ever adds.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pelap.device import choose_device, describe, full_precision, synchronise
from pelap.loading import load_model
from pelap.params import SamplerParams
from pelap.progress import progress
from pelap.pruning.fit import make_stand_ins
from pelap.pruning.operators import Operator, find_operators
from pelap.pruning.plan import Plan, Removal
from pelap.pruning.replace import StandIn
from pelap.pruning.score import Scores, Scoring, score_operators
from pelap.pruning.statistic import distances
from pelap.pruning.surgery import apply_plan
from pelap.stages.subject import Subject, model_subject

LOWEST = 1 / 3


def plain_loop(
    model: Any,
    subject: Subject,
    operators: list[Operator],
    stand_ins: dict[str, StandIn],
    noise: torch.Tensor,
) -> pd.DataFrame:
    """The definition, word for word."""
    dense, items = model.unet, range(len(noise))
    rows = []
    with torch.no_grad():
        original = subject.denoise(noise, items)
        for operator in operators:
            plan = Plan((Removal(operator.name, operator.kind, operator.replacement),))
            model.unet = apply_plan(dense, plan, stand_ins)
            avg_dist, std_dist = distances(original, subject.denoise(noise, items))
            rows.append({"operator": operator.name, "score": avg_dist + std_dist})
    model.unet = dense
    return pd.DataFrame(rows)


def seconds(function: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    synchronise(device)
    start = time.perf_counter()
    result = function()
    synchronise(device)
    return time.perf_counter() - start, result


def entry(
    name: str, ours: float, reference: float, unit: str, ratio: float, device: torch.device
) -> dict[str, Any]:
    return {
        "name": name,
        "ours": ours,
        "reference": reference,
        "ratio": ratio,
        "unit": unit,
        "device": describe(device),
        "versions": {package: version(package) for package in ("torch", "diffusers")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("results/default/train/invariant/model"))
    parser.add_argument("--latents", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=256, help="rows of noise in one pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="score every n-th operator, for a quick look")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = choose_device(args.device)
    model = load_model(args.model, device)
    subject = model_subject(model, SamplerParams(kind="ddim", steps=args.steps), seed=0)
    operators = find_operators(subject.network, subject.forward(3))[:: args.every]
    noise = subject.noise(args.latents, 1, 0)
    stand_ins = make_stand_ins(subject.network, operators, lambda: subject.denoise(noise, range(len(noise))))

    def ours(early_stop: float | None) -> Scores:
        scoring = Scoring(rows_per_batch=args.rows, early_stop=early_stop)
        return score_operators(subject.network, subject.denoise, operators, stand_ins, noise, scoring)

    def plain() -> pd.DataFrame:
        model.unet.to(memory_format=torch.contiguous_format)
        return plain_loop(model, subject, operators, stand_ins, noise)

    runs = {"plain": plain, "batched": lambda: ours(None), "early stop": lambda: ours(LOWEST)}
    times: dict[str, list[float]] = {name: [] for name in runs}
    results: dict[str, Any] = {}
    with progress("scoring", args.rounds * len(runs)) as report, full_precision():
        for round_ in range(args.rounds):
            for done, (name, run) in enumerate(runs.items()):
                elapsed, results[name] = seconds(run, device)
                times[name].append(elapsed)
                report(round_ * len(runs) + done + 1, name)
    best = {name: min(values) for name, values in times.items()}
    full, stopped = results["batched"], results["early stop"]
    wanted = math.ceil(LOWEST * len(operators))
    scores = full.table.merge(results["plain"], on="operator", suffixes=("", "_plain"))
    scale = float(full.original.std()) * math.sqrt(full.original[0].numel())
    num_rows = len(operators) * args.latents
    entries = [
        entry("scoring", best["batched"], best["plain"], "s", best["plain"] / best["batched"], device),
        entry(
            "scoring, early stop",
            best["early stop"],
            best["plain"],
            "s",
            best["plain"] / best["early stop"],
            device,
        ),
        entry(
            "forward passes, early stop",
            stopped.num_rows,
            num_rows,
            "rows",
            num_rows / stopped.num_rows,
            device,
        ),
    ]
    checks = {
        "operators": len(operators),
        "largest difference of a score, over the std of the latents per element": float(
            (scores["score"] - scores["score_plain"]).abs().max()
        )
        / scale,
        "same lowest third with early stop": set(full.table["operator"][:wanted])
        == set(stopped.table["operator"][:wanted]),
        "seconds of every round": times,
    }
    print(json.dumps({"entries": entries, "checks": checks}, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()
