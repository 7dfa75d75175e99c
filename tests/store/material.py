"""References to write, made of words alone: no model, no client."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsvec.store import Cursor, Reference, Store, Write
from zsvec.types import Category, Fingerprint, Modality

Key = tuple[str, str, str]

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
    """What the builder would make: texts for the one encoder that reads, images for both."""
    return [
        *(reference("clip", "text", text) for text in texts),
        *(reference(encoder, "image", image) for encoder in FINGERPRINTS for image in images),
    ]


def write_of(name: str, images: Iterable[str] = (), texts: Sequence[str] = (), **changes: Any) -> Write:
    return Write(name=name, references=references(texts, images), texts=texts, **changes)


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
