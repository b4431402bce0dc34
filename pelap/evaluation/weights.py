"""Files of tensors: published weights, which have to be just these, and what is kept of earlier runs."""

import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from pelap.core.digests import sha256, tensors_digest
from pelap.core.errors import ConfigError, DataError, ModelError, PelapError
from pelap.core.files import exclusive, load_tensors, one_line, save_tensors
from pelap.core.keys import Key, key

# Of the published port of the 2015 weights, the same file in torch-fidelity and pytorch-fid.
INCEPTION_2015_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_WEIGHTS_VARIABLE = (
    "PELAP_INCEPTION_WEIGHTS"  # environment variable that says where these weights are
)
DOWNLOAD = "download"  # in place of a path: fetch the weights from where torch-fidelity has them


def inception_path(given: str | None) -> Path:
    """Where the weights of the 2015 Inception are: a path or ``download``, else as the environment says.

    Raises:
        ConfigError: Nothing says it.
        ModelError: They cannot be fetched.
    """
    given = given or os.environ.get(INCEPTION_WEIGHTS_VARIABLE)
    if not given:
        raise ConfigError(
            "inception_weights: inception-2015 needs weights-inception-2015-12-05-6726825d.pth; give its "
            f"path there or in {INCEPTION_WEIGHTS_VARIABLE}, or inception_weights: {DOWNLOAD}"
        )
    return _download_inception() if given == DOWNLOAD else Path(given)


def _download_inception() -> Path:
    """The file in torch.hub's folder, fetched where it is not there; torch-fidelity shares it."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL_INCEPTION_V3).name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:  # It takes its name when it is whole and its digest is right.
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), INCEPTION_2015_SHA256, progress=False)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"{URL_INCEPTION_V3}: cannot be fetched ({one_line(error)}); fetch it by hand and give its path "
            "as inception_weights"
        ) from None
    return path


def load_weights(path: Path, wanted: str, what: str) -> tuple[Any, str]:
    """What a file of weights holds, tensors and plain values alone, and its digest.

    Raises:
        ModelError: The file is missing, or its digest does not begin with `wanted`, as that of `what` does.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file of weights; correct the path")
    found = sha256(path)
    if not found.startswith(wanted):
        raise ModelError(f"{path}: SHA-256 {found[:12]}, but {what} has {wanted[:12]}; fetch the file again")
    return torch.load(path, map_location="cpu", weights_only=True), found


def kept(
    cache: Path | None,
    stem: str,
    make: Callable[[], dict[str, torch.Tensor]],
    subject: Collection[str],
    **parts: Any,
) -> dict[str, torch.Tensor]:
    """What `make` gives, on the CPU, or what an earlier call kept of the same.

    Processes that want the same wait for the first. What is damaged, or made of anything else, is made again.
    Where nothing can be kept that is said, and nothing else.

    Args:
        cache: Folder of what is kept; None keeps nothing.
        stem: How the name of the file begins.
        make: Makes it.
        subject: Names of the `parts` that say what it is of; a line says where something is kept that agrees
            in them and not in the others.
        parts: All that it depends on, see `pelap.core.keys.key`.
    """
    if cache is None:
        return make()
    made_of = key(**parts)
    path = cache / f"{stem}-{made_of.name}.safetensors"
    tensors = _load_kept(path, made_of)
    if tensors is not None:
        return tensors
    with ExitStack() as held:
        usable = False
        with _cache_may_fail(cache):
            held.enter_context(exclusive(path, wait=True))
            tensors, usable = _load_kept(path, made_of), True
        if tensors is None:
            _say_anew(cache, stem, made_of, subject)
            tensors = make()
            with _cache_may_fail(cache):
                if usable:
                    save_tensors(path, tensors, _said(tensors, made_of))
    return tensors


@contextmanager
def _cache_may_fail(cache: Path) -> Iterator[None]:
    """What is kept saves time: where it cannot be kept or found, work goes on without, and says so."""
    try:
        yield
    except (OSError, PelapError, NotImplementedError) as error:  # the last from a disk that knows no locks
        print(f"warning: {cache}: nothing is kept there ({one_line(error)})", file=sys.stderr)


def _load_kept(path: Path, made_of: Key) -> dict[str, torch.Tensor] | None:
    with suppress(DataError, OSError):
        tensors, said = load_tensors(path)
        if said == _said(tensors, made_of):
            return tensors
    return None


def _say_anew(cache: Path, stem: str, made_of: Key, subject: Collection[str]) -> None:
    for path in sorted(cache.glob(f"{stem}-*.safetensors")):
        with suppress(DataError, OSError):
            said = load_tensors(path)[1]
            said.pop("sha256", None)
            differing = made_of.differences(said)
            if differing and not set(differing) & set(subject):
                print(
                    f"{stem}: made anew; kept is one of other {', '.join(differing)} ({path})",
                    file=sys.stderr,
                )


def _said(tensors: Mapping[str, torch.Tensor], made_of: Key) -> dict[str, str]:
    """What stands in the file beside the tensors."""
    return {**made_of.parts, "sha256": tensors_digest(dict(sorted(tensors.items())))}
