"""What a denoiser is told beside the time step: prompts, through a text encoder that is trained with it.

Shapes: B batch, L tokens of a prompt, D width of the encoder.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from pelap.config import TextConditioning
from pelap.core.digests import digest
from pelap.core.errors import DataError

PADDING = 0  # token of the places behind a prompt's last word; a prompt of nothing else is no prompt
UNKNOWN = -1  # in place of the class that a prompt asks for, where it names none, or several
NUM_NAMED = 8  # prompts that tables and pages name

_WORD = re.compile(r"[^\W_]+")


class Guidance(NamedTuple):
    """What the UNet is told of the prompts of B samples, in sampling."""

    conditions: dict[str, torch.Tensor]
    """By keyword; rows of the B prompts, and where `scale` is not 1 then B of no prompt."""
    scale: float  # of classifier-free guidance, see `TextConditioner`


class TextConditioner(ModelMixin, ConfigMixin):
    """Prompts as the hidden states that a `UNet2DConditionModel` attends to.

    Prompts are made of class names by templates. A word is a token, in lower case and without punctuation;
    the vocabulary is the words of all templates and class names. Classifier-free guidance (Ho and Salimans,
    https://arxiv.org/abs/2207.12598) needs predictions without a prompt: in training, a share of the
    pictures is given none.

    Args:
        class_names: Of label 0, 1, ...; an underscore is a space.
        templates: Each with one ``{}``.
        prompts: What samples are made of: sample i gets prompt i, from the first again after the last. None:
            every template of every class, classes taking turns.
        num_tokens: L, at most.
        width: D.
        layers: Of the transformer.
        heads: Of its attention.
        dropout: Share of training pictures without prompt.
        guidance_scale: How far a prediction goes from the one without a prompt through the one with it; 1
            is the latter.

    Raises:
        DataError: A prompt is too long, or has a word that is not in the vocabulary.
    """

    @register_to_config
    def __init__(
        self,
        class_names: Sequence[str],
        templates: Sequence[str],
        prompts: Sequence[str] | None = None,
        num_tokens: int = 8,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        guidance_scale: float = 2.0,
    ) -> None:
        super().__init__()
        self.guidance_scale = guidance_scale
        self._phrases = [" ".join(_words(name)) for name in class_names]
        self._vocabulary = sorted({word for text in (*self._phrases, *templates) for word in _words(text)})
        self._by_label = torch.stack(
            [self.tokens([template.format(phrase) for phrase in self._phrases]) for template in templates]
        )  # (templates, classes, L)
        if prompts:
            self.set_prompts(prompts)
        else:
            every = [text.format(phrase) for text in templates for phrase in self._phrases]
            self._ask(every, list(range(len(self._phrases))) * len(templates))
        self.embedding = nn.Embedding(len(self._vocabulary) + 1, width)
        self.positions = nn.Parameter(0.02 * torch.randn(num_tokens, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def set_prompts(self, prompts: Sequence[str]) -> None:
        """Make samples of these prompts from now on; a `DataError` as in `tokens`."""
        self._ask(prompts, [self._label_in(prompt) for prompt in prompts])

    def _ask(self, prompts: Sequence[str], labels: list[int]) -> None:
        self._of_prompts = self.tokens(prompts)  # (prompts, L)
        self.prompts = tuple(prompts)
        self._asked = torch.tensor(labels)  # (prompts,)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, L, D) of prompts (B, L)."""
        hidden: torch.Tensor = self.encoder(self.embedding(tokens) + self.positions)
        return hidden

    def tokens(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts as (N, L) int64 on the CPU, padded with `PADDING`.

        Raises:
            DataError: One is too long, or has a word that is not in the vocabulary.
        """
        return torch.tensor([self._numbers(prompt) for prompt in prompts])

    def drawn_for(self, labels: torch.Tensor, stream: torch.Generator) -> torch.Tensor:
        """What pictures with these labels (B,) are given in training: a random template, or no prompt."""
        chosen = torch.randint(len(self._by_label), labels.shape, generator=stream)
        kept = torch.rand(labels.shape, generator=stream) >= self.config.dropout
        return torch.where(kept[:, None], self._by_label[chosen, labels.cpu()], PADDING)

    def of_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Prompts (B, L) for labels (B,), all by the first template."""
        return self._by_label[0, labels.cpu()]

    def of_items(self, items: Sequence[int]) -> torch.Tensor:
        """Prompts (B, L) of these samples."""
        return self._of_prompts[[item % len(self._of_prompts) for item in items]]

    def labels_of_prompts(self, items: Sequence[int]) -> torch.Tensor:
        """The label (B,) that each of these samples is asked to be, `UNKNOWN` where that is not clear."""
        return self._asked[[item % len(self._asked) for item in items]]

    def no_prompt(self, count: int) -> torch.Tensor:
        """(count, L): what stands for no prompt."""
        return torch.full((count, self.config.num_tokens), PADDING)

    def describe(self) -> dict[str, Any]:
        """What samples are made of, as a JSON object."""
        return {
            "number": len(self.prompts),
            "digest": digest(self.prompts),
            "guidance_scale": self.guidance_scale,
            "first": list(self.prompts[:NUM_NAMED]),
        }

    @property
    def rows_per_latent(self) -> int:
        """Of the UNet's batch in sampling: with guidance, each latent is seen with its prompt and without."""
        return 1 if self.guidance_scale == 1 else 2

    def _numbers(self, prompt: str) -> list[int]:
        words, longest = _words(prompt), self.config.num_tokens
        strange = [word for word in words if word not in self._vocabulary]
        if strange:
            raise DataError(
                f"prompt {prompt!r}: {strange[0]!r} is not in the model's vocabulary; use words of "
                f"{', '.join(self._vocabulary)}"
            )
        if not words or len(words) > longest:
            raise DataError(f"prompt {prompt!r}: has {len(words)} words; use 1 to {longest} (num_tokens)")
        return [self._vocabulary.index(word) + 1 for word in words] + [PADDING] * (longest - len(words))

    def _label_in(self, prompt: str) -> int:
        """The only class that a prompt names; a name inside a longer one that is there does not count."""
        text = " ".join(_words(prompt))
        named = {phrase for phrase in self._phrases if _within(phrase, text)}
        whole = [phrase for phrase in named if not any(_within(phrase, other) for other in named - {phrase})]
        return self._phrases.index(whole[0]) if len(whole) == 1 else UNKNOWN


def _within(phrase: str, text: str) -> bool:
    return f" {phrase} " in f" {text} "


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def build_conditioner(
    params: TextConditioning, class_names: Sequence[str], prompts: Sequence[str] | None
) -> TextConditioner:
    """A `TextConditioner` with fresh weights from torch's global generator, for the prompts of a file."""
    numbers = params.model_dump(exclude={"kind", "prompts", "templates"})
    return TextConditioner(list(class_names), list(params.templates), prompts and list(prompts), **numbers)
