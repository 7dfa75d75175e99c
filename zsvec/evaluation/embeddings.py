"""Vectors of images, kept in a folder, so that an interrupted evaluation continues."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from zsvec.classifier import Classifier
from zsvec.errors import ImageError
from zsvec.inputs.files import inside, open_regular, replacing
from zsvec.inputs.images import ImageInput, content_hash, source_of

Vectors = Mapping[str, NDArray[np.float32]]

_CHUNK = 64  # images that are embedded at once, and again after an interruption


class Embeddings:
    """A folder with a file of vectors for each image, by its content and the fingerprints of the encoders.

    Args:
        folder: Made when the first vectors are kept.
        classifier: Whose encoders embed new images.
    """

    def __init__(self, folder: Path, classifier: Classifier) -> None:
        fingerprints = classifier.encoders.fingerprints
        self._dims = {name: fingerprint.dim for name, fingerprint in fingerprints.items()}
        prints = sorted((name, str(fingerprint)) for name, fingerprint in fingerprints.items())
        own = folder / hashlib.sha256(repr(prints).encode()).hexdigest()[:16]
        self._folder = inside(folder.parent, own)
        self._classifier = classifier

    def of(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Callable[[str, str], None],
        track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> tuple[list[int], dict[str, NDArray[np.float32]]]:
        """Returns vectors of images, from the folder or from the encoders.

        Args:
            images: Images to embed.
            on_error: Called with source and reason for each that cannot be read.
            track: Wraps the images, to show progress.

        Returns:
            The positions of the images that could be read, and by encoder their vectors, float32 ``(n, dim)``.
        """
        positions: list[int] = []
        rows: list[Vectors] = []
        numbered = enumerate(track(images))
        while chunk := list(islice(numbered, _CHUNK)):
            found = self._of_chunk([image for _, image in chunk], on_error)
            positions += [position for (position, _), vectors in zip(chunk, found, strict=True) if vectors is not None]
            rows += [vectors for vectors in found if vectors is not None]
        return positions, {
            name: np.array([vectors[name] for vectors in rows], np.float32).reshape(-1, dim)
            for name, dim in self._dims.items()
        }

    def _of_chunk(self, images: Sequence[ImageInput], on_error: Callable[[str, str], None]) -> list[Vectors | None]:
        digests = [self._hash(image, on_error) for image in images]
        found = [self._read(digest) if digest else None for digest in digests]
        new = [(i, digest) for i, digest in enumerate(digests) if digest and found[i] is None]
        if not new:
            return found
        answers = self._classifier.embed_stream([images[i] for i, _ in new])
        for (i, digest), embedding in zip(new, answers, strict=True):
            if embedding.error is None:
                found[i] = embedding.vectors
                self._keep(digest, embedding.vectors)
            else:
                on_error(embedding.source, embedding.error)
        return found

    def _hash(self, image: ImageInput, on_error: Callable[[str, str], None]) -> str | None:
        try:
            return content_hash(image, **self._classifier.settings.image_limits())
        except ImageError as exc:
            on_error(source_of(image), str(exc))
            return None

    def _read(self, digest: str) -> Vectors | None:
        """Returns the vectors of an image; ``None`` if there are none, or they were damaged by a loss of power."""
        path = inside(self._folder, self._folder / f"{digest}.npz")
        try:
            with open_regular(path) as file, np.load(file) as kept:
                vectors = {name: kept[name] for name in kept.files}
        except (EOFError, LookupError, NotImplementedError, OSError, TypeError, ValueError, BadZipFile, zlib.error):
            return None
        expected = {name: (np.dtype(np.float32), (dim,)) for name, dim in self._dims.items()}
        return vectors if {name: (one.dtype, one.shape) for name, one in vectors.items()} == expected else None

    def _keep(self, digest: str, vectors: Vectors) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / f"{digest}.npz", durable=False) as file:
            np.savez(file, **vectors)  # type: ignore[arg-type]
