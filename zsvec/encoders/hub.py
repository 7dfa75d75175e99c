"""All requests to the Hugging Face hub, and the muting of the model libraries.

Each load sends one request for the repository's list of files, without retries: the retries of the hub's client take
minutes without a network. Files in the cache are not downloaded again.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import urlsplit

from zsvec.encoders.weights import FileChoice, LocalSource, Weights, checkpoint_files, is_local, relative_files
from zsvec.errors import WeightsUnavailableError, without_password

_logger = logging.getLogger(__name__)
_TIMEOUT_S = 5.0
# Every repository that a loader can use has one of these files at the root.
_ROOT_FILES = ("modules.json", "config.json", "model.safetensors", "pytorch_model.bin")
_LIBRARIES = ("huggingface_hub", "sentence_transformers", "timm", "transformers")
# Muting affects the whole process. Without the lock, a concurrent load would save muted settings and restore them.
_loading = threading.RLock()


@dataclass(frozen=True, slots=True)
class HubSource:
    """A repository of the hub.

    Attributes:
        repository: ``owner/name``.
        revision: Commit, tag or branch; ``None`` for the newest commit.
        choose: Selects the needed files from the names of the repository's files.
    """

    repository: str
    revision: str | None
    choose: FileChoice

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository

    def load(self) -> Weights:
        """Downloads missing files and returns the weights in the hub's cache.

        If a request fails, the weights in the cache are used.

        Raises:
            WeightsUnavailableError: The weights are neither in the cache nor available from the hub, or ``HF_ENDPOINT``
                is not a valid URL.
        """
        with quiet_loading():
            try:
                folder = self._fetch()
            # The errors of a failed request depend on the installed version of huggingface_hub.
            except Exception as exc:  # noqa: BLE001
                cached = self.path()
                if cached is None:
                    has_password = without_password(str(exc)) != str(exc)  # from HF_ENDPOINT
                    raise self._unavailable(exc) from (None if has_password else exc)
                folder = cached
        return Weights(path=folder, model=self.repository, revision=folder.name)

    def missing(self) -> str | None:
        """Returns a description of the weights if they are not in the cache, else ``None``.

        Raises:
            WeightsUnavailableError: ``HF_ENDPOINT`` is not a valid URL.
        """
        return None if self.path() else f"{self} from the Hugging Face hub"

    def _fetch(self) -> Path:
        from huggingface_hub import HfApi, hf_hub_download

        info = HfApi().model_info(self.repository, revision=self.revision, timeout=_TIMEOUT_S)
        names = self.choose([file.rfilename for file in info.siblings or []])
        if not names:
            raise LookupError("the repository holds no weights in a known format")
        _logger.info("fetching missing files of %s: %s", self, ", ".join(names))
        paths = [hf_hub_download(self.repository, name, revision=info.sha) for name in names]
        return Path(paths[0]).parents[len(PurePosixPath(names[0]).parts) - 1]

    def path(self) -> Path | None:
        """Returns the folder of the weights in the hub's cache, or ``None`` if they are not in the cache.

        Raises:
            WeightsUnavailableError: ``HF_ENDPOINT`` is not a valid URL.
        """
        _check_endpoint()
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
            f"the weights {self} are neither in the cache nor available from the Hugging Face hub "
            f"({type(reason).__name__}: {reason}). Three ways out: weights that come as packages "
            "(--profile offline); a local path, such as ./clip, as the encoder's model or weights in zsvec.toml; or "
            f"a filled cache (where there is a network, hf download {self.repository}{revision}; then copy the cache "
            "here and point HF_HOME at it)"
        )


Source: TypeAlias = LocalSource | HubSource


def checkpoint_source(reference: str, revision: str | None) -> Source:
    """Returns the source of a checkpoint in the format of transformers or sentence-transformers.

    Args:
        reference: Path of a folder (see `is_local`), ``package:NAME``, or a repository of the hub.
        revision: Commit, tag or branch of the repository. Local weights have no revision.
    """
    if is_local(reference):
        return LocalSource(reference)
    return HubSource(reference, revision, checkpoint_files)


# ---- muting


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        _logger.debug("%s: %s", record.name, record.getMessage())


@contextmanager
def quiet_loading(*others: str) -> Iterator[list[str]]:
    """Mutes the logs and progress bars of the model libraries in this block, and restores their settings afterwards.

    Only one thread at a time can be in such a block.

    Args:
        *others: Names of other loggers to mute.

    Yields:
        List to which each warning of the libraries is added. This module also logs each warning at level DEBUG.

    Raises:
        WeightsUnavailableError: ``HF_ENDPOINT`` is not a valid URL.
    """
    _check_endpoint()
    collector = _Collector()
    with _loading, ExitStack() as restore:
        for library in (*_LIBRARIES, *others):
            logger = logging.getLogger(library)
            restore.callback(logger.setLevel, logger.level)
            restore.callback(setattr, logger, "handlers", logger.handlers)
            restore.callback(setattr, logger, "propagate", logger.propagate)
            logger.setLevel(logging.WARNING)
            logger.handlers, logger.propagate = [collector], False
        with warnings.catch_warnings():
            # HF_HUB_DISABLE_PROGRESS_BARS takes precedence, and the hub's client warns if this call contradicts it.
            warnings.filterwarnings("ignore", "Cannot (dis|en)able progress bars", UserWarning)
            _disable_progress_bars(restore)
        yield collector.messages


def _disable_progress_bars(restore: ExitStack) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    restore.callback(disable_progress_bars if are_progress_bars_disabled() else enable_progress_bars)
    disable_progress_bars()
    # Enabling the bars of transformers also enables the hub's. Callbacks run last in, first out, so the hub is restored
    # after transformers.
    transformers = sys.modules.get("transformers.utils.logging")
    if transformers is not None and transformers.is_progress_bar_enabled():
        restore.callback(transformers.enable_progress_bar)
        transformers.disable_progress_bar()


def _check_endpoint() -> None:
    """Raises WeightsUnavailableError if ``HF_ENDPOINT`` is invalid, because the hub's client then fails to import."""
    try:
        urlsplit(os.environ.get("HF_ENDPOINT", "")).port  # noqa: B018 - raises
    except ValueError:
        raise WeightsUnavailableError(
            "HF_ENDPOINT is no URL: give one such as https://huggingface.co, or unset it"
        ) from None
