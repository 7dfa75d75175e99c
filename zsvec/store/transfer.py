"""Changes of two categories at once: what leaves one for another is for an instant in both, and never in none.

No request to Qdrant changes two records or neither. So a *transfer* is written down before it is carried out, in the
manifest of the category that loses by it, the *source*: what that manifest and the one of the *target* will be. From
then on each step is a compare-and-set that anybody may do. Whoever is about to write to one of them, or to collect its
garbage, does it first, whether the writer of the transfer is at work or gone: no clock has to tell.

1. The source: what its manifest says, and the transfer. If the source has changed, it is lost: plan again.
2. The target: its new manifest, which names the transfer. If the target has changed, the transfer is off.
3. The source: its new manifest, or what it said before if the transfer is off; both without the transfer.

Nobody writes to the source between 1 and 3, nor to the target between 2 and 3, without doing 3 first. So where the
source names the transfer, and the target neither is what it was planned on nor names it, somebody else has changed the
target before 2. Who reads the two at different times may find that as well when all is done, and loses at 3.

A reader whose look goes page by page may see the new source and the old target. The new source says which version of
the target it requires, and the reader asks for that again (`zsvec.store.look`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from zsvec.store.catalog import Catalog, State
from zsvec.store.commit import UnknownError, attempts, commit_manifests, publish
from zsvec.store.schema import expected, is_record, manifest_payload, with_requirement, with_writer
from zsvec.types import Category

Manifest = Mapping[str, Any]


def transfer(catalog: Catalog, source: Category, target: Category, before: State) -> dict[str, Manifest]:
    """Commit two categories of which one loses what the other gains.

    Args:
        catalog: Of the store.
        source: As it will be, with the version above the one that it replaces.
        target: Likewise.
        before: What both were planned on, from `settled`.

    Returns:
        Their manifests by name, as `commit`: of both, or of none.

    Raises:
        StoreUnavailableError: It could not be found out whether the commits won.
        StoreError: The store was dropped.
    """
    catalog.raise_schema()
    identifier = uuid.uuid4().hex
    old, there = before.manifests[source.name], before.manifests.get(target.name)
    planned_on = there or before.foreign.get(target.name)
    said = {
        "id": identifier,
        "planned_on": expected(planned_on) if planned_on else None,
        "target": manifest_payload(target, before.store, identifier, there),
        "source": manifest_payload(source, before.store, _done(identifier), old),
    }
    if not commit_manifests(catalog, [{**_succeeding(catalog, old, identifier), "transfer": said}], before):
        return {}
    finish(catalog, source.name)
    after = catalog.state([source.name, target.name]).manifests
    writers = after.get(source.name, {}).get("writers", ())
    # Where so many have written since that none of these is named any more, the target may tell.
    gained = set(target.write_ids).difference(there["writes"] if there else ())
    won = _done(identifier) in writers or gained & set(after.get(target.name, {}).get("writes", ()))
    return dict(publish(catalog, after)) if won else {}


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
            if _said(catalog.state([source]).manifests.get(source, {})).get("id") == identifier:
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
    if there is None and said["planned_on"] is not None:
        there = _shown(catalog, state, target)
    if there and _came(there) == (source, identifier):
        version = publish(catalog, {target: there})[target]["version"]
        done = _succeeding(
            catalog, {**said["source"], "version": now["version"], "writers": now["writers"]}, _done(identifier)
        )
        return {**done, "changed": done["rev"], "requires": with_requirement(now, target, version)}, state
    if (expected(there) if there else None) == said["planned_on"]:
        rev = catalog.next_rev()
        return {**said["target"], "rev": rev, "changed": rev, "came": {"id": identifier, "from": source}}, state
    return _succeeding(catalog, now, f"{identifier}-off"), state


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


def _said(manifest: Manifest) -> Mapping[str, Any]:
    """What a source says of its transfer; empty if there is none, or what is there is none of ours."""
    said = manifest.get("transfer")
    if not isinstance(said, dict) or not isinstance(said.get("id"), str) or "planned_on" not in said:
        return {}
    both = [said.get("source"), said.get("target")]
    if not all(isinstance(one, dict) and one.get("kind") == "manifest" and is_record(one) for one in both):
        return {}
    return said if said["source"]["category"] == manifest["category"] != said["target"]["category"] else {}


def _came(manifest: Manifest) -> tuple[str, str] | None:
    """The source and the id of the transfer by which a target has got what it has; ``None`` if by none."""
    came = manifest.get("came")
    if not isinstance(came, dict) or not isinstance(came.get("from"), str) or not isinstance(came.get("id"), str):
        return None
    return came["from"], came["id"]
