"""Commits: manifests are replaced by compare-and-set, and read again for the outcome.

A commit has *won* if the manifest has the token of the writer. A commit is *lost* only if the manifest has the version
of the commit, or a later one, without the token. Any other outcome is *unknown*: a time-out, no response, or a read
that does not show the commit. Then the writer tries the same record again, which can land only once.

A won commit is acknowledged once it is *published*: the next look of every reader will find the commit
(`zsvec.store.catalog.changefeed`).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from zsvec.errors import StoreError, StoreUnavailableError
from zsvec.store.backends.base import Put
from zsvec.store.catalog.catalog import SLACK, Catalog, State, id_of
from zsvec.store.catalog.schema import (
    Followed,
    calibrated_revision,
    calibration_from,
    calibration_payload,
    category_from,
    expected,
    is_damaged,
    manifest_payload,
    writers,
)
from zsvec.store.names import record_id
from zsvec.types import Category

STEP = 1_000
"""Microseconds between the ``rev`` of successive commits in one write.

Every look reads again the commits within `SLACK` of the newest ``rev``. Wide steps limit the number of these commits.
"""

_LOOKS = 8  # attempts while the outcome is unknown
_HEALS = (4, 7)  # attempts after which to heal replicas, since they may differ permanently


def commit(
    catalog: Catalog,
    categories: Sequence[Category],
    before: State,
    change: str | None = None,
    followed: Mapping[str, Followed] = MappingProxyType({}),
    made_from: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Mapping[str, Any]]:
    """Commits categories by compare-and-set of the manifests.

    Args:
        catalog: The catalog.
        categories: Categories with their next version. The commit chooses each ``rev``.
        before: State of the catalog from which the categories were planned.
        change: Id of the change record, if a history is kept.
        followed: States of a followed store that categories get, by name.
        made_from: States of another namespace that categories now have with other encoders, by name.

    Returns:
        The manifests of the commits that won, by category, as read after the commit. Another writer may have replaced a
        manifest since. Every other commit is lost, because another writer changed the category first.

    Raises:
        StoreUnavailableError: The outcome of a commit is unknown.
        StoreError: The store was dropped, or switched to other encoders.
    """
    writer, rev = uuid.uuid4().hex, catalog.next_rev()
    stamped = [replace(category, rev=rev + i * STEP) for i, category in enumerate(categories)]
    payloads = [
        manifest_payload(
            one,
            before.store,
            writer,
            before.manifests.get(one.name),
            change,
            followed.get(one.name),
            made_from.get(one.name),
        )
        for one in stamped
    ]
    return commit_manifests(catalog, payloads, before)


def commit_manifests(
    catalog: Catalog, payloads: Sequence[Mapping[str, Any]], before: State
) -> dict[str, Mapping[str, Any]]:
    """Commits manifests; returns and raises as `commit`. The first token in ``writers`` must identify this commit."""
    puts = {payload["category"]: _put(payload, before) for payload in payloads}
    had = {name: category_from(before.manifests[name]).write_ids for name in puts if name in before.manifests}
    won: dict[str, Mapping[str, Any]] = {}
    for attempt in attempts(catalog, puts):
        with attempt:
            catalog.put(list(puts.values()))
            now = catalog.state(puts)
            _check_same(catalog, before.store, now.store)
            if now.closed and not catalog.is_current():  # the commit may be too late for the switch in progress
                catalog.check_current()
                raise UnknownError
            for name, put in list(puts.items()):
                manifest = now.manifests.get(name)
                outcome = _outcome(put, manifest, set(put.payload["writes"]).difference(had.get(name, ())))
                if outcome != "unknown":
                    del puts[name]
                if outcome == "won" and manifest:
                    won[name] = manifest
            if puts:
                catalog.counts["unknown_outcomes"] += len(puts)
                if attempt.retry_state.attempt_number in _HEALS:
                    catalog.heal(puts)
                raise UnknownError
    return won


def publish(
    catalog: Catalog, manifests: Mapping[str, Mapping[str, Any]], unchanged: Container[str] = ()
) -> Mapping[str, Mapping[str, Any]]:
    """Makes sure that every reader sees these commits when it next reads the catalog.

    A reader skips commits whose ``rev`` is more than `SLACK` below the largest ``rev`` that it has seen. So a manifest
    with a ``rev`` more than `SLACK` below the newest gets a new ``rev``, even if another writer committed the manifest.
    The same holds for ``changed``, by which a calibration is known to be older than a change: another writer that did
    not change the category may have given the commit a new ``rev`` alone.

    Args:
        catalog: The catalog.
        manifests: Manifests by category, read after the commit.
        unchanged: Categories whose references, texts and metadata this write did not change. Their manifests keep the
            value of ``changed``.

    Returns:
        The manifests as last read, by category. A manifest that the last read omits, or that is damaged, is missing.
    """
    while not catalog.exclusive:
        manifests = {name: manifest for name, manifest in manifests.items() if not is_damaged(manifest)}
        if not manifests:
            break
        newest = catalog.newest()
        late = [
            manifest
            for name, manifest in manifests.items()
            if manifest["rev"] < newest - SLACK
            or (name not in unchanged and category_from(manifest).rev < newest - SLACK)
        ]
        if not late:
            break
        catalog.counts["second_stamps"] += len(late)
        catalog.put([_restamped(m, newest + 1 + i, unchanged) for i, m in enumerate(late)])
        manifests = catalog.state(manifests).manifests
    return manifests


def commit_calibration(catalog: Catalog, calibration: Mapping[str, Any]) -> bool:
    """Commits a calibration by compare-and-set, unless the stored one was made from a later state of the store.

    Returns:
        False if another writer committed a calibration at the same time; else True, even if the stored one stays.

    Raises:
        StoreUnavailableError: The outcome is unknown.
        StoreError: The store was dropped.
    """
    store, before = catalog.calibration_record()
    if before is None:
        catalog.drop_damaged_calibration()
    kept = calibrated_revision(calibration_from(before)) if before else None
    if kept is not None and calibration and kept > calibration.get("revision", kept):
        return True
    writer = uuid.uuid4().hex
    payload = calibration_payload(calibration, store, writer, catalog.next_rev(), before)
    put = Put(record_id("calibration"), payload, expected(before) if before else None)
    outcome = "unknown"
    for attempt in attempts(catalog, ["the calibration"]):
        with attempt:
            catalog.put([put])
            now, after = catalog.calibration_record()
            _check_same(catalog, store, now)
            outcome = _outcome(put, after, ())
            if outcome == "unknown":
                catalog.counts["unknown_outcomes"] += 1
                raise UnknownError
    return outcome == "won"


def _put(payload: Mapping[str, Any], before: State) -> Put:
    name = payload["category"]
    there = before.manifests.get(name) or before.foreign.get(name)
    return Put(id_of(payload), payload, expected(there) if there else None)


def _restamped(manifest: Mapping[str, Any], rev: int, unchanged: Container[str]) -> Put:
    changed = {} if manifest["category"] in unchanged else {"changed": rev}
    payload = {**manifest, "version": manifest["version"] + 1, "rev": rev, **changed}
    return Put(id_of(manifest), payload, expected(manifest))


def attempts(catalog: Catalog, names: Collection[str]) -> Retrying:
    """Returns an iterator of attempts, which repeats after `UnknownError` and finally raises StoreUnavailableError."""

    def give_up(_: object) -> None:
        raise StoreUnavailableError(
            f"{catalog.location} does not say whether {', '.join(map(repr, names))} was committed: look with "
            "`zsvec list` when the server is well, and do it again if it is not there"
        )

    return Retrying(
        stop=stop_after_attempt(_LOOKS),
        wait=wait_random_exponential(multiplier=0.05, max=2.0),
        retry=retry_if_exception_type(UnknownError),
        retry_error_callback=give_up,
    )


class UnknownError(Exception):
    """The catalog shows neither that a commit won nor that it lost."""


def _outcome(
    put: Put, found: Mapping[str, Any] | None, write_ids: Collection[str]
) -> Literal["won", "lost", "unknown"]:
    if found is None:
        return "unknown"
    # After many later writers, the manifest still has the write id, but no longer the token.
    if put.payload["writers"][0] in writers(found) or set(write_ids) & set(found.get("writes", ())):
        return "won"
    return "lost" if found["version"] >= put.payload["version"] else "unknown"


def _check_same(catalog: Catalog, store: str, now: str) -> None:
    if store != now:
        raise StoreError(f"{catalog.location} was dropped while it was written: do it again, in the new one")
