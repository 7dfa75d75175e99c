"""The store of categories, which `open_store` opens in a folder, on a Qdrant server, or in memory."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from importlib import import_module
from pathlib import Path

from zsvec.errors import InvalidInputError, ZSVecError, shown
from zsvec.store.backends.base import EXACT, FIRST_CONTACT, Hit, Placement, Points
from zsvec.store.catalog.changefeed import Cursor, Look
from zsvec.store.catalog.schema import Reference
from zsvec.store.census import Census
from zsvec.store.collections.inbox import InboxImage, Why
from zsvec.store.reuse import StoredContent
from zsvec.store.store import Store
from zsvec.store.writing import Move, Renamed, Write

__all__ = [
    "EXACT",
    "FIRST_CONTACT",
    "Census",
    "Cursor",
    "Hit",
    "InboxImage",
    "Look",
    "Move",
    "Placement",
    "Points",
    "Reference",
    "Renamed",
    "Store",
    "StoredContent",
    "Why",
    "Write",
    "open_store",
]


def open_store(
    location: str,
    *,
    namespace: str,
    api_key: str | None = None,
    ca_certificate: Path | None = None,
    timeout: float = 60.0,
    first_contact: float = FIRST_CONTACT,
    placement: Placement | None = None,
    within: Path | None = None,
    history: float = 0.0,
    by: str | None = None,
) -> Store:
    """Opens a store in its current namespace. The first write creates folder and collections.

    Args:
        location: Folder of an embedded store, an ``http://`` or ``https://`` URL, or several URLs of one deployment,
            separated by commas. ``:memory:`` opens a new store in the memory of this process, for tests; closing the
            store deletes all data.
        namespace: Prefix of the collections that the store owns.
        api_key: Key of the server.
        ca_certificate: PEM file of the certificate authorities to trust, instead of the default ones.
        timeout: Deadline of one request to a server, in seconds.
        first_contact: Deadline of the first request in seconds, if shorter than `timeout`.
        placement: Placement of new collections on a cluster.
        within: Base folder of a relative location; by default the present working folder.
        history: Undo window in seconds; 0 disables undo.
        by: Author to record with changes.

    Raises:
        InvalidInputError: The location is a file, an unreadable folder, a path that cannot be a folder, ``host:port``
            without ``http://``, a URL with a password, or a URL that is neither http nor https; or the certificates or
            the key cannot be used.
        StoreUnavailableError: The server cannot be reached, refuses the key, or is too old.
        StoreLockedError: The embedded store is already open, in this or another process.
        StoreError: A record of the store is damaged or has another schema.
    """
    is_folder = os.path.isdir(location)  # noqa: PTH112 - Path.is_dir raises for a name that is too long
    like_server = not is_folder and bool(re.fullmatch(r"https?:/?[^/\\].*|[^/\\]+:\d+/?", location))
    if "@" in location and (like_server or "://" in location):
        raise InvalidInputError(
            "the URL of the store has a name or a password before an @, which no server would get: leave it out, and "
            "give the key by api_key or ZSVEC_API_KEY"
        )
    if like_server:
        address = re.sub(r"^https?:/?", "", location)
        raise InvalidInputError(f"the store {location!r} looks like a server: write http://{address}, or https://")
    if location == ":memory:":
        backend = import_module("zsvec.store.backends.memory").MemoryBackend()
    elif "://" in location:
        urls = [url.strip() for url in location.split(",")]
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise InvalidInputError(f"the store {url!r} is neither a folder nor an http:// or https:// URL")
        backend = import_module("zsvec.store.backends.server.backend").connect(
            urls,
            api_key=api_key,
            ca_certificate=ca_certificate,
            timeout=timeout,
            first_contact=first_contact,
            placement=placement,
        )
    else:
        folder = _folder(location, within or Path())
        if _is_read_only_store(folder):
            backend = import_module("zsvec.store.backends.edge.private").PrivateCopy(folder, name=location)
        else:
            backend = import_module("zsvec.store.backends.edge.backend").EdgeBackend(folder, name=location)
    try:
        store = Store(backend, namespace, history=history, by=by).current()
    except ZSVecError:  # an older namespace must not answer instead
        backend.close()
        raise
    if backend.exclusive:
        with suppress(ZSVecError):  # the first write reports the error
            store.open_again()
            store.finish_interrupted()
    return store


def _is_read_only_store(folder: Path) -> bool:
    """Returns whether this process may not write a folder with a store, or a collection. ``False`` on Windows."""
    is_folder = os.path.isdir(folder)  # noqa: PTH112 - Path.is_dir raises for a name that is too long
    if os.name != "posix" or not is_folder or not any(folder.glob("*__catalog")):
        return False
    return not all(os.access(path, os.W_OK) for path in (folder, *folder.glob("*__*")))


def _folder(location: str, within: Path) -> Path:
    try:
        # The path is absolute, since the process may change the working folder before the first write.
        folder = (within / Path(location).expanduser()).absolute()
        taken = folder.exists() and not folder.is_dir()
    except (OSError, RuntimeError) as exc:  # the name is too long, or `~user` is unknown
        reason = getattr(exc, "strerror", None) or exc
        raise InvalidInputError(f"the store {shown(location)} cannot be a folder: {reason}") from exc
    if taken:
        raise InvalidInputError(
            f"the store {location!r} is a file: give a folder, or the URL of a server. `zsvec import` reads archives"
        )
    if folder.is_dir():
        try:
            os.stat(f"{folder}/.")  # noqa: PTH116 - pathlib removes the dot
        except OSError as exc:
            raise InvalidInputError(
                f"the store {location!r} is a folder that you may not read: change its permissions"
            ) from exc
    return folder
