"""Copies a store to another place, with the settings and keys of both ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Unpack

from pydantic import SecretStr

from zsvec.errors import InvalidInputError, StoreUnavailableError
from zsvec.settings.settings import Settings, SettingsArguments, load_settings
from zsvec.store import Store
from zsvec.types import Category, Copied

TARGET_KEY_VARIABLE = "ZSVEC_TARGET_API_KEY"


def copy(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    target_namespace: str | None = None,
    target_api_key: str | None = None,
    replace: bool = False,
    on_commit: Callable[[Category], None] = lambda category: None,
    track: Callable[[Sequence[Category]], Iterable[Category]] = iter,
    **settings: Unpack[SettingsArguments],
) -> Copied:
    """Copy the categories of a store to another store, for a backup or a move. No encoder runs.

    Each category is committed in the target as a whole, with vectors, small images, texts, metadata, and the marks of
    moved and removed references. The calibration and the inbox are copied, too. The history stays behind. Copying again
    continues after an interruption, and adds new categories, also those that were removed from the target. Categories
    that only the target has stay.

    Args:
        source: Folder or URL of the store to copy. The store is only read.
        target: Folder or URL of the copy: a new store, or a store with vectors of the same encoders.
        target_namespace: Namespace of the target, by default the namespace of the source.
        target_api_key: Key of a target on a server, by default ``ZSVEC_TARGET_API_KEY``. Without either, the setting
            ``api_key`` is sent to the target only if the source is a folder, or has the same URL.
        replace: Whether to replace categories and the calibration of the target that have other content. By default,
            they stay as they are, and `Copied.different` names the categories.
        on_commit: Called with each category once it is committed in the target.
        track: Called with the categories of the source; must yield all of them. Shows progress.
        **settings: Settings of both stores, as for `open`. ``namespace`` and ``api_key`` apply to the source.
            ``keep_images`` applies to a new target; by default, the target does as the source.

    Returns:
        The copied categories, and those that could not be copied. `Copied.complete` tells whether nothing is missing.

    Raises:
        InvalidInputError: A setting is invalid, or source and target are the same store.
        EncoderMismatchError: The target has vectors of other encoders.
        StoreError: There is no source.
        StoreLockedError: The folder of one of the stores is already open, in this or another process.
        StoreUnavailableError: A server cannot be reached or refuses the key, or the disk is full.
    """
    source, target = os.fspath(source), os.fspath(target)
    if ":memory:" in (source, target):
        raise InvalidInputError("a store ':memory:' ends with its process: give a folder or the URL of a server")
    ours = load_settings(**{**settings, "store": source})
    theirs = load_settings(**{**settings, "store": target, "namespace": target_namespace or ours.namespace})
    key = target_api_key or os.environ.get(TARGET_KEY_VARIABLE)
    theirs = theirs.model_copy(update={"api_key": SecretStr(key) if key else _key_for(target, ours)})
    if ours.namespace == theirs.namespace and _is_same_folder(source, target):  # can be open once
        raise _itself(source)
    with ours.open_store() as first, _open_target(theirs, ours) as second:
        if first.place == second.place:
            raise _itself(first.location)
        return second.copy_from(first, replaces=replace, images=theirs.keep_images, on_commit=on_commit, track=track)


def _is_same_folder(source: str, target: str) -> bool:
    try:
        return Path(source).expanduser().samefile(Path(target).expanduser())
    except (OSError, RuntimeError, ValueError):  # no such folder; opening reports what is wrong
        return False


def _itself(location: str) -> InvalidInputError:
    return InvalidInputError(
        f"{location} cannot be copied to itself: choose another target, or another namespace there"
    )


def _open_target(target: Settings, source: Settings) -> Store:
    try:
        return target.open_store()
    except StoreUnavailableError as exc:
        if "://" not in target.store or target.api_key or not source.api_key:
            raise
        raise StoreUnavailableError(
            f"{exc}. That variable is the key of the source, and was not sent to another server: set "
            f"{TARGET_KEY_VARIABLE} if the target needs a key"
        ) from exc


def _key_for(target: str, source: Settings) -> SecretStr | None:
    """Returns the key of the settings, unless the key belongs to the server of the source and the target is another."""
    return source.api_key if "://" not in source.store or _servers(target) <= _servers(source.store) else None


def _servers(location: str) -> set[str]:
    return {url.strip().rstrip("/").lower() for url in location.split(",")}
