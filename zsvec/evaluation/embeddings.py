"""Vectors of test images, kept in a folder, so that an interrupted evaluation continues."""

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

_CHUNK = 64  # images that are embedded again after an interruption, at most


class Embeddings:
    """A folder of vectors by the content of images and the fingerprints of the encoders.

    Args:
        folder: Made when the first vectors are kept.
        classifier: Whose encoders embed new images.
    """

    def __init__(self, folder: Path, classifier: Classifier) -> None:
        encoders = classifier.store.encoders()
        prints = {name: str(fingerprint) for name, fingerprint in encoders.items()}
        self._dims = {name: fingerprint.dim for name, fingerprint in encoders.items()}
        own = folder / hashlib.sha256(repr(sorted(prints.items())).encode()).hexdigest()[:16]
        self._folder = inside(folder.parent, own)
        self._classifier = classifier
        self._embedded: dict[str, Mapping[str, NDArray[np.float32]]] = {}
        for chunk in sorted(self._folder.glob("*.npz")):
            inside(self._folder, chunk)
            try:
                self._embedded.update(self._read(chunk))
            except (EOFError, LookupError, NotImplementedError, OSError, TypeError, ValueError, BadZipFile, zlib.error):
                chunk.unlink()  # cut off by a loss of power: embedded again

    def of(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Callable[[str, str], None],
        track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> tuple[list[int], dict[str, NDArray[np.float32]]]:
        """Vectors of images, from the folder or from the encoders.

        Args:
            images: Images to embed.
            on_error: Called with source and reason for each that cannot be read.
            track: Wraps the images, to show progress.

        Returns:
            The positions of the images that could be read, and by encoder their vectors, float32 ``(n, dim)``.
        """
        positions: list[int] = []
        digests: list[str] = []
        numbered = enumerate(track(images))
        while chunk := list(islice(numbered, _CHUNK)):
            hashed = [(position, self._hash(image, on_error), image) for position, image in chunk]
            found = [(position, digest, image) for position, digest, image in hashed if digest]
            self._embed([(digest, image) for _, digest, image in found if digest not in self._embedded], on_error)
            for position, digest, _ in found:
                if digest in self._embedded:
                    positions.append(position)
                    digests.append(digest)
        encoders = self._classifier.store.encoders()
        return positions, {
            name: np.stack([self._embedded[digest][name] for digest in digests])
            if digests
            else np.empty((0, fingerprint.dim), np.float32)
            for name, fingerprint in encoders.items()
        }

    def _read(self, chunk: Path) -> Mapping[str, Mapping[str, NDArray[np.float32]]]:
        with open_regular(chunk) as file, np.load(file) as kept:
            columns = {name: kept[name] for name in kept.files}
        hashes = [str(digest) for digest in columns.pop("hashes")]
        shapes = {name: (np.dtype(np.float32), (len(hashes), dim)) for name, dim in self._dims.items()}
        if {name: (vectors.dtype, vectors.shape) for name, vectors in columns.items()} != shapes:
            raise ValueError(f"{chunk} has other vectors")
        return {digest: {name: columns[name][row] for name in columns} for row, digest in enumerate(hashes)}

    def _hash(self, image: ImageInput, on_error: Callable[[str, str], None]) -> str:
        try:
            return content_hash(image, **self._classifier.settings.image_limits())
        except ImageError as exc:
            on_error(source_of(image), str(exc))
            return ""

    def _embed(self, new: Sequence[tuple[str, ImageInput]], on_error: Callable[[str, str], None]) -> None:
        if not new:
            return
        made = {}
        answers = self._classifier.embed_stream([image for _, image in new])
        for (digest, _), embedding in zip(new, answers, strict=True):
            if embedding.error is None:
                made[digest] = embedding.vectors
            else:
                on_error(embedding.source, embedding.error)
        if made:
            self._keep(made)

    def _keep(self, made: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> None:
        self._embedded.update(made)
        self._folder.mkdir(parents=True, exist_ok=True)
        columns: dict[str, Any] = {
            name: np.stack([vectors[name] for vectors in made.values()]) for name in next(iter(made.values()))
        }
        name = hashlib.sha256("".join(made).encode()).hexdigest()[:16]
        with replacing(self._folder / f"{name}.npz") as file:
            np.savez(file, hashes=np.array(list(made)), **columns)
