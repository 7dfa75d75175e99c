"""Transfers: changes of several categories at once, so that a moved reference is always in at least one of them.

Qdrant cannot change two records atomically in one request. So all categories of a *transfer* are *marked* before any of
them changes. A mark is a field of the present manifest, and has the next manifests of the category. One category is the
*coordinator*: its manifest alone decides whether the transfer is won. Each step is a compare-and-set.

1. Coordinator: commit the mark, which also names the other categories. If the category has changed, the transfer is
   lost, and the writer plans again.
2. Others: commit the mark. If one of these categories has changed, the transfer is cancelled: the coordinator commits
   its present manifest without the mark.
3. Coordinator: if all others are marked, commit that the transfer is won.
4. Categories that gain references: commit the manifest with these references.
5. Categories that lose references: commit the manifest without these references, the coordinator last and without the
   mark.

Before a process writes to a marked category or collects garbage there, it reads the manifest of the coordinator. If the
coordinator has the transfer, the process does the remaining steps, whether the writer of the transfer still runs or was
killed. Only the writer knows the marks, so another process waits for step 2, and then cancels the transfer. If the
coordinator does not have the transfer, the mark means nothing, and the next manifest of the category leaves it out. If
a mark is lost after step 3, because a manifest was damaged, the transfer is cancelled, too: a reference may then be in
two categories, but never in none, since no category loses references before all others have gained theirs. The mark
names the version in which the coordinator began the transfer, so that an older manifest, from a replica that has
missed writes, is recognised. If no replica can have missed writes, a mark of a later version is forged, or the
coordinator was replaced after damage: such a mark means nothing either. No clock is involved.

A reader that reads page by page may see a loss without the gain. So a category that has lost references names the
required versions of the categories that gained them, and the reader asks for these versions
(`zsvec.store.catalog.changefeed`).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from zsvec.errors import StoreError, StoreUnavailableError
from zsvec.store.catalog.catalog import PAUSES, Catalog, State
from zsvec.store.catalog.commit import STEP, UnknownError, attempts, commit_manifests, publish
from zsvec.store.catalog.schema import (
    category_from,
    is_damaged,
    is_number,
    is_record,
    manifest_payload,
    place_of,
    with_requirements,
    with_writer,
    writers,
)
from zsvec.types import Category

Manifest = Mapping[str, Any]


def transfer(
    catalog: Catalog,
    gains: Sequence[Category],
    loses: Sequence[Category],
    needs: Mapping[str, Collection[str]],
    before: State,
    change: str | None = None,
) -> dict[str, Manifest]:
    """Commits several categories at once: some lose references that others gain.

    Args:
        catalog: The catalog.
        gains: The categories that gain references, with these references.
        loses: The categories that lose references, without these references. A category may do both; then it has first
            the state in `gains`, and last the state in `loses`.
        needs: By losing category, the names of the categories that gain its references.
        before: State from `settled`, from which all categories were planned. At least one has a manifest there.
        change: Id of the change record, if a history is kept.

    Returns:
        The manifests of all categories, by name, read after the transfer. Empty if another writer changed one of the
        categories first. Also empty if the coordinator has been changed so often since that the manifest no longer
        shows the outcome; then the transfer may have been completed.

    Raises:
        StoreUnavailableError: The outcome is unknown.
        StoreError: The store was dropped.
    """
    names = list(dict.fromkeys(category.name for category in (*loses, *gains)))
    identifier, at = uuid.uuid4().hex, next(name for name in names if name in before.manifests)
    gaining, losing = ({category.name: category for category in some} for some in (gains, loses))

    def marked(name: str) -> dict[str, Any]:
        there = before.manifests.get(name)
        given = {"gains": gaining.get(name), "loses": losing.get(name)}
        mark: dict[str, Any] = {
            "id": identifier,
            "at": at,
            "since": before.manifests[at]["version"] + 1,
            "needs": sorted(needs.get(name, ())),
            **{
                step: category and manifest_payload(category, before.store, identifier, there, change)
                for step, category in given.items()
            },
        }
        if there is None:
            absent = Category(name=name, version=0, rev=rev, write_ids=(), texts=(), references={})
            there = {**manifest_payload(absent, before.store, identifier, None), "changed": 0, "writers": []}
        return {**_succeeding(there, identifier), "transfer": mark}

    rev = catalog.next_rev()
    marks = {name: marked(name) for name in names}
    others = {name: mark["version"] for name, mark in marks.items() if name != at}
    begun = {**marks[at], "transfer": {**marks[at]["transfer"], "others": others, "won": False}}
    if commit_manifests(catalog, [begun], before):
        commit_manifests(catalog, [marks[name] for name in others], before)
    _finish(catalog, at, identifier)
    won: dict[str, Manifest] = {}
    for attempt in attempts(catalog, names):
        with attempt:
            state = catalog.state(names)
            if _done(identifier) in writers(_shown(catalog, state, at)):  # else, a new category may not exist
                published = dict(publish(catalog, {name: _shown(catalog, state, name) for name in names}))
                if len(published) < len(names):
                    raise UnknownError  # a reader's next look may miss one
                won = published
    return won


def settled(catalog: Catalog, names: Iterable[str]) -> State:
    """Finishes all transfers of some categories, and returns the manifests of these categories.

    Raises:
        StoreUnavailableError: The state of a transfer is unknown.
        StoreError: The store was dropped, or this namespace is not the current one any more.
    """
    names = set(names)
    while True:
        state = catalog.state(names)
        if state.closed:
            catalog.check_current()
            state = catalog.state(names)
        found = {(mark["at"], mark["id"]): mark for mark in map(_mark, state.manifests.values()) if mark}
        running = _running(catalog, found.values()) if found else []
        if not running:
            return state
        for mark in running:
            _finish(catalog, mark["at"], mark["id"])


def is_running(catalog: Catalog) -> bool:
    """Returns whether any transfer is unfinished; raises as `settled`."""
    marks = [mark for mark in map(_mark, catalog.manifests()) if mark]
    return bool(marks and _running(catalog, marks))


def _running(catalog: Catalog, marks: Collection[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the marks of transfers that the coordinator still has."""
    names = {mark["at"] for mark in marks}
    was_whole = False
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        was_whole = pause > 0 and catalog.backend.is_whole(catalog.collection)
        found = catalog.state(names).manifests
        readable = {name: manifest for name, manifest in found.items() if not is_damaged(manifest)}
        old = {mark["at"] for mark in marks if readable.get(mark["at"], {}).get("version", 0) < mark["since"]}
        if not old:  # read again while replicas differ
            break
        catalog.heal(old)
    # Before and after the read: a replica may have come back, or gone away, meanwhile.
    if (old := old & readable.keys()) and not (was_whole and catalog.backend.is_whole(catalog.collection)):
        raise StoreUnavailableError(
            f"{catalog.location} shows an old state of {', '.join(map(repr, sorted(old)))}: try again when all nodes "
            "of the cluster are well"
        )
    return [mark for mark in marks if _is_run_by(readable.get(mark["at"], {}), mark["at"], mark["id"])]


def _finish(catalog: Catalog, at: str, identifier: str) -> None:
    """Does the remaining steps of a transfer; raises as `settled`. `at` is the coordinator."""
    pauses = {is_won: iter(PAUSES) for is_won in (False, True)}
    for attempt in attempts(catalog, [at]):
        with attempt:
            while (found := _found(catalog, at, identifier)) is not None:
                mark, state = found
                if (awaited := _awaited(mark, state)) and (pause := next(pauses[mark["won"]], None)) is not None:
                    time.sleep(pause)
                    if mark["won"]:
                        catalog.heal(awaited)
                else:  # if lost, another process has done the step
                    commit_manifests(catalog, _next(catalog, mark, state), state)


def _found(catalog: Catalog, at: str, identifier: str) -> tuple[Mapping[str, Any], State] | None:
    """Returns the mark of the coordinator, and the manifests of all categories; ``None`` if the transfer is over."""
    manifest = _shown(catalog, catalog.state([at]), at)
    if not _is_run_by(manifest, at, identifier):
        return None
    state = catalog.state([at, *_mark(manifest)["others"]])
    manifest = _shown(catalog, state, at)
    return (_mark(manifest), state) if _is_run_by(manifest, at, identifier) else None


def _is_run_by(manifest: Manifest, at: str, identifier: str) -> bool:
    """Returns whether this manifest of the category `at` coordinates the transfer."""
    mark = _mark(manifest)
    return bool(mark and (mark["at"], mark["id"]) == (at, identifier))


def _is_marked(mark: Mapping[str, Any], state: State, name: str) -> bool:
    return bool(_mark(state.manifests.get(name, {})).get("id") == mark["id"])


def _awaited(mark: Mapping[str, Any], state: State) -> set[str]:
    """Returns the categories that can still be marked or, if the transfer is won, whose marks a read does not show."""
    found = state.manifests
    left = {name: version for name, version in mark["others"].items() if not _is_marked(mark, state, name)}
    early = {
        name
        for name, version in left.items()
        if name not in found or (not is_damaged(found[name]) and found[name]["version"] < version)
    }
    return early if mark["won"] or len(early) == len(left) else set()


def _next(catalog: Catalog, mark: Mapping[str, Any], state: State) -> list[dict[str, Any]]:
    """Returns the manifests of the next step."""
    identifier, at, others, there = mark["id"], mark["at"], mark["others"], state.manifests
    if not all(_is_marked(mark, state, name) for name in others):
        if mark["won"] and _awaited(mark, state) and not catalog.backend.is_whole(catalog.collection):
            raise UnknownError  # from a replica that has missed writes
        return [_succeeding(there[at], f"{identifier}-off")]  # if won, a manifest is damaged: let no more be lost
    if not mark["won"]:
        return [{**_succeeding(there[at], f"{identifier}-won"), "transfer": {**there[at]["transfer"], "won": True}}]
    rev = catalog.next_rev()
    for step in ("gains", "loses"):
        pending = [name for name in others if there[name]["transfer"][step]]
        if there[at]["transfer"][step] and (step == "gains" or not pending):
            pending.append(at)
        if pending:
            needs = (there[name]["transfer"]["needs"] for name in pending if step == "loses")
            needed = {name: there[name] for name in chain.from_iterable(needs) if name in there}
            gained = publish(catalog, needed)
            if len(gained) < len(needed):
                raise UnknownError
            return [
                _stepped(there[name], step, rev + i * STEP, gained, ends=name == at and step == "loses")
                for i, name in enumerate(pending)
            ]
    return [_succeeding(there[at], _done(identifier))]  # if nothing is lost: copies are exchanged


def _stepped(manifest: Manifest, step: str, rev: int, gained: Mapping[str, Manifest], *, ends: bool) -> dict[str, Any]:
    """Returns the next manifest of a category; `ends` leaves out the mark."""
    mark = manifest["transfer"]
    now = {**mark[step], "version": manifest["version"], "writers": writers(manifest)}
    token = _done(mark["id"]) if ends else f"{mark['id']}-{step}"
    versions = {name: gained[name]["version"] for name in mark["needs"] if name in gained}
    required = with_requirements(manifest, versions)
    return {
        **_succeeding(now, token),
        "rev": rev,
        "changed": rev,
        **({"requires": required} if required else {}),
        **({} if ends else {"transfer": {**mark, step: None}}),
    }


def _succeeding(manifest: Manifest, writer: str) -> dict[str, Any]:
    """Returns the next version of a manifest, without a mark. Readers need not see it, so ``rev`` stays the same."""
    return {
        **{key: value for key, value in manifest.items() if key != "transfer"},
        "version": manifest["version"] + 1,
        "writers": with_writer(writer, manifest),
    }


def _done(identifier: str) -> str:
    # Token in the manifest of the coordinator after the last step of a transfer that was won.
    return f"{identifier}-done"


def _shown(catalog: Catalog, state: State, name: str) -> Manifest:
    if name not in state.manifests:
        catalog.heal([name])  # replicas may differ
        raise UnknownError
    return state.manifests[name]


def _mark(manifest: Manifest) -> Mapping[str, Any]:
    """Returns the mark of a transfer in a manifest; empty if there is none, or if it or the manifest is invalid."""
    mark = manifest.get("transfer")
    if not isinstance(mark, dict):
        return {}
    needs, others = mark.get("needs"), mark.get("others", {})
    fits = (
        isinstance(mark.get("id"), str)
        and isinstance(mark.get("at"), str)
        and is_number(mark.get("since"))
        and isinstance(needs, list)
        and all(isinstance(name, str) for name in needs)
        and isinstance(others, dict)
        and all(map(is_number, others.values()))
        and ("others" in mark and isinstance(mark.get("won"), bool)) == (mark.get("at") == manifest.get("category"))
    )
    return (
        mark if fits and all(_fits(one, manifest) for one in (manifest, mark.get("gains"), mark.get("loses"))) else {}
    )


def _fits(following: Any, manifest: Manifest) -> bool:
    """Returns whether a manifest can be read and can follow another one; ``None`` stands for no step."""
    if following is None:
        return True
    if not (
        isinstance(following, dict)
        and following.get("kind") == "manifest"
        and following.get("category") == manifest["category"]
        and is_record(place_of(following), following)
    ):
        return False
    try:
        category_from(following)
    except StoreError:
        return False
    return True
