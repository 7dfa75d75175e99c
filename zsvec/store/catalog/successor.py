"""The record of a switch: a store goes on in another namespace, with vectors that other encoders have made.

A store that was re-embedded owns several namespaces: ``birds``, ``birds.1``, ``birds.2`` …, of which one is current.
Names of namespaces that users choose have no dot, so these namespaces belong to the store ``birds`` alone. The record
of the store in each namespace names the *successor* as a number, never as a name. So a forged record leads to another
namespace of the same store at most.

The record of the store in the present namespace decides a switch:

1. *Closed*: the successor is named, but not ``done``. Writers wait. A commit that lands now is not acknowledged.
2. The changes that were committed before are embedded again.
3. *Done*: compare-and-set of the closed record. If any writer has changed the record since, the switch is lost.

Each writer reads the record after its commit (`zsvec.store.catalog.commit`). So a commit is acknowledged only if it
landed before the record was closed, and such a commit is in step 2. A writer that has waited for `LONGEST_CLOSED_S`
opens the record again, because the process that closed it may have been killed; then step 3 is lost. No clock that
processes share is involved.

An undo of the switch takes the same steps in the record of the successor, which then names the namespace before it
under the id of the switch. That record decides. Any process may afterwards delete the successor from the record before.

The undone namespace keeps its successor while it is made a copy again. So a process that had it open before the undo
stays refused until the next switch. That switch has another id, by which any process may then delete the old successor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zsvec.errors import CONTROLS
from zsvec.store.catalog.schema import is_number

LONGEST_CLOSED_S = 30.0
"""Seconds after which a waiting writer opens a closed store again."""

LARGEST_NUMBER = 9999
"""Largest number of a namespace."""

_LONGEST_AUTHOR = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Successor:
    """The namespace in which a store goes on.

    Attributes:
        id: Id of the switch.
        to: Number of the namespace; smaller than the own number if a switch was undone.
        done: Whether the store has been switched. Until then, the store is closed.
        at: Time of the switch, in microseconds since 1970.
        until: Time until which the switch can be undone, in microseconds since 1970.
        rev: Newest ``rev`` in the other namespace at the time of the switch.
        by: Author, if known.
    """

    id: str
    to: int
    done: bool = False
    at: int = 0
    until: int = 0
    rev: int = 0
    by: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the field ``successor`` of the record of a store."""
        return asdict(self)


def successor_from(store: Mapping[str, Any] | None, number: int) -> Successor | None:
    """Returns the successor in the record of a store; ``None`` without a valid one.

    Args:
        store: The record, which any writer may have made.
        number: Number of the namespace of the record.
    """
    match (store or {}).get("successor"):
        case {"id": str(id_), "to": to, "done": bool(done), "at": at, "until": until, "rev": rev, "by": by} if (
            all(map(is_number, (to, at, until, rev)))
            and number != to <= LARGEST_NUMBER
            and 0 < len(id_) <= _LONGEST_AUTHOR
            and (by is None or (isinstance(by, str) and len(by) <= _LONGEST_AUTHOR))
            and not re.search(f"[{CONTROLS}]", f"{id_}{by}")
        ):
            return Successor(id=id_, to=to, done=done, at=at, until=until, rev=rev, by=by)
    return None


def is_dropped(store: Mapping[str, Any] | None) -> bool:
    """Returns whether the contents of a namespace were or are being deleted, according to the record of its store."""
    return store is not None and store.get("dropped") is True


def is_emptied(store: Mapping[str, Any] | None) -> bool:
    """Returns whether the deletion of a namespace was finished. Any process finishes the deletion of a killed one."""
    return store is not None and is_dropped(store) and store.get("emptied") is True


def split_namespace(namespace: str) -> tuple[str, int]:
    """Returns the namespace that the user has chosen, and the number of a namespace of its store."""
    base, _, number = namespace.partition(".")
    return base, int(number or 0)


def joined_namespace(base: str, number: int) -> str:
    """Returns the namespace with this number of the store with the namespace `base`."""
    return f"{base}.{number}" if number else base
