"""A variant: how autoencoder, mask and diffusion are coupled, and which couplings make no sense."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pelap.config.model import Section, UNetParams, VAEParams

Loss: TypeAlias = Literal["diffusion", "reconstruction", "sparsity"]
Losses: TypeAlias = Annotated[tuple[Loss, ...], Field(strict=False)]
ALL_LOSSES: tuple[Loss, ...] = ("diffusion", "reconstruction", "sparsity")


class VariantParams(Section):
    """One way of coupling autoencoder, mask and diffusion; what is left out is as in the paper.

    `params.yaml` explains every field.
    """

    gate: Literal["none", "sigmoid", "topk", "hard_concrete"] = "sigmoid"
    adaptive: bool = True
    k: PositiveInt | None = None
    mask_lr: PositiveFloat | None = None
    sparsity_key: Literal["lambda", "seed"]
    sparsity_weight: NonNegativeFloat = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_epochs: NonNegativeInt = 0
    start_epoch: NonNegativeInt = 0
    normalise: Literal["none", "before_mask", "after_mask"] = "none"
    decoder_input: Literal["unmasked", "masked"] = "unmasked"
    encoder_losses: Losses = ALL_LOSSES
    mask_losses: Losses = ALL_LOSSES
    vae_training: Literal["joint", "two_stage", "frozen"] = "joint"
    cut: bool = False
    vae: VAEParams | None = None
    unet: UNetParams | None = None

    @model_validator(mode="after")
    def _coherent(self) -> "VariantParams":
        rules = (self._without_mask, self._gate_problem, self._training_problem, self._penalty_problem)
        for rule in rules:
            problem = rule()
            if problem:
                raise ValueError(problem)
        return self

    def weight(self, lambda_: float) -> float:
        """The sparsity weight, once any warm-up is over, in a run with this `lambda`."""
        return lambda_ if self.sparsity_key == "lambda" else self.sparsity_weight

    def mask_learns(self, lambda_: float) -> bool:
        """Whether any loss reaches the mask."""
        return (
            ("diffusion" in self.mask_losses and not self._normalised_away())
            or ("reconstruction" in self.mask_losses and self.decoder_input == "masked")
            or ("sparsity" in self.mask_losses and self.weight(lambda_) > 0)
        )

    def _normalised_away(self) -> bool:
        """Whether the UNet sees the same whatever the mask: one factor a channel, then unit variance."""
        return not self.adaptive and self.normalise == "after_mask" and self.gate != "hard_concrete"

    def _given(self, name: str) -> bool:
        """Whether a field differs from the paper's."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def _without_mask(self) -> str | None:
        """A field that needs a mask where there is none."""
        if self.gate != "none":
            return None
        if self.decoder_input == "masked":
            return "decoder_input masked needs a mask; use unmasked"
        if self.normalise == "after_mask":
            return "normalise after_mask needs a mask; use before_mask"
        if self.sparsity_key == "lambda":
            return "sparsity_key lambda needs a mask; use seed"
        mask_fields = (
            "adaptive", "k", "mask_lr", "sparsity_weight", "schedule", "warmup_epochs", "start_epoch",
            "mask_losses", "cut",
        )  # fmt: skip
        useless = [name for name in mask_fields if self._given(name)]
        return f"{', '.join(useless)}: there is no mask; leave it out" if useless else None

    def _gate_problem(self) -> str | None:
        if (self.gate == "topk") != (self.k is not None):
            return "k, the number of open channels, belongs to gate topk; give both or neither"
        if self.gate == "topk" and (self.sparsity_key == "lambda" or self.sparsity_weight):
            return "gate topk keeps k channels open, so a penalty changes nothing; use sparsity_key seed"
        if self.cut and self.decoder_input == "unmasked":
            return "cut takes channels away that a decoder of z was trained on; use decoder_input masked"
        return None

    def _penalty_problem(self) -> str | None:
        if self.sparsity_key == "lambda" and self.sparsity_weight:
            return "sparsity_weight is for sparsity_key seed; with sparsity_key lambda the weight is lambda"
        if (self.sparsity_key == "lambda" or self.sparsity_weight) and "sparsity" not in self.mask_losses:
            return "the penalty does not reach the mask; add sparsity to mask_losses, or leave it out"
        if (self.schedule == "constant") != (self.warmup_epochs == 0):
            return "schedule linear or cosine and warmup_epochs above 0 belong together; give both or neither"
        if self.warmup_epochs and self.sparsity_key == "seed" and not self.sparsity_weight:
            return "there is no penalty to warm up; give sparsity_weight, or use sparsity_key lambda"
        return None

    def _training_problem(self) -> str | None:
        if self.vae_training != "joint" and self._given("encoder_losses"):
            return (
                f"vae_training {self.vae_training} keeps every loss from the encoder; "
                "leave encoder_losses out"
            )
        # Whether lambda is 0 is not known here: `pelap.config.load` looks once more.
        if self.gate != "none" and not self.mask_learns(lambda_=1.0):
            return "no loss is left to train the mask; name one in mask_losses that sees it"
        return None
