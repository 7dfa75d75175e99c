"""Reports on a store: size, missing references, unreadable records, and garbage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from zsvec.store.attached.collections import AttachedCollections
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.history import History
from zsvec.store.catalog.schema import (
    keeps_images,
    labels_from,
    measurement_from,
    search_params_from,
    settled_fractions,
    threshold_progress,
)
from zsvec.store.collections.references import ReferenceCollections
from zsvec.types import Attached, Category, Finding, contents, counted


def incomplete(catalog: Catalog, references: ReferenceCollections) -> list[str]:
    """See `zsvec.store.store.Store.incomplete`."""
    categories, _ = catalog.categories()
    return [category.name for category in categories if references.counts(category) != dict(category.references)]


def check_up(
    catalog: Catalog, references: ReferenceCollections, attached: Sequence[Attached], *, repair: bool
) -> Iterator[Finding]:
    """See `zsvec.store.store.Store.check_up`."""
    encoders = list(catalog.encoders())
    collections = [references.collection(encoder) for encoder in encoders]
    yield from catalog.backend.check_up(catalog.collection, collections, repair=repair)
    for one in attached:
        said = (
            f"{one.attachment.collection}: {one.problem or f'{one.points:,} points in {one.categories:,} categories'}"
        )
        yield Finding("attached", one.problem is None, said, "restore it, or run `zsvec detach`" if one.problem else "")
    if damaged := incomplete(catalog, references):
        names = ", ".join(map(repr, damaged[:5]))
        yield Finding(
            "references", False, f"those of {names} are not all there", "remove these categories and add them again"
        )
    categories, unreadable = catalog.categories()
    if unreadable:
        names = ", ".join(map(repr, unreadable[:5]))
        advice = "upgrade zsvec, or restore the store from a copy"
        yield Finding("manifests", False, f"those of {names} cannot be read", advice)
    if records := catalog.unreadable():
        said = f"{counted(len(records), 'record')} of the catalog cannot be read: {', '.join(records[:5])}"
        advice = "restore the store from a copy, or go on without the changes that these tell of"
        yield Finding("records", False, said, advice)
    kept = {w for record in History(catalog).records.values() for old in record["replaced"].values() for w in old}
    kept -= {write_id for category in categories for write_id in category.write_ids}
    if garbage := references.garbage(categories, encoders, kept):
        said = f"leftovers of {contents(garbage)} that no category uses"
        yield Finding("garbage", True, said, "run `zsvec gc`, if no writer is at work")


def info(
    namespace: str,
    catalog: Catalog,
    references: ReferenceCollections,
    categories: Sequence[Category],
    attached: AttachedCollections,
) -> dict[str, Any]:
    """See `zsvec.store.store.Store.info`. `categories` include the points of attached collections."""
    _, unreadable = catalog.categories()
    counts: Counter[str] = Counter()
    for category in categories:
        counts.update(category.references)
    encoders = catalog.encoders()
    names = [catalog.collection, *map(references.collection, encoders)] if catalog.store() else []
    if keeps_images(catalog.store()):
        names.append(references.images.name)
    progress, settled = threshold_progress(catalog.calibration()), settled_fractions(catalog.calibration())
    placements = {name: asdict(placement) for name in names if (placement := catalog.backend.placement(name))}
    return {
        "store": catalog.backend.location,
        "namespace": namespace,
        **catalog.backend.versions(),
        "categories": len(categories),
        "unreadable": unreadable,
        "references": dict(counts),
        "profile": catalog.profile(),
        "encoders": {name: str(fingerprint) for name, fingerprint in encoders.items()},
        "labels": labels_from(catalog.store()),
        "calibration": _calibration_state(catalog, attached.current().digest),
        "threshold_progress": progress and asdict(progress),
        **({"cascade": settled} if settled else {}),
        **_search(catalog),
        **({"collections": placements} if placements else {}),
        **({"attached": [one.to_dict() for one in states]} if (states := attached.states()) else {}),
    }


def _calibration_state(catalog: Catalog, attached: str) -> str:
    """Returns `Catalog.calibration_state`, or ``stale`` if the points of attached collections are others now."""
    state = catalog.calibration_state()
    if state == "current" and (catalog.calibration() or {}).get("attached", "") != attached:
        return "stale"
    return state


def _search(catalog: Catalog) -> dict[str, Any]:
    """Returns how a server searches, and the recall at the last measurement; empty for exact search."""
    store = catalog.store()
    params, measurement = search_params_from(store), measurement_from(store)
    if params.exact:
        return {}
    row = measurement.of(params) if measurement else None
    found: dict[str, Any] = {"approximate": True, **asdict(params)}
    if measurement and row:
        found |= {"recall": row.recall, "same_label": row.same_label, "k": measurement.k}
        found |= {"measured": measurement.measured.isoformat()}
    return {"search": found}
