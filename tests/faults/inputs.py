"""Inputs with one thing wrong: parameters, and every file that a job reads.

A mutated input ends in one line, or changes nothing, or is what a person may have meant. What is none of
these is a fault: a traceback, a command that hangs, a result that differs in silence.
"""

import json
import math
import random
import string
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from trial import run_command
from world import World, contents, write_yaml

MEMORY = 6 * 2**30  # beyond what is taken, for a command that needs a few hundred MiB
NAMES = (
    "../x",
    "/tmp/x",
    "a; touch PWNED",
    "$(touch PWNED)",
    "-x",
    "a\nb",
    "x" * 5000,
    "\x1b[31m",
    "NUL\0",
    "é" * 99,
)
VALUES: tuple[Any, ...] = (
    *(None, True, [], {}, [None], [[[]]], "", "x", "[", -1, 0, 1, 0.5, 1e12, -1e300, 10**18, 10**400),
    *(math.nan, math.inf, *NAMES),
)


# --- parameters


def parameters(world: World, rng: random.Random, place: Path) -> list[str]:
    """A parameter file with something wrong, for any command that reads one."""
    place.mkdir(parents=True)
    file = place / "params.yaml"
    text = world.params.read_text()
    if rng.random() < 0.7:
        value = YAML(typ="safe", pure=True).load(text)
        for _ in range(rng.choice((1, 1, 1, 3))):
            _spoil(value, rng)
        write_yaml(file, value)
    else:
        file.write_bytes(rng.choice(_TEXTS)(text.encode(), rng))
    stage = rng.choice(("download", "train", "collapse", "score", "prune", "distill", "evaluate", "report"))
    runs = [stage, "--params", file, "--run", place / "run", "--data", place / "data", "--device", "cpu"]
    pipeline = ["pipeline", "score", place / "none", "--params", file, "--out", place / "scores.csv"]
    words = rng.choice([runs, runs, runs, ["params", file, "--out", place / "resolved.yaml"], pipeline])
    outcome = run_command(words, memory=MEMORY)
    if outcome.problem:
        return [f"{' '.join(map(str, words[:2]))}: {outcome.problem}"]
    if outcome.status not in (0, 2):
        return [f"{words[0]}: ends with {outcome.status}: {outcome.said[:300]}"]
    return []


# --- what jobs read

ANYBODYS = ("dense", "pruned", "study")  # what works is what somebody wants: another model, other parameters


def artefacts(world: World, rng: random.Random, place: Path) -> list[str]:
    """A job, one of whose input files is other than it was left."""
    job = world.jobs[rng.choice([name for name, job in sorted(world.jobs.items()) if job.needs])]
    world.prepare(job, place)
    every = [path for path in sorted(place.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    kinds = sorted({path.suffix for path in every})
    kind = rng.choice(kinds)
    path = rng.choice([path for path in every if path.suffix == kind])
    before = path.read_bytes()
    what = _damage(path, rng)
    if path.exists() and path.read_bytes() == before:
        return []
    outcome = world.run(job, place, memory=MEMORY)
    told = f"{job.name}, {path.relative_to(place)} {what}"
    if outcome.problem:
        return [f"{told}: {outcome.problem}"]
    if outcome.status == 2:
        return []
    if outcome.status:
        return [f"{told}: ends with {outcome.status}: {outcome.said[:300]}"]
    if path.relative_to(place).parts[0] in ANYBODYS:
        return []
    found = contents(place / job.leaves)
    other = [name for name in job.result | found if job.result.get(name) != found.get(name)]
    return [f"{told}: silent, {', '.join(other[:4])}"] if other else []


def _damage(path: Path, rng: random.Random) -> str:
    """Change a file; says how."""
    if path.suffix in _BY_KIND and rng.random() < 0.7:
        return _BY_KIND[path.suffix](path, rng)
    how = rng.choice(_TEXTS)
    path.write_bytes(how(path.read_bytes(), rng))
    return how.__name__


def _cut_short(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content) or 1)]


def _cut_at_a_line(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join(lines[: rng.randrange(len(lines) or 1)])


def _flip_a_byte(content: bytes, rng: random.Random) -> bytes:
    if not content:
        return content
    place = rng.randrange(min(len(content), rng.choice((64, 2000, len(content)))))
    return content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    place, what = (
        rng.randrange(len(content) + 1),
        rng.choice((b"\0", b"\xff", b"{", b"- ", b":", b"&a *a", b"!!", b"\n")),
    )
    return content[:place] + what + content[place:]


def _nest(content: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((200, 3000, 100_000))
    return b"[" * depth + b"]" * rng.choice((0, depth))


def _multiply(content: bytes, rng: random.Random) -> bytes:
    """Each line is ten of the line before it."""
    letters = string.ascii_lowercase
    lines = [f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]" for old, new in pairwise(letters)]
    return "\n".join(["a: &a [1]", *lines[: rng.choice((3, 9, 20))], ""]).encode() + content


def _twice(content: bytes, rng: random.Random) -> bytes:
    return content + content


def _nothing(content: bytes, rng: random.Random) -> bytes:
    return b""


_TEXTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_cut_short, _cut_at_a_line, _flip_a_byte, _insert, _nest, _multiply, _twice, _nothing),
)


def _leaves(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield value, key
        if isinstance(each, dict | list):
            yield from _leaves(each)


def _spoil(value: Any, rng: random.Random) -> str:
    """Change one place of JSON-like data."""
    places = [*_leaves(value)] if isinstance(value, dict | list) else []
    if not places:
        return "nothing"
    holder, key = rng.choice(places)
    how = rng.choice(("value", "value", "value", "absent", "name"))
    if how == "absent":
        del holder[key]
        return f"lacks {key}"
    if how == "name" and isinstance(holder, dict):
        name = rng.choice(NAMES)
        holder[name] = holder.pop(key) if rng.random() < 0.7 else rng.choice(VALUES)
        return f"{key} is called {name[:20]!r}"
    holder[key] = rng.choice(VALUES)
    return f"{key} is {str(holder[key])[:20]!r}"


def _json(path: Path, rng: random.Random) -> str:
    value = json.loads(path.read_text())
    what = _spoil(value, rng)
    path.write_text(json.dumps(value))
    return what


def _csv(path: Path, rng: random.Random) -> str:
    lines = path.read_text().splitlines()
    row = rng.randrange(len(lines))
    cells = lines[row].split(",")
    column = rng.randrange(len(cells))
    how = rng.choice(("cell", "cell", "row", "rows", "swap"))
    if how == "row":
        del lines[row]
    elif how == "rows":
        lines.insert(row, lines[row])
    elif how == "swap":
        other = rng.randrange(len(lines))
        lines[row], lines[other] = lines[other], lines[row]
    else:
        cells[column] = rng.choice(
            ("", "x", "nan", "inf", "-inf", "-1", "0", "1e400", "True", "../x", "=1+1", "1.5")
        )
        lines[row] = ",".join(cells)
        how = f"cell {column} is {cells[column]!r}"
    path.write_text("\n".join(lines) + "\n")
    return f"{how} in line {row}"


def _safetensors(path: Path, rng: random.Random) -> str:
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if not tensors:
        return "nothing"
    name = rng.choice(sorted(tensors))
    tensor, number = tensors[name], rng.choice((math.nan, math.inf))
    ways: dict[str, Any] = {
        "bool": lambda: tensor > 0,
        "int64": lambda: tensor.long(),
        "complex64": lambda: tensor.to(torch.complex64),
        "a number": lambda: tensor.flatten()[:1].clone(),
        "longer": lambda: torch.cat([tensor.flatten(), tensor.flatten()]),
        "empty": lambda: tensor.flatten()[:0].clone(),
        "absent": lambda: None,
        "called otherwise": lambda: None,
    }
    if tensor.is_floating_point() and tensor.numel():
        ways |= {"nan": lambda: torch.full_like(tensor, number), "one nan": lambda: _one(tensor, number, rng)}
    how = rng.choice(sorted(ways))
    new = ways[how]()
    del tensors[name]
    if new is not None:
        tensors[name] = new
    elif how == "called otherwise":
        tensors[rng.choice(NAMES)] = tensor
    save_file(tensors, path, metadata=metadata)
    return f"{name} is {how}"


def _one(tensor: Any, number: float, rng: random.Random) -> Any:
    tensor = tensor.clone()
    tensor.view(-1)[rng.randrange(tensor.numel())] = number
    return tensor


_BY_KIND: dict[str, Callable[[Path, random.Random], str]] = {
    ".json": _json,
    ".csv": _csv,
    ".safetensors": _safetensors,
}
