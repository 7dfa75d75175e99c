"""Where categories live: `open_store` for a folder, the URL of a Qdrant server, or memory."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from zsvec.errors import InvalidInputError
from zsvec.store.base import Hit, Points
from zsvec.store.census import Census
from zsvec.store.look import Cursor, Look
from zsvec.store.memory import MemoryBackend
from zsvec.store.schema import Reference
from zsvec.store.store import Store
from zsvec.store.writing import Write

__all__ = ["Census", "Cursor", "Hit", "Look", "Points", "Reference", "Store", "Write", "open_store"]


def open_store(location: str, *, namespace: str, api_key: str | None = None, timeout: float = 60.0) -> Store:
    """Open a store. Nothing is created before the first write.

    Args:
        location: Folder of an embedded store, or an ``http://`` or ``https://`` URL. ``:memory:`` is a new store in
            the memory of this process, for tests; it is gone when it is closed.
        namespace: Prefix of the collections that the store owns.
        api_key: Key of the server.
        timeout: Deadline of one operation on a server, in seconds.

    Raises:
        InvalidInputError: The folder is a file, or the URL is of another kind.
        StoreUnavailableError: The server cannot be reached.
    """
    if location == ":memory:":
        return Store(MemoryBackend(), namespace)
    if "://" in location:
        if not location.startswith(("http://", "https://")):
            raise InvalidInputError(f"the store {location!r} is neither a folder nor an http:// or https:// URL")
        server = import_module("zsvec.store.server")
        return Store(server.connect(location, api_key, timeout), namespace)
    try:
        folder = Path(location).expanduser()
        taken = folder.exists() and not folder.is_dir()
    except (OSError, RuntimeError) as exc:  # too long a name, or an unknown user
        raise InvalidInputError(f"the store {location!r} cannot be a folder: {exc}") from exc
    if taken:
        raise InvalidInputError(f"the store {location!r} is a file: give a folder, or the URL of a server")
    edge = import_module("zsvec.store.edge")
    return Store(edge.EdgeBackend(folder), namespace)
