"""Brings a folder in step with a store on a server, which is only read."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Unpack

from zsvec.errors import InvalidInputError, StoreLockedError, StoreUnavailableError, shown
from zsvec.settings.settings import Settings, SettingsArguments, load_settings
from zsvec.store import Store
from zsvec.store.backends.edge.folder import is_foreign
from zsvec.types import Category, Fingerprint, Synced

WATCH_EVERY_S = 5.0
"""Seconds between two looks of `watch` at the source."""
_WAITS_AFTER_S = 5.0  # seconds without an answer, after which `watch` reports the error


def sync(
    source: str,
    folder: str | os.PathLike[str],
    *,
    target_namespace: str | None = None,
    on_commit: Callable[[Category], None] = lambda category: None,
    track: Callable[[Sequence[Category]], Iterable[Category]] = iter,
    **settings: Unpack[SettingsArguments],
) -> Synced:
    """Bring a folder in step with a store on a server, such as on a device. No encoder runs.

    The folder gets the categories and the calibration of the server. Only what has changed is transferred, and
    categories that were removed from the server are removed from the folder. Each category is committed as a whole: a
    reader of the folder sees its old or its new state. Call again after an interruption, and for later changes.

    If categories of the server were changed in the folder, the next call reverts them. Categories that were made in the
    folder stay. The inbox, the history and attached collections are not transferred.
    The folder is locked during the call. `Classifier.sync` does the same for a classifier that has the folder open.

    Args:
        source: URL of the server. A key that may only read suffices, since nothing is written there.
        folder: Folder of an embedded store: a new one, or one with vectors of the same encoders.
        target_namespace: Namespace of the folder, by default the namespace of the source.
        on_commit: Called with each added or changed category once it is committed in the folder.
        track: Called with the changed categories; must yield all of them. Shows progress.
        **settings: Settings of both stores, as for `open`. ``namespace`` and ``api_key`` apply to the source.
            ``keep_images`` applies to a new folder; by default, the folder does as the source.

    Returns:
        What has changed, and the categories that could not be copied. `Synced.complete` tells whether nothing is
        missing.

    Raises:
        InvalidInputError: A setting is invalid, the source is no server, or the target is no folder, or a folder with
            other files than those of a store.
        EncoderMismatchError: The folder has vectors of other encoders.
        StoreError: There is no store on the server, the store was switched to other encoders, or the folder follows
            another store.
        StoreLockedError: The folder is already open, in this or another process.
        StoreUnavailableError: The server cannot be reached or refuses the key, or the disk is full.
    """
    ours, theirs = _ends(source, folder, target_namespace, settings)
    with ours.open_store() as first, theirs.open_store() as second:
        follower = first.follower()
        return second.sync_from(follower, images=theirs.keep_images, on_commit=on_commit, track=track)


def watch(
    source: str,
    folder: str | os.PathLike[str],
    *,
    target_namespace: str | None = None,
    on_commit: Callable[[Category], None] = lambda category: None,
    on_error: Callable[[StoreUnavailableError | StoreLockedError], None],
    **settings: Unpack[SettingsArguments],
) -> Iterator[Synced]:
    """Repeats `sync` without end, and yields the result of each run. Raises as `sync`.

    The source is asked every `WATCH_EVERY_S` seconds. The folder is locked only while a run changes it, so that other
    processes can open it between two runs. While the source cannot be reached, or another process has the folder open,
    the errors go to `on_error`, and the run is repeated. The first error comes after 5 seconds without an answer. The
    first look without an error yields a result also if nothing has changed.
    """
    ours, theirs = _ends(source, folder, target_namespace, settings)
    with ExitStack() as stack:
        follower = None
        waits = False
        while True:
            result = None
            try:
                if follower is None:
                    followed = stack.enter_context(ours.open_store())
                    follower = followed.follower()
                # A repeated run has the deadline of the settings, since the server may be slow.
                with nullcontext() if waits else followed.within(_WAITS_AFTER_S):
                    if follower.has_news():
                        with theirs.open_store() as target:
                            result = target.sync_from(follower, images=theirs.keep_images, on_commit=on_commit)
                    elif waits:
                        result = follower.unchanged()
                waits = False
            except (StoreUnavailableError, StoreLockedError) as exc:
                waits = True
                on_error(exc)
            if result is not None:
                yield result
            time.sleep(WATCH_EVERY_S)


class Following:
    """The store that the store of a classifier follows. Stays connected between two runs. Thread-safe.

    Args:
        store: Store of the classifier.
        settings: Settings of the classifier.
        fingerprints: Returns the fingerprints of its encoders, by name.
    """

    def __init__(self, store: Store, settings: Settings, fingerprints: Callable[[], Mapping[str, Fingerprint]]) -> None:
        self._store = store
        self._settings = settings
        self._fingerprints = fingerprints
        self._lock = threading.Lock()
        self._named: tuple[str, dict[str, Any]] | None = None
        self._stack = ExitStack()

    def sync(self, source: str, settings: dict[str, Any]) -> Synced:
        """As `zsvec.classifier.facade.Classifier.sync`."""
        with self._lock:
            if self._named != (source, settings):
                self._stack.close()
                self._named = None
                ours = load_settings(**{"namespace": self._settings.namespace, **settings, "store": _url(source)})
                first = self._stack.enter_context(ours.open_store())
                if not self._store.encoders():  # the store gets those of the source
                    first.check_fingerprints(self._fingerprints())
                self._follower = first.follower()
                self._named = source, settings
            return self._store.sync_from(self._follower, images=self._settings.keep_images)

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            self._stack.close()


def _ends(
    source: str, folder: str | os.PathLike[str], target_namespace: str | None, settings: SettingsArguments
) -> tuple[Settings, Settings]:
    place = os.fspath(folder)
    if "://" in place or place == ":memory:":
        raise InvalidInputError(f"a store that follows another one must be a folder, got {shown(place)}")
    ours = load_settings(**{**settings, "store": _url(source)})
    theirs = load_settings(**{**settings, "store": place, "namespace": target_namespace or ours.namespace})
    with suppress(OSError, RuntimeError, ValueError):  # a new folder; or opening reports what is wrong
        if is_foreign(Path(place).expanduser()):
            raise InvalidInputError(
                f"the folder must be new or a store, but {shown(place)} has other files: choose another folder"
            )
    return ours, theirs


def _url(source: str) -> str:
    if not isinstance(source, str) or "://" not in source:
        raise InvalidInputError(
            f"the store to follow must be the URL of a server, got {shown(source)}: `zsvec copy --replace` copies "
            "folders"
        )
    return source
