"""Prompts from their file."""

import unicodedata
from pathlib import Path

from pelap.core.errors import DataError


def read_prompts(path: Path) -> list[str]:
    """Prompts from a UTF-8 file, one a line; blank lines do not count.

    Accents take the form NFC, so that a file from a Mac has the prompts of one from elsewhere.

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
    prompts = [unicodedata.normalize("NFC", line.strip()) for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"{path}: holds no prompt; give one a line")
    return prompts
