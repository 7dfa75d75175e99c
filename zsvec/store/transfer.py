"""Transfers: changes of two categories at once, so that a moved reference is always in at least one of them.

Qdrant cannot change two records atomically in one request. So a *transfer* is first recorded in the manifest of the
*source*, the category that loses references. This record has the next manifests of the source and of the *target*, the
category that gains the references. Each later step is a compare-and-set that any process may do. Before a process
writes to one of the two categories or collects garbage there, it does all remaining steps, whether the writer of the
transfer still runs or not. No clock is involved.

1. Source: commit the present manifest with the transfer added. If the source has changed, the transfer is lost, and the
   writer plans again.
2. Target: commit the new manifest, which names the transfer. If the target has changed, the transfer is cancelled.
3. Source: commit the new manifest or, if the transfer is cancelled, the present one. Either manifest is without the
   transfer.

A process that writes to the source after step 1, or to the target after step 2, first does step 3. So a transfer is
cancelled if the source names the transfer, but the target neither names it nor has the version from which the transfer
was planned: another process changed the target before step 2.

A process that reads the two categories at different times can see this state although the transfer is done. Such a
process takes the transfer for cancelled, but the commit of step 3 is lost, because the source has changed.

A reader that reads page by page may see the new source and the old target. So the new source names the version of the
target that it requires, and the reader asks for that version (`zsvec.store.catalog.changefeed`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from zsvec.errors import StoreError
from zsvec.store.catalog.catalog import PAUSES, Catalog, State
from zsvec.store.catalog.commit import UnknownError, attempts, commit_manifests, publish
from zsvec.store.catalog.schema import (
    category_from,
    expected,
    is_record,
    manifest_payload,
    place_of,
    with_requirement,
    with_writer,
    writers,
)
from zsvec.types import Category

Manifest = Mapping[str, Any]


def transfer(
    catalog: Catalog, source: Category, target: Category, before: State, change: str | None = None
) -> dict[str, Manifest]:
    """Commits two categories at once: the source loses references that the target gains.

    Args:
        catalog: The catalog.
        source: The losing category, with its next version.
        target: The gaining category, with its next version.
        before: State from `settled`, from which both categories were planned.
        change: Id of the change record, if a history is kept.

    Returns:
        The manifests of both categories, by name, read after the transfer. Empty if another writer changed one of the
        categories first. Also empty if the source has been changed so often since that the manifest no longer shows the
        outcome; then the transfer may have been completed.

    Raises:
        StoreUnavailableError: The outcome is unknown.
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
            losing = _shown(catalog, state, source.name)
            if _done(identifier) in writers(losing):  # else, a new target may not exist
                won = dict(publish(catalog, {source.name: losing, target.name: _shown(catalog, state, target.name)}))
                if len(won) < len(names):
                    raise UnknownError  # a reader's next look may miss one
    return won


def settled(catalog: Catalog, names: Iterable[str]) -> State:
    """Finishes all transfers of some categories, and returns the manifests of these categories.

    Raises:
        StoreUnavailableError: The state of a transfer is unknown.
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
    """Finishes the transfer that a source records, if there is one; raises as `settled`."""
    for attempt in attempts(catalog, [source]):
        with attempt:
            while (step := _step(catalog, source)) is not None:
                manifest, before = step
                commit_manifests(catalog, [manifest], before)  # if lost, another process has done the step


def _step(catalog: Catalog, source: str) -> tuple[Manifest, State] | None:
    """Returns the manifest to commit next and the state before it, or ``None`` if there is nothing to do."""
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
        raise UnknownError  # from a replica that has missed writes
    if (expected(there) if there else None) == planned_on:
        rev = catalog.next_rev()
        return {**said["target"], "rev": rev, "changed": rev, "came": {"id": identifier, "from": source}}, state
    return _succeeding(catalog, now, f"{identifier}-off"), state


def _looked_for(catalog: Catalog, name: str) -> Manifest:
    """Returns a manifest, read again while replicas differ; empty if the category never existed."""
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        if found := catalog.state([name]).manifests:
            return found[name]
        catalog.heal([name])
    return {}


def _succeeding(catalog: Catalog, manifest: Manifest, writer: str) -> dict[str, Any]:
    return {
        **{key: value for key, value in manifest.items() if key not in ("transfer", "came")},
        "version": manifest["version"] + 1,
        "rev": catalog.next_rev(),
        "writers": with_writer(writer, manifest),
    }


def _done(identifier: str) -> str:
    # Token in the source's manifest after step 3, if the target has gained the references.
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
    """Returns the transfer that a source records; empty if there is none, or if its record is invalid."""
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
    """Returns the source and the id of the transfer that committed a target; ``None`` without one."""
    came = manifest.get("came")
    if not isinstance(came, dict) or not isinstance(came.get("from"), str) or not isinstance(came.get("id"), str):
        return None
    return came["from"], came["id"]
