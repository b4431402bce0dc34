"""What the numbers were measured with, as one line below the table."""

from collections.abc import Iterator, Mapping
from textwrap import fill
from typing import Any

from pelap.report import modality
from pelap.report.tables import number

_DIGITS = 12
"""Of a checksum."""


def line(protocol: Mapping[str, Any]) -> str:
    """What was made, reference, extractors, sampler, moving average, seed, data set, versions, device.

    What the protocol does not say is left out.
    """
    return " · ".join(_parts(protocol))


def notes(protocol: Mapping[str, Any]) -> list[str]:
    """What is to be kept in mind with these numbers."""
    found = protocol.get("notes") or []
    notes = [str(note) for note in found] if isinstance(found, list) else [str(found)]
    return [modality.modality_names(protocol).put(note) for note in notes]


def markdown(protocol: Mapping[str, Any]) -> str:
    """Both, below a table in Markdown."""
    paragraphs = [line(protocol), *notes(protocol)]
    return "".join(f"\n{text}\n" for text in paragraphs if text)


def terminal(protocol: Mapping[str, Any], width: int = 80) -> str:
    """Both, below a table in a terminal."""
    paragraphs = [line(protocol).replace("·", "|"), *notes(protocol)]
    paragraphs = [text.replace("é", "e") for text in paragraphs]  # some terminals have ASCII alone
    return "\n".join(fill(text, width, break_on_hyphens=False) for text in paragraphs if text)


def _parts(protocol: Mapping[str, Any]) -> Iterator[str]:
    yield from _pictures(protocol)
    for extractor in _listed(protocol.get("extractors")):
        yield f"extractor {extractor['name']}{_checksum(extractor.get('sha256'))}"
    yield from modality.parts(protocol)
    sampler = protocol.get("sampler")
    if isinstance(sampler, Mapping) and {"kind", "steps"} <= set(sampler):
        yield f"{str(sampler['kind']).upper()}, {sampler['steps']} steps"
    for name, how in (protocol.get("pipelines") or {}).items():
        rows = modality.rows_per_latent(how)
        twice = f", {rows} rows a latent" if rows != 1 else ""
        yield f"{name}: {how['scheduler']}, {how['steps']} steps{twice}"
    yield from _average(protocol.get("ema_decay"))
    if protocol.get("seed") is not None:
        yield f"seed {protocol['seed']}"
    if protocol.get("dataset") is not None:
        yield f"data set {protocol['dataset']}{_checksum(protocol.get('dataset_checksum'))}"
    versions = protocol.get("versions")
    if isinstance(versions, Mapping):
        yield ", ".join(f"{name} {version}" for name, version in versions.items())
    for key, name in (("python", "Python "), ("device", ""), ("git_revision", "revision ")):
        if protocol.get(key) is not None:
            yield f"{name}{protocol[key]}"


def _pictures(protocol: Mapping[str, Any]) -> Iterator[str]:
    made, real = protocol.get("num_images"), protocol.get("num_reference")
    if made is not None and real is not None:
        many = modality.modality_names(protocol).many
        yield f"{number(made, 0)} {many} of each model against {number(real, 0)} train {many}"


def _average(decay: Any) -> Iterator[str]:
    """The decay of the weights' moving average, if there is one, whether or not all models share it."""
    values = decay.values() if isinstance(decay, Mapping) else [decay]
    shown = list(dict.fromkeys(f"{value:g}" for value in values if isinstance(value, int | float)))
    if shown:
        yield f"EMA {', '.join(shown)}"


def _checksum(digest: Any) -> str:
    return f" ({str(digest)[:_DIGITS]})" if digest else ""


def _listed(extractors: Any) -> Iterator[Mapping[str, Any]]:
    """Extractors by name or as a list."""
    if isinstance(extractors, Mapping):
        extractors = [
            {"name": name, **value} for name, value in extractors.items() if isinstance(value, Mapping)
        ]
    for extractor in extractors if isinstance(extractors, list) else []:
        if isinstance(extractor, Mapping) and "name" in extractor:
            yield extractor
