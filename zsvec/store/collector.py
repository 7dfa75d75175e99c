"""The collector of garbage: it deletes the references that no manifest names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from zsvec.store.catalog import Catalog
from zsvec.store.references import ReferenceCollections
from zsvec.store.schema import write_age
from zsvec.types import Category

GRACE = 3600.0  # seconds after which references that no manifest names belong to no living writer


def collect(
    catalog: Catalog,
    references: ReferenceCollections,
    *,
    among: Mapping[str, Category] | None = None,
    grace: float | None = None,
) -> int:
    """Delete the references that no manifest names and whose writer is gone.

    Args:
        catalog: Its manifests name the writes that are live.
        references: What to delete from.
        among: Only references of these categories, which have just been committed; by default all.
        grace: Age of a write, in seconds, from which its writer is gone; by default `GRACE`, or 0 where no
            other process can write.

    Returns:
        How many references were deleted.
    """
    if grace is None:
        grace = 0.0 if catalog.exclusive else GRACE
    live = catalog.categories() if among is None else among.values()
    match = {} if among is None else {"category": list(among)}
    unnamed = references.unnamed(catalog.encoders(), match, [w for category in live for w in category.write_ids])
    old = Counter((name, write_id) for name, write_id in unnamed if write_age(write_id) >= grace)
    if not old:
        return 0
    # Read after the references were found: a commit in between names its write by now.
    latest = catalog.latest({name for name, _ in old}).values()
    named = {write_id for category in latest for write_id in category.write_ids}
    dead = {write_id: count for (_, write_id), count in old.items() if write_id not in named}
    if dead:
        references.delete(catalog.encoders(), list(dead))
    return sum(dead.values())
