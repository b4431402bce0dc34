"""Prompts: from their file, and encoded."""

from pathlib import Path
from typing import Any

import torch

from pelap.errors import DataError, ModelError


def read_prompts(path: Path) -> list[str]:
    """Prompts from a UTF-8 file, one a line; blank lines do not count.

    Raises:
        DataError: It is missing, unreadable, no text, or holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file of prompts; correct the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason}); give one prompt a line") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a file of prompts") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{path}: holds no prompt; give one a line")
    return prompts


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
