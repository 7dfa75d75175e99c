"""The Hugging Face hub: the one module that makes requests to it. Loaders get files on disk.

Each load asks once for the repository, without the retries that make the hub's client wait for minutes where there is
no network. Files that are in the cache are not fetched again.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from zsvec.encoders.quiet import check_endpoint, quiet_loading
from zsvec.encoders.weights import (
    FileChoice,
    LocalSource,
    Source,
    Weights,
    checkpoint_files,
    is_local,
    relative_files,
)
from zsvec.errors import WeightsUnavailableError, without_password

_logger = logging.getLogger(__name__)
_SECONDS_TO_ANSWER = 5.0
# One of these is at the root of every repository that a loader can use.
_ROOT_FILES = ("modules.json", "config.json", "model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the hub.

    Attributes:
        repository: ``owner/name``.
        revision: Commit, tag or branch; without one, the newest commit.
        choose: From the names of the repository's files to those that are needed.
    """

    repository: str
    revision: str | None
    choose: FileChoice

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository

    def load(self) -> Weights:
        """The folder of the repository's files, in the hub's cache; what is not in the cache is fetched.

        Raises:
            WeightsUnavailableError: The hub cannot be reached or has no such repository, revision or
                weights, and they are not in the cache.
        """
        with quiet_loading():
            try:
                folder = self._fetch()
            # The errors of a failed request depend on the HTTP client of the installed version.
            except Exception as exc:
                cached = self._cached()
                if cached is None:
                    if without_password(str(exc)) != str(exc):  # of HF_ENDPOINT
                        raise self._unavailable(exc) from None
                    raise self._unavailable(exc) from exc
                folder = cached
        return Weights(path=folder, model=self.repository, revision=folder.name)

    def missing(self) -> str | None:
        """What would be fetched from the hub, in words, or ``None`` if the weights are in the cache.

        Raises:
            WeightsUnavailableError: The address of the hub cannot be used.
        """
        check_endpoint()
        return None if self._cached() else f"{self} from the Hugging Face hub"

    def _fetch(self) -> Path:
        from huggingface_hub import HfApi, hf_hub_download

        info = HfApi().model_info(self.repository, revision=self.revision, timeout=_SECONDS_TO_ANSWER)
        names = self.choose([file.rfilename for file in info.siblings or []])
        if not names:
            raise LookupError("the repository holds no weights in a known format")
        _logger.info("fetching what is not in the cache of %s: %s", self, ", ".join(names))
        paths = [hf_hub_download(self.repository, name, revision=info.sha) for name in names]
        return Path(paths[0]).parents[len(PurePosixPath(names[0]).parts) - 1]

    def _cached(self) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        for name in _ROOT_FILES:
            try:
                path = try_to_load_from_cache(self.repository, name, revision=self.revision)
            except ValueError:  # no repository can have this name
                return None
            if isinstance(path, str) and self.choose(relative_files(Path(path).parent)):
                return Path(path).parent
        return None

    def _unavailable(self, reason: Exception) -> WeightsUnavailableError:
        revision = f" --revision {self.revision}" if self.revision else ""
        return WeightsUnavailableError(
            f"the weights {self} are neither in the cache nor to be had from the Hugging Face hub "
            f"({type(reason).__name__}: {reason}). Three ways out: weights that come as packages "
            "(--profile offline); a local path, such as ./clip, as the encoder's model or weights in zsvec.toml; or "
            f"a filled cache (where there is a network, hf download {self.repository}{revision}; then copy the cache "
            "here and point HF_HOME at it)"
        )


def checkpoint_source(reference: str, revision: str | None) -> Source:
    """Where a checkpoint in the format of transformers or sentence-transformers comes from.

    Args:
        reference: Path of its folder, as `is_local` has it, ``package:NAME``, or a repository of the hub.
        revision: Commit, tag or branch of the repository.
    """
    if is_local(reference):
        return LocalSource(reference)
    return HubSource(reference, revision, checkpoint_files)
