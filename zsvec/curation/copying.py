"""Copies a store to another place: `copy_store`, which is `zsvec.copy`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pydantic import SecretStr

from zsvec.errors import InvalidInputError, StoreUnavailableError
from zsvec.settings.settings import Settings, load_settings
from zsvec.store import Store
from zsvec.types import Category, Copied

TARGET_KEY_VARIABLE = "ZSVEC_TARGET_API_KEY"


def copy_store(
    source: str,
    target: str,
    *,
    target_namespace: str | None = None,
    target_api_key: str | None = None,
    replace: bool = False,
    on_commit: Callable[[Category], None] = lambda category: None,
    track: Callable[[Sequence[Category]], Iterable[Category]] = iter,
    **settings: Any,
) -> Copied:
    """As `zsvec.copy`, for locations that are text."""
    if ":memory:" in (source, target):
        raise InvalidInputError("a store ':memory:' ends with its process: give a folder or the URL of a server")
    ours = load_settings(**{**settings, "store": source})
    theirs = load_settings(**{**settings, "store": target, "namespace": target_namespace or ours.namespace})
    key = target_api_key or os.environ.get(TARGET_KEY_VARIABLE)
    theirs = theirs.model_copy(update={"api_key": SecretStr(key) if key else _key_for(target, ours)})
    with ours.open_store() as first, theirs.open_store() as second:
        if first.place == second.place:
            raise InvalidInputError(
                f"{first.location} cannot be copied to itself: choose another target, or another namespace there"
            )
        if ours.api_key and not theirs.api_key:
            _check_access(second)
        return second.copy_from(first, replaces=replace, images=theirs.keep_images, on_commit=on_commit, track=track)


def _check_access(target: Store) -> None:
    """Reads one record of a server to which no key is sent, although the settings have a key."""
    try:
        target.encoders()
    except StoreUnavailableError as exc:
        raise StoreUnavailableError(
            f"{exc}. That variable is the key of the source, and was not sent to another server: set "
            f"{TARGET_KEY_VARIABLE} if the target needs a key"
        ) from exc


def _key_for(target: str, source: Settings) -> SecretStr | None:
    """Returns the key of the settings, unless the key belongs to the server of the source and the target is another."""
    return source.api_key if "://" not in source.store or _servers(target) <= _servers(source.store) else None


def _servers(location: str) -> set[str]:
    return {url.strip().rstrip("/").lower() for url in location.split(",")}
