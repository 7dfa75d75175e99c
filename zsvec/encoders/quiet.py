"""Loading without the progress bars and warnings that the libraries print."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

from zsvec.errors import WeightsUnavailableError

_LIBRARIES = ("huggingface_hub", "sentence_transformers", "timm", "transformers")
_logger = logging.getLogger(__name__)
# The settings are global to the process: of two loads at once, each would restore the other's silence.
_loading = threading.RLock()


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())
        _logger.debug("%s: %s", record.name, record.getMessage())


@contextmanager
def quiet_loading() -> Iterator[list[str]]:
    """Keep the libraries from writing to stdout and stderr, and restore their settings afterwards.

    Yields:
        The warnings that the libraries would have printed, as they come. Each is also logged here, as DEBUG.

    Raises:
        WeightsUnavailableError: As `check_endpoint`.
    """
    check_endpoint()
    collector = _Collector()
    with _loading, ExitStack() as restore:
        for library in _LIBRARIES:
            _redirect(logging.getLogger(library), collector, restore)
        with warnings.catch_warnings():
            # an environment variable of the hub takes precedence, and the hub warns where it differs
            warnings.filterwarnings("ignore", "Cannot (dis|en)able progress bars", UserWarning)
            _switch_bars_off(restore)
        yield collector.messages


def _redirect(logger: logging.Logger, collector: _Collector, restore: ExitStack) -> None:
    restore.callback(logger.setLevel, logger.level)
    restore.callback(setattr, logger, "handlers", logger.handlers)
    restore.callback(setattr, logger, "propagate", logger.propagate)
    logger.setLevel(logging.WARNING)
    logger.handlers, logger.propagate = [collector], False


def _switch_bars_off(restore: ExitStack) -> None:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    restore.callback(disable_progress_bars if are_progress_bars_disabled() else enable_progress_bars)
    disable_progress_bars()
    # transformers' switch also sets the hub's, which is therefore restored after it.
    transformers = sys.modules.get("transformers.utils.logging")
    if transformers is not None and transformers.is_progress_bar_enabled():
        restore.callback(transformers.enable_progress_bar)
        transformers.disable_progress_bar()


def check_endpoint() -> None:
    """Refuse an address of the hub with which its client, and what uses that, cannot even be imported.

    Raises:
        WeightsUnavailableError: It is so.
    """
    try:
        urlsplit(os.environ.get("HF_ENDPOINT", "")).port  # noqa: B018 - it is read to be checked
    except ValueError:
        raise WeightsUnavailableError(
            "HF_ENDPOINT is no URL: give one such as https://huggingface.co, or unset it"
        ) from None
