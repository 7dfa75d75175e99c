"""References to write, and small copies of images, made of words alone: no model, no client."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zsvec.store import Cursor, Reference, Store, Write
from zsvec.store.backends.base import Where
from zsvec.types import Category, Fingerprint, Modality, SmallImage

Key = tuple[str, str, str]

ADDED = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)

FINGERPRINTS: Mapping[str, Fingerprint] = {
    "clip": Fingerprint(model="test/clip", revision="0123abc", dim=16, preprocessing="resize 224"),
    "dino": Fingerprint(model="test/dino", revision=None, dim=8, preprocessing="resize 518"),
}


def content_hash(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def unit_vector(dim: int, content: str) -> NDArray[np.float32]:
    """The same random direction for the same content."""
    seed = int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


def reference(encoder: str, modality: Modality, content: str) -> Reference:
    vector = unit_vector(FINGERPRINTS[encoder].dim, f"{encoder} {modality} {content}")
    return Reference(encoder, modality, content_hash(content), content, vector)


def references(texts: Iterable[str] = (), images: Iterable[str] = ()) -> list[Reference]:
    """Texts for the encoder that reads, images for both."""
    return [
        *(reference("clip", "text", text) for text in texts),
        *(reference(encoder, "image", image) for encoder in FINGERPRINTS for image in images),
    ]


def write_of(name: str, images: Iterable[str] = (), texts: Sequence[str] = (), **changes: Any) -> Write:
    return Write(name=name, references=references(texts, images), texts=texts, **changes)


@cache
def jpeg(content: str) -> bytes:
    seed = int.from_bytes(hashlib.sha256(content.encode()).digest()[:4])
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def small(content: str) -> SmallImage:
    size = {"width": 800, "height": 600}
    return SmallImage(hash=content_hash(content), content=jpeg(content), source=content, added=ADDED, **size)


def pictured(name: str, images: Iterable[str] = (), texts: Sequence[str] = (), **changes: Any) -> Write:
    write = write_of(name, images, texts, **changes)
    with_copies = [replace(r, small=small(r.source)) if r.modality == "image" else r for r in write.references]
    return replace(write, references=with_copies)


def copies(store: Store) -> set[tuple[str, str, str]]:
    """Category, write id and hash of every small copy that there is, committed or not."""
    fields = ("category", "gen", "hash")
    pages = store._backend.scroll(store.collection("images"), Where(), fields=fields)
    return {(p["category"], p["gen"], p["hash"]) for page in pages for p in page.payloads}


def live_copies(store: Store) -> set[tuple[str, str, str]]:
    """Copies of committed images, one for each write."""
    found = set()
    for category in store.categories():
        for page in store.references("dino", category.write_ids, vectors=False):
            found |= {(p["category"], p["gen"], p["hash"]) for p in page.payloads}
    return found


def add(store: Store, name: str, images: Iterable[str] = (), texts: Sequence[str] = (), **changes: Any) -> None:
    store.write([write_of(name, images, texts, **changes)])


def commits(store: Store) -> list[Category]:
    """The last commit of each category that ever was."""
    return list(store.look(Cursor(), {}).categories)


def vectors(references: Iterable[Reference]) -> dict[Key, NDArray[np.float32]]:
    return {reference.key: reference.vector for reference in references}


def sources(store: Store, name: str) -> dict[str, list[str]]:
    """Sources of a category's references, read through the store: by expert, sorted."""
    found: dict[str, list[str]] = {}
    for stored in store.stored(name):
        found.setdefault(f"{stored.encoder}:{stored.modality}", []).append(stored.source)
    return {expert: sorted(origins) for expert, origins in sorted(found.items())}
