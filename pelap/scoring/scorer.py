"""A denoiser that is scored: its operators, their replacements, what they cost and how much they matter."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import pandas as pd
import torch
from torch import nn

from pelap.config import ScoreParams
from pelap.core.calls import Call
from pelap.core.device import environment, full_precision
from pelap.core.errors import ConfigError
from pelap.core.rng import generator
from pelap.core.terminal import progress
from pelap.diffusion.denoiser import Denoiser
from pelap.profiling.cost import count_macs, count_params
from pelap.profiling.latency import measure_latency, measure_module_latencies
from pelap.scoring.criteria import Evidence, importances, needs
from pelap.scoring.score import LatentStore, Scores, score_operators
from pelap.surgery.fit import fit_replacements
from pelap.surgery.operators import Operator, find_operators, forward_hooks
from pelap.surgery.plan import fingerprint
from pelap.surgery.replacements import Replacement

# Parameters that latents or their order depend on, beside the denoiser's protocol.
SHAPING = ("num_latents", "num_seeds", "norm_replacement", "replacement_init", "early_stop")
# Columns of the table that come first: what an operator is, matters and costs.
FIRST = ["operator", "kind", "replacement", "avg_dist", "std_dist", "score", "params", "macs", "latency_ms"]
TRACE_ROWS = 3  # in the pass that finds the operators: few, and what no other dimension is likely to be


class Scorer:
    """A denoiser with all that its scores are made from, each made once.

    The denoiser is left as it was, but for the memory layout of its convolutions. `params` is the section
    `score`.
    """

    def __init__(self, denoiser: Denoiser, params: ScoreParams, seed: int) -> None:
        self.denoiser = denoiser
        self.params = params
        self.seed = seed
        self._operators: dict[str, Operator] = {}
        self._replacements: dict[Operator, Replacement] = {}

    @cached_property
    def noise(self) -> torch.Tensor:
        """Starting points of the latents (N, *latent_shape)."""
        return self.denoiser.noise(self.params.num_latents, self.params.num_seeds, self.seed)

    @cached_property
    def made_with(self) -> dict[str, Any]:
        """The network, and how it makes latents."""
        network = fingerprint(self.denoiser.network)
        return {"network": network, **self.denoiser.protocol, "weights": self.denoiser.weights}

    @property
    def state_parts(self) -> dict[str, Any]:
        """All that the latents of a scoring depend on but the code: parts of a `pelap.core.keys.key`."""
        return {
            "networks": self.denoiser.weights,
            "sampling": self.denoiser.protocol,
            "seed": self.seed,
            "score": {name: getattr(self.params, name) for name in SHAPING},
        }

    @cached_property
    def operators(self) -> list[Operator]:
        """All that can be replaced."""
        return self._find(None)

    def find(self, names: Collection[str]) -> list[Operator]:
        """Those of the names that are operators."""
        missing = [name for name in names if name not in self._operators]
        if missing:
            self._find(missing)
        return [self._operators[name] for name in names if name in self._operators]

    def _find(self, only: Collection[str] | None) -> list[Operator]:
        trace = self.denoiser.forward(TRACE_ROWS)
        way = self.params.norm_replacement, self.params.replacement_init
        found = find_operators(self.denoiser.network, trace, *way, only=only)
        self._operators |= {operator.name: operator for operator in found}
        return found

    def fit(self, operators: Sequence[Operator]) -> dict[str, Replacement]:
        """Replacements of operators by their names, started as the parameters say."""
        missing = [operator for operator in operators if operator not in self._replacements]
        if missing:
            way = self.params.replacement_init, self.seed
            fitted = fit_replacements(self.denoiser.network, missing, self.latents, *way)
            self._replacements |= {operator: fitted[operator.name] for operator in missing}
        return {operator.name: self._replacements[operator] for operator in operators}

    @torch.no_grad()
    def latents(self) -> torch.Tensor:
        """What the network, as it is now, makes of the noise (N, *latent_shape)."""
        batches = torch.arange(len(self.noise)).split(self.params.batch_size)
        return torch.cat([self.denoiser.denoise(self.noise[items], items.tolist()) for items in batches])

    def score(self, store: LatentStore | None = None) -> Scores:
        """Score every operator; see `pelap.scoring.score.score_operators`.

        The table also has the columns of `costs` and one for each of `score.criteria`.

        Raises:
            ConfigError: A criterion needs the loss of training, which is not known.
            ModelError: The denoiser cannot be scored.
        """
        for name in self.params.criteria:
            if "losses" in needs(name) and self.denoiser.task_loss is None:
                raise ConfigError(
                    f"score.criteria: {name} needs the loss of training, which a pipeline "
                    f"({self.denoiser.name}) does not tell; leave it out"
                )
        replacements = self.fit(self.operators)
        scores = self.score_these(self.operators, replacements, store or LatentStore())
        evidence = self._evidence(replacements, scores.original)
        with full_precision():
            ranks = {name: importances(name, evidence) for name in self.params.criteria}
        table = scores.table
        table = table.assign(**{name: table["operator"].map(values) for name, values in ranks.items()})
        table = table[[*FIRST, *(column for column in table if column not in FIRST)]]
        protocol = {
            "seed": self.seed,
            **self.params.model_dump(),
            **self.made_with,
            "rank_correlation": scores.rank_correlation,
            "num_rows": scores.num_rows,
            **environment(self.denoiser.device),
        }
        return replace(scores, table=table, protocol=protocol)

    def score_these(
        self,
        operators: Sequence[Operator],
        replacements: Mapping[str, Replacement],
        store: LatentStore,
        note: str = "",
    ) -> Scores:
        """Scores of operators in the network as it is now, with their costs."""
        denoiser, size = self.denoiser, len(operators) * len(self.noise)
        with progress(f"score {denoiser.name}{note}", size) as report, full_precision():
            scores = score_operators(
                *(denoiser.network, denoiser.denoise, operators, replacements, self.noise),
                *(self.params, store, report),
            )
        return replace(scores, table=scores.table.merge(self.costs(operators, replacements)))

    def costs(self, operators: Sequence[Operator], replacements: Mapping[str, Replacement]) -> pd.DataFrame:
        """Of each operator, parts included, and its replacement, in one pass of `latency_batch_size`."""
        names = [operator.name for operator in operators]
        costs = self.module_costs(self.denoiser.network, names)
        whole_ms, instead = costs["latency_ms"].iloc[0], self._replacement_ms(replacements)
        costs = costs.iloc[1:].rename_axis("operator").reset_index()
        return costs.assign(
            replacement_params=[count_params(replacements[name]) for name in names],
            latency_share=costs["latency_ms"] / whole_ms,
            replacement_share=[instead[name] / whole_ms for name in names],
        )

    def module_costs(self, network: nn.Module, names: Sequence[str]) -> pd.DataFrame:
        """Columns params, macs and latency_ms of a network's modules by name, the whole, ``""``, first."""
        forward = self.denoiser.forward(self.params.latency_batch_size, network)
        macs = count_macs(network, forward)
        repeats = self.params.latency_repeats
        times = measure_module_latencies(network, forward, names, self.denoiser.device, repeats)
        rows = {
            name: (count_params(network.get_submodule(name)), macs.get(name, 0), times[name])
            for name in ("", *names)
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["params", "macs", "latency_ms"])

    def _replacement_ms(self, replacements: Mapping[str, Replacement]) -> dict[str, float]:
        """Milliseconds of each replacement on what its operator is given in a pass; 0 where it does nothing.

        By itself, not in the network: a block and its parts cannot be replaced at once.
        """
        network = self.denoiser.network
        calls: dict[str, list[Call]] = {name: [] for name, each in replacements.items() if each.steps}

        def keep(name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls[name].append(Call(args, kwargs))

        def run(name: str) -> None:
            with torch.no_grad():
                for args, kwargs in calls[name]:
                    replacements[name](*args, **kwargs)

        with forward_hooks({name: network.get_submodule(name) for name in calls}, keep):
            self.denoiser.forward(self.params.latency_batch_size)()
        runs = {name: partial(run, name) for name in calls}
        times = measure_latency(runs, self.denoiser.device, self.params.latency_repeats)
        return dict.fromkeys(replacements, 0.0) | {name: time.median_ms for name, time in times.items()}

    def _evidence(self, replacements: Mapping[str, Replacement], latents: torch.Tensor) -> Evidence:
        """Latents that the untouched network made are what a gradient is taken on, for want of data."""
        # One batch says enough, and needs no more memory than scoring does. It is drawn, as items go through
        # prompts in their order.
        drawn = torch.randperm(self.params.num_latents, generator=generator(self.seed, "criteria"))
        items = drawn[: self.params.batch_size].sort().values
        start, numbers, task_loss = self.noise[items], items.tolist(), self.denoiser.task_loss
        loss: Callable[[torch.Generator], torch.Tensor] | None = None
        if task_loss is not None:
            loss = partial(task_loss, latents[items].to(self.denoiser.device), numbers)
        return Evidence(
            self.denoiser.network,
            self.operators,
            replacements,
            lambda: self.denoiser.denoise(start, numbers),
            loss,
            self.params.batch_size,
            self.seed,
        )
