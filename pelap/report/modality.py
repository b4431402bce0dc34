"""What a run's models make, in words: pictures or sounds, of which prompts, judged by which classifier."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.text import Text

PICTURES, SOUNDS = "pictures", "sounds"
CLASSIFIER = "classifier"
"""Extractor that is trained on the real items at hand."""
_WORD = re.compile(
    r"(?<!^\| )(?<![\w.-])(?:(?P<upper>P)|p)icture(?P<many>s)?(?![\w-]|\.\w)|(?<=time per )image\b", re.M
)
"""Ours alone: what a row of a table starts with is the name of a model."""


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

    def label(self, figure: Figure) -> Figure:
        """The same figure, its texts about these; one that is a single word is a name, not ours."""
        if self.many != PICTURES:
            for text in figure.findobj(Text):
                assert isinstance(text, Text)
                if not _WORD.fullmatch(text.get_text()):
                    text.set_text(self.put(text.get_text()))
        return figure


def modality_names(protocol: Mapping[str, Any]) -> ModalityNames:
    """By the medium that an evaluation's protocol names; pictures where it names none."""
    return (
        ModalityNames("sound", SOUNDS)
        if protocol.get("medium") == SOUNDS
        else ModalityNames("picture", PICTURES)
    )


def parts(protocol: Mapping[str, Any]) -> Iterator[str]:
    """Medium, classifier and prompts for the line below the table; what the protocol lacks is left out."""
    if protocol.get("medium") == SOUNDS:
        sound = protocol.get("sound")
        rate = sound.get("sample_rate") if isinstance(sound, Mapping) else None
        yield (
            "sounds"
            + (f" of {rate:,} samples a second" if rate else "")
            + " by Griffin-Lim, measured as heard"
        )
    judge = protocol.get("classifier")
    if isinstance(judge, Mapping) and judge.get("test_accuracy") is not None:
        tested = (
            f" of {judge['num_test']:,} test {modality_names(protocol).many}" if judge.get("num_test") else ""
        )
        yield f"classifier: {100 * judge['test_accuracy']:.1f} %{tested} right"
    told = prompts(protocol)
    if told:
        number = num_prompts(protocol)
        yield f"{number} prompt{'s' * (number != 1)}{guidance(protocol)}"
    if rows_per_latent(protocol) != 1:
        yield f"{rows_per_latent(protocol)} rows of the UNet's batch a latent"


def prompts(protocol: Mapping[str, Any]) -> list[str]:
    """The first of the prompts that samples are made of: sample i is of prompt i."""
    told = protocol.get("prompts")
    texts = told.get("first") if isinstance(told, Mapping) else None
    return [str(text) for text in texts] if isinstance(texts, list) else []


def num_prompts(protocol: Mapping[str, Any]) -> int:
    """After as many samples the first prompt has its turn again."""
    told = protocol.get("prompts")
    return int(told.get("number") or 0) if isinstance(told, Mapping) else 0


def guidance(protocol: Mapping[str, Any]) -> str:
    """`, guidance scale 3`, if there is one."""
    told = protocol.get("prompts")
    scale = told.get("guidance_scale") if isinstance(told, Mapping) else None
    return f", guidance scale {scale:g}" if isinstance(scale, int | float) else ""


def rows_per_latent(protocol: Mapping[str, Any]) -> int:
    """Rows that a latent takes in the UNet's batch: 2 with guidance; 1 where the protocol does not say."""
    return int(protocol.get("rows_per_latent") or 1)


def guided(protocol: Mapping[str, Any]) -> str:
    """What guidance does to the costs of a pass; empty where there is none."""
    rows = rows_per_latent(protocol)
    if rows == 1:
        return ""
    return (
        "With guidance the UNet sees every latent with its prompt and without: times, MACs and memory of a "
        f"pass are those of {rows} rows a latent."
    )


def agreement(protocol: Mapping[str, Any]) -> str:
    """What prompt agreement is, and of how many samples."""
    many, told = modality_names(protocol).many, protocol.get("prompts")
    judged = told.get("num_judged") if isinstance(told, Mapping) else None
    made = protocol.get("num_images")
    taken = f" Taken over the {judged:,}" if judged is not None else ""
    if taken:
        taken += f" of {made:,}" if isinstance(made, int) else ""
        taken += f" made {many} whose prompt names one class."
    return (
        f"Prompt agreement: the share of made {many} that the classifier takes for the class that their "
        f"prompt asks for; in the row real, its share of real test {many} taken for their own class.{taken}"
    )
