"""Encodings of prompts."""

from typing import Any

import torch

from pelap.core.errors import ModelError


def stack(encodings: list[Any]) -> Any:
    """Encodings of single prompts as one of them all: tensors, None, or sequences of these."""
    first = encodings[0]
    if first is None:
        return None
    if not isinstance(first, torch.Tensor):
        return tuple(stack(list(column)) for column in zip(*encodings, strict=True))
    if any(tensor.shape != first.shape for tensor in encodings):
        raise ModelError("the text encoder gives prompts different lengths; use prompts of the same length")
    return torch.cat(encodings)
