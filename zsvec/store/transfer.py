"""Changes of two categories at once: a reference that moves is for an instant in both, and never in neither.

No request to Qdrant changes two records or neither. So a *transfer* is written down before it is carried out, in the
manifest of the category that loses by it, the *source*: what that manifest and the one of the *target* will be. From
then on each step is a compare-and-set that anybody may do. Whoever is about to write to one of them, or to collect its
garbage, does it first, whether the writer of the transfer is at work or gone: no clock has to tell.

1. The source: what its manifest says, and the transfer. If the source has changed, it is lost: plan again.
2. The target: its new manifest, which names the transfer. If the target has changed, the transfer is off.
3. The source: its new manifest, or what it said before if the transfer is off; both without the transfer.

Nobody writes to the source between 1 and 3, nor to the target between 2 and 3, without doing 3 first. So where the
source names the transfer, and the target neither is what it was planned on nor names it, somebody else has changed the
target before 2. A process that reads the two at different times may find the same when the transfer is done. It takes
it for off, and loses at 3.

A writer of an earlier version of zsvec does not know of transfers, and would write over them.

A reader whose look goes page by page may see the new source and the old target. The new source says which version of
the target it requires, and the reader asks for that again (`zsvec.store.catalog.look`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from zsvec.errors import StoreError
from zsvec.store.catalog.catalog import PAUSES, Catalog, State
from zsvec.store.catalog.commit import UnknownError, attempts, commit_manifests, publish
from zsvec.store.catalog.records import is_record, place_of
from zsvec.store.catalog.schema import (
    category_from,
    expected,
    manifest_payload,
    with_requirement,
    with_writer,
    writers,
)
from zsvec.types import Category

Manifest = Mapping[str, Any]


def transfer(
    catalog: Catalog, source: Category, target: Category, before: State, change: str | None = None
) -> dict[str, Manifest]:
    """Commit two categories of which one loses what the other gains.

    Args:
        catalog: Of the store.
        source: As it will be, with the version above the one that it replaces.
        target: Likewise.
        before: What both were planned on, from `settled`.
        change: Id of the change that it is, if that is kept.

    Returns:
        The manifests of both, by name, as they were right after it or later. Empty, if somebody else had changed one
        of the two before; or if so many have changed the source since that nothing tells: then others may have carried
        it out.

    Raises:
        StoreUnavailableError: It could not be found out whether the commits won.
        StoreError: The store was dropped.
    """
    identifier = uuid.uuid4().hex
    old, there = before.manifests[source.name], before.manifests.get(target.name)
    planned_on = there or before.foreign.get(target.name)
    said = {
        "id": identifier,
        "planned_on": expected(planned_on) if planned_on else None,
        "target": manifest_payload(target, before.store, identifier, there, change),
        "source": manifest_payload(source, before.store, _done(identifier), old, change),
    }
    commit_manifests(catalog, [{**_succeeding(catalog, old, identifier), "transfer": said}], before)
    finish(catalog, source.name)
    names = [source.name, target.name]
    won: dict[str, Manifest] = {}
    for attempt in attempts(catalog, names):
        with attempt:
            state = catalog.state(names)
            after = {name: _shown(catalog, state, name) for name in names}
            if _done(identifier) in writers(after[source.name]):
                won = dict(publish(catalog, after))
                if len(won) < len(names):
                    raise UnknownError  # whether every reader's next look finds both
    return won


def settled(catalog: Catalog, names: Iterable[str]) -> State:
    """The manifests of some categories, once no transfer is under way that changes them.

    Raises:
        StoreUnavailableError: It could not be found out how far one is.
        StoreError: The store was dropped.
    """
    names = set(names)
    while True:
        state = catalog.state(names)
        under_way = {name for name, manifest in state.manifests.items() if _said(manifest)}
        for source, identifier in filter(None, map(_came, state.manifests.values())):
            if _said(_looked_for(catalog, source)).get("id") == identifier:
                under_way.add(source)
        if not under_way:
            return state
        for name in under_way:
            finish(catalog, name)


def finish(catalog: Catalog, source: str) -> None:
    """Carry out the transfer of a category, if there is one; raises as `settled`."""
    for attempt in attempts(catalog, [source]):
        with attempt:
            while (step := _step(catalog, source)) is not None:
                manifest, before = step
                commit_manifests(catalog, [manifest], before)  # where it is lost, somebody else has done it


def _step(catalog: Catalog, source: str) -> tuple[Manifest, State] | None:
    """The manifest to commit next, and what there is before it; ``None``: nothing.

    Raises:
        UnknownError: A record does not show that must be there.
    """
    said = _said(_shown(catalog, catalog.state([source]), source))
    if not said:
        return None
    identifier, target = said["id"], said["target"]["category"]
    state = catalog.state([source, target])
    now = _shown(catalog, state, source)
    if _said(now).get("id") != identifier:
        return None
    there = state.manifests.get(target) or state.foreign.get(target)
    if there is None and said["planned_on"]:
        there = _shown(catalog, state, target)
    if there and _came(there) == (source, identifier):
        published = publish(catalog, {target: there})
        if target not in published:
            raise UnknownError
        version = published[target]["version"]
        done = _succeeding(
            catalog, {**said["source"], "version": now["version"], "writers": writers(now)}, _done(identifier)
        )
        return {**done, "changed": done["rev"], "requires": with_requirement(now, target, version)}, state
    planned_on = said["planned_on"]
    if there and planned_on and _is_older(there, planned_on):
        raise UnknownError  # the answer of a replica that has been away
    if (expected(there) if there else None) == planned_on:
        rev = catalog.next_rev()
        return {**said["target"], "rev": rev, "changed": rev, "came": {"id": identifier, "from": source}}, state
    return _succeeding(catalog, now, f"{identifier}-off"), state


def _looked_for(catalog: Catalog, name: str) -> Manifest:
    """A manifest that has been there; empty where it does not show, and so never was."""
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        if found := catalog.state([name]).manifests:
            return found[name]
        catalog.heal([name])
    return {}


def _succeeding(catalog: Catalog, manifest: Manifest, writer: str) -> dict[str, Any]:
    """A manifest that says the same, without any transfer, from another writer."""
    return {
        **{key: value for key, value in manifest.items() if key not in ("transfer", "came")},
        "version": manifest["version"] + 1,
        "rev": catalog.next_rev(),
        "writers": with_writer(writer, manifest),
    }


def _done(identifier: str) -> str:
    """The writer of the source, once the target has gained."""
    return f"{identifier}-done"


def _shown(catalog: Catalog, state: State, name: str) -> Manifest:
    if name not in state.manifests:
        catalog.heal([name])  # replicas may differ
        raise UnknownError
    return state.manifests[name]


def _is_older(manifest: Manifest, planned_on: Manifest) -> bool:
    same_store = manifest.get("store") == planned_on.get("store")
    return same_store and manifest["version"] < planned_on["version"]


def _said(manifest: Manifest) -> Mapping[str, Any]:
    """What a source says of its transfer; empty if there is none, or if somebody else has put something there."""
    said = manifest.get("transfer")
    if not isinstance(said, dict) or not isinstance(said.get("id"), str) or "planned_on" not in said:
        return {}
    planned_on = said["planned_on"]
    if planned_on is not None and not (isinstance(planned_on, dict) and isinstance(planned_on.get("version"), int)):
        return {}
    try:
        for one in (said.get("source"), said.get("target")):
            if not isinstance(one, dict) or one.get("kind") != "manifest" or not is_record(place_of(one), one):
                return {}
            category_from(one)
    except StoreError:
        return {}
    return said if said["source"]["category"] == manifest["category"] != said["target"]["category"] else {}


def _came(manifest: Manifest) -> tuple[str, str] | None:
    """The source and the id of the transfer by which a target has got what it has; ``None`` if by none."""
    came = manifest.get("came")
    if not isinstance(came, dict) or not isinstance(came.get("from"), str) or not isinstance(came.get("id"), str):
        return None
    return came["from"], came["id"]
