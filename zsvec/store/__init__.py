"""Where categories live: `open_store` for a folder or the URL of a Qdrant server."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from zsvec.errors import InvalidInputError
from zsvec.store.base import Hit, Points, Reference, Write
from zsvec.store.census import Census
from zsvec.store.store import Store

if TYPE_CHECKING:
    from zsvec.config import Settings

__all__ = ["Census", "Hit", "Points", "Reference", "Store", "Write", "open_store"]


def open_store(settings: Settings) -> Store:
    """The store that the settings name. Nothing is created before the first write.

    Args:
        settings: `store` is the folder of an embedded store, or an ``http://`` or ``https://`` URL.

    Raises:
        InvalidInputError: The folder is a file, or the URL is of another kind.
        StoreUnavailableError: The server cannot be reached.
    """
    if "://" in settings.store:
        if not settings.store.startswith(("http://", "https://")):
            raise InvalidInputError(f"the store {settings.store!r} is neither a folder nor an http:// or https:// URL")
        key = settings.api_key.get_secret_value() if settings.api_key else None
        server = import_module("zsvec.store.server")
        return Store(server.connect(settings.store, key, settings.timeout), settings.namespace)
    try:
        folder = Path(settings.store).expanduser()
        taken = folder.exists() and not folder.is_dir()
    except (OSError, RuntimeError) as exc:  # too long a name, or an unknown user
        raise InvalidInputError(f"the store {settings.store!r} cannot be a folder: {exc}") from exc
    if taken:
        raise InvalidInputError(f"the store {settings.store!r} is a file: give a folder, or the URL of a server")
    edge = import_module("zsvec.store.edge")
    return Store(edge.EdgeBackend(folder), settings.namespace)
