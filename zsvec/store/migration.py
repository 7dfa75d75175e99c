"""From schema 1 to schema 2: by the first write, while processes of the old version may be at work.

The record of the store comes first: from then on the old version refuses to begin a write, and this one goes on where a
migration was killed. A record is added that stops every old reader. Then each record becomes one of schema 2 in its
place, by compare-and-set, with a version that no old writer expects and without a key that each of them needs: an old
writer that had begun fails instead of planning on it. What it commits before that, in its old form, is read as well,
and turned by the migration or the next write.
"""

from __future__ import annotations

import uuid
from collections import defaultdict

from zsvec.store.backends.base import Put
from zsvec.store.catalog.catalog import Catalog, id_of
from zsvec.store.catalog.schema import (
    SCHEMA,
    category_from,
    expected,
    intent_payload,
    migrated_calibration,
    migrated_manifest,
    record_id,
    stopper_payload,
    write_time,
)
from zsvec.store.collections.references import ReferenceCollections


def migrate(catalog: Catalog, references: ReferenceCollections) -> None:
    """Bring a store to schema 2, unless it is."""
    store = catalog.store()
    if store is None or (store["schema"] == SCHEMA and not store.get("migrating")):
        return
    if store["schema"] != SCHEMA:
        new = {**store, "schema": SCHEMA, "version": store["version"] + 1, "id": uuid.uuid4().hex, "migrating": True}
        catalog.put([Put(record_id("store"), new, expected(store))])
        store = catalog.store() or new  # of whoever was first
    catalog.put([Put(record_id("moved"), stopper_payload(catalog.next_rev()))])
    while old := _of_schema_1(catalog, store["id"]):
        catalog.put(old)
    catalog.put(_intents(catalog, references, store["id"]))
    catalog.put(
        [Put(record_id("store"), {**store, "version": store["version"] + 1, "migrating": False}, expected(store))]
    )


def _of_schema_1(catalog: Catalog, store: str) -> list[Put]:
    """What turns the records of schema 1 that are there."""
    puts = [
        Put(id_of(record), migrated_manifest(record, store), expected(record))
        for record in catalog.manifests()
        if record["kind"] == "category"
    ]
    _, calibration = catalog.calibration_record()
    if calibration and "store" not in calibration:
        puts.append(Put(record_id("calibration"), migrated_calibration(calibration, store), expected(calibration)))
    return puts


def _intents(catalog: Catalog, references: ReferenceCollections, store: str) -> list[Put]:
    """Intents of the writers of schema 1 that died before the first commit of a category; in a folder, of any commit.

    From now on, references that have neither a manifest nor an intent are a sign of damage.
    """
    live = {manifest["category"]: category_from(manifest).write_ids for manifest in catalog.manifests()}
    if catalog.exclusive:
        left = sorted({(name, w) for name, w in references.writes(catalog.encoders()) if w not in live.get(name, ())})
    else:
        left = sorted({(name, w) for name, w in references.writes(catalog.encoders()) if name not in live})
    by_writer: dict[int, dict[str, str]] = defaultdict(dict)
    for name, write_id in left:
        by_writer[sum(name in writes for writes in by_writer.values())][name] = write_id
    return [
        Put(place, intent_payload(place, store, min(map(write_time, writes.values())), writes, {}))
        for number, writes in by_writer.items()
        for place in [record_id("migration", str(number))]
    ]
