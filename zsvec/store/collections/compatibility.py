"""Checks that the encoders match the store, and that the namespace has no foreign collection."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict

from zsvec.errors import EncoderMismatchError, InvalidInputError, StoreError, shown
from zsvec.store.backends.base import Where
from zsvec.store.catalog.catalog import Catalog
from zsvec.store.catalog.schema import keeps_images, labels_from
from zsvec.store.collections.references import ReferenceCollections
from zsvec.store.names import CATALOG, IMAGES, INBOX
from zsvec.types import Fingerprint, KeepImages, Labels

_RESERVED = {CATALOG, IMAGES, INBOX}
_PART = re.compile("[,;] ")
_ENCODER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


def bind(
    catalog: Catalog,
    references: ReferenceCollections,
    fingerprints: Mapping[str, Fingerprint],
    images: KeepImages | None,
    profile: str | None,
    labels: Labels | None,
) -> None:
    """As `zsvec.store.store.Store.bind`."""
    check_names(catalog, fingerprints)
    if catalog.store() is None:
        for collection in (catalog.collection, *map(references.collection, (*fingerprints, IMAGES))):
            _refuse_foreign(collection, catalog)
        catalog.create(fingerprints, images or "small", profile, labels or "one")
    check_fingerprints(catalog, fingerprints)
    for name, fingerprint in fingerprints.items():
        references.create(name, fingerprint.dim)
    if images == "small" or keeps_images(catalog.store()):
        references.images.create()
    if images == "small":  # last: a reader of this record expects the collection
        catalog.set_in_store(images="small")
    if labels is not None and labels != labels_from(catalog.store()):
        catalog.set_in_store(labels=labels)


def keep_no_images(catalog: Catalog, references: ReferenceCollections) -> None:
    """As `zsvec.store.store.Store.drop_images`."""
    catalog.set_in_store(images="none")
    drop_images(catalog, references)


def drop_images(catalog: Catalog, references: ReferenceCollections) -> None:
    """Deletes all small copies of images, unless the store keeps them.

    Another writer may have begun to keep copies again. So the record of the store is read again before the deletion.
    """
    if (store := catalog.store()) is None or keeps_images(store):
        return
    if catalog.exclusive:
        catalog.backend.remove(references.images.name)  # deleted points would stay in the files
        return
    write_ids = sorted({write_id for _, write_id in references.writes([IMAGES])})
    if not keeps_images(catalog.store()):
        references.delete([IMAGES], write_ids)


def check_names(catalog: Catalog, names: Iterable[str]) -> None:
    """As `zsvec.store.store.Store.check`."""
    used, stored = set(names), catalog.encoders()
    for name in sorted(used):
        # With two underscores, two pairs of namespace and encoder could share the name of a collection.
        if name in _RESERVED or "__" in name or not _ENCODER_NAME.fullmatch(name):
            raise InvalidInputError(
                f"an encoder cannot be named {shown(name)}: it is part of the name of a collection, so take letters, "
                f"digits, '-', '.' and single '_', and not {', '.join(map(repr, sorted(_RESERVED)))}"
            )
    if stored and set(stored) != used:
        raise EncoderMismatchError(
            f"{catalog.location} has vectors of the encoders {', '.join(sorted(stored))}, and "
            f"{', '.join(sorted(used))} are in use: {_way_out(catalog)}, another namespace, or another store"
        )


def check_fingerprints(catalog: Catalog, fingerprints: Mapping[str, Fingerprint]) -> None:
    """As `zsvec.store.store.Store.check_fingerprints`."""
    check_names(catalog, fingerprints)
    for name, stored in catalog.encoders().items():
        if stored != fingerprints[name]:
            raise EncoderMismatchError(
                f"the vectors of {name!r} in {catalog.location} were made by another encoder "
                f"({_differences(stored, fingerprints[name])}): {_way_out(catalog)}, or import again into another "
                "namespace"
            )


def _way_out(catalog: Catalog) -> str:
    if profile := catalog.profile():
        return f"choose the profile it was made with (profile {profile!r})"
    return "give the encoders it was made with (--encoders MODULE:OBJECT, or --profile FOLDER for exported ones)"


def _differences(stored: Fingerprint, used: Fingerprint) -> str:
    # Shows only the parts of a field that differ.
    found = []
    for name, value in asdict(stored).items():
        there, here = (_PART.split(str(one)) for one in (value, getattr(used, name)))
        if there != here:
            ours, theirs = ([part for part in a if part not in b] for a, b in ((there, here), (here, there)))
            if not (ours or theirs):  # the same parts in another order
                ours, theirs = there, here
            found.append(f"{name}: {', '.join(ours) or 'nothing'} there, {', '.join(theirs) or 'nothing'} in use")
    return "; ".join(found)


def _refuse_foreign(collection: str, catalog: Catalog) -> None:
    # If another writer has made the collection meanwhile, the record of the store exists: it is written before points.
    pages = catalog.backend.scroll(collection, Where(), fields=())
    if any(page.ids for page in pages) and catalog.store() is None:
        raise StoreError(
            f"{catalog.backend.location} already has a collection {collection!r} that zsvec did not make: "
            "choose another namespace"
        )
