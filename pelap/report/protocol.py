"""What the numbers were measured with: a line below the table, and what the models make, in words."""

import re
from collections.abc import Iterator, Mapping
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from pelap.report.tables import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES, SOUNDS = "pictures", "sounds"
CLASSIFIER = "classifier"  # extractor that is trained on the real items at hand
_DIGITS = 12  # of a checksum
# Ours alone: what a row of a table starts with is the name of a model.
_WORD = re.compile(
    r"(?<!^\| )(?<![\w.-])(?:(?P<upper>P)|p)icture(?P<many>s)?(?![\w-]|\.\w)|(?<=time per )image\b", re.M
)


class ModalityNames(NamedTuple):
    """What a model makes."""

    one: str
    many: str

    def put(self, text: str) -> str:
        """A text of ours, which is about pictures, as it is about these.

        It must hold no name that a user gave, except where a row of a Markdown table starts with one.
        """

        def noun(match: re.Match[str]) -> str:
            word = self.many if match["many"] else self.one
            return word.capitalize() if match["upper"] else word

        return text if self.many == PICTURES else _WORD.sub(noun, text)

    def label(self, figure: "Figure") -> "Figure":
        """The same figure, its texts about these; one that is a single word is a name, not ours."""
        from matplotlib.text import Text  # where there is a figure, it has been waited for

        for text in figure.findobj(Text):
            assert isinstance(text, Text)
            if not _WORD.fullmatch(text.get_text()):
                text.set_text(self.put(text.get_text()))
        return figure


def modality_names(protocol: Mapping[str, Any]) -> ModalityNames:
    """By the medium that an evaluation's protocol names; pictures where it names none."""
    sounds = protocol.get("medium") == SOUNDS
    return ModalityNames("sound", SOUNDS) if sounds else ModalityNames("picture", PICTURES)


def line(protocol: Mapping[str, Any]) -> str:
    """What was made, reference, extractors, sampler, moving average, seed, data set, versions, device.

    What the protocol does not say is left out.
    """
    return " · ".join(_parts(protocol))


def notes(protocol: Mapping[str, Any]) -> list[str]:
    """What is to be kept in mind with these numbers."""
    found, put = protocol.get("notes") or [], modality_names(protocol).put
    return [put(str(note)) for note in (found if isinstance(found, list) else [found])]


def markdown(protocol: Mapping[str, Any]) -> str:
    """Both, below a table in Markdown."""
    return "".join(f"\n{text}\n" for text in [line(protocol), *notes(protocol)] if text)


def terminal(protocol: Mapping[str, Any], width: int = 80) -> str:
    """Both, below a table in a terminal."""
    paragraphs = [line(protocol).replace("·", "|"), *notes(protocol)]
    paragraphs = [text.replace("é", "e") for text in paragraphs]  # some terminals have ASCII alone
    return "\n".join(fill(text, width, break_on_hyphens=False) for text in paragraphs if text)


def prompts(protocol: Mapping[str, Any]) -> tuple[list[str], int, str]:
    """The first prompts (sample i is of prompt i), after how many the first comes again, and guidance."""
    found = _mapping(protocol, "prompts")
    scale = found.get("guidance_scale")
    guidance = f", guidance scale {scale:g}" if isinstance(scale, int | float) else ""
    return [str(text) for text in found.get("first") or []], int(found.get("number") or 0), guidance


def num_judged(protocol: Mapping[str, Any]) -> str:
    """Of how many samples prompt agreement is, where that is known."""
    judged, made = _mapping(protocol, "prompts").get("num_judged"), protocol.get("num_images")
    if judged is None:
        return ""
    return f"{judged:,} of {made:,}" if isinstance(made, int) else f"{judged:,}"


def rows_per_latent(protocol: Mapping[str, Any]) -> int:
    """Rows that a latent takes in the UNet's batch: 2 with guidance; 1 where the protocol does not say."""
    return int(protocol.get("rows_per_latent") or 1)


def guided(protocol: Mapping[str, Any]) -> str:
    """What guidance does to the costs of a pass; empty where there is none."""
    rows = rows_per_latent(protocol)
    text = (
        "With guidance the UNet sees every latent with its prompt and without: times, MACs and memory of a "
    )
    return f"{text}pass are those of {rows} rows a latent." if rows != 1 else ""


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Any nesting of mappings as `outer.inner` and what is there."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parts(protocol: Mapping[str, Any]) -> Iterator[str]:
    many = modality_names(protocol).many
    made, real = protocol.get("num_images"), protocol.get("num_reference")
    if made is not None and real is not None:
        yield f"{number(made, 0)} {many} of each model against {number(real, 0)} train {many}"
    for name, how in _mapping(protocol, "extractors").items():
        if isinstance(how, Mapping):
            yield f"extractor {name}{_checksum(how.get('sha256'))}"
    yield from _medium(protocol, many)
    sampler = _mapping(protocol, "sampler")
    if {"kind", "steps"} <= set(sampler):
        yield f"{str(sampler['kind']).upper()}, {sampler['steps']} steps"
    for name, how in _mapping(protocol, "pipelines").items():
        rows = rows_per_latent(how)
        twice = f", {rows} rows a latent" if rows != 1 else ""
        yield f"{name}: {how['scheduler']}, {how['steps']} steps{twice}"
    decay = protocol.get("ema_decay")
    decays = decay.values() if isinstance(decay, Mapping) else [decay]
    shown = dict.fromkeys(f"{value:g}" for value in decays if isinstance(value, int | float))
    if shown:
        yield f"EMA {', '.join(shown)}"
    if protocol.get("seed") is not None:
        yield f"seed {protocol['seed']}"
    if protocol.get("dataset") is not None:
        yield f"data set {protocol['dataset']}{_checksum(protocol.get('dataset_checksum'))}"
    versions = _mapping(protocol, "versions")
    if versions:
        yield ", ".join(f"{name} {version}" for name, version in versions.items())
    for key, name in (("python", "Python "), ("device", ""), ("git_revision", "revision ")):
        if protocol.get(key) is not None:
            yield f"{name}{protocol[key]}"


def _medium(protocol: Mapping[str, Any], many: str) -> Iterator[str]:
    """Sounds, classifier and prompts."""
    if many == SOUNDS:
        rate = _mapping(protocol, "sound").get("sample_rate")
        rated = f" of {rate:,} samples a second" if rate else ""
        yield f"sounds{rated} by Griffin-Lim, measured as heard"
    judge = _mapping(protocol, "classifier")
    if judge.get("test_accuracy") is not None:
        tested = f" of {judge['num_test']:,} test {many}" if judge.get("num_test") else ""
        yield f"classifier: {100 * judge['test_accuracy']:.1f} %{tested} right"
    first, count, guidance = prompts(protocol)
    if first:
        yield f"{count} prompt{'s' * (count != 1)}{guidance}"
    if rows_per_latent(protocol) != 1:
        yield f"{rows_per_latent(protocol)} rows of the UNet's batch a latent"


def _mapping(protocol: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An entry that is to be a mapping; empty where it is anything else."""
    value = protocol.get(key)
    return value if isinstance(value, Mapping) else {}


def _checksum(digest: Any) -> str:
    return f" ({str(digest)[:_DIGITS]})" if digest else ""
