"""Embeds images: decodes, preprocesses and encodes them, and reports an error for each unreadable image."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsvec.encoders import EncoderSet
from zsvec.errors import ImageError, InvalidInputError, shown
from zsvec.inputs.categories import checked_name, is_several
from zsvec.inputs.decoding import opened
from zsvec.inputs.images import (
    ImageInput,
    ImageLimits,
    read_held,
    released,
    share,
    shared_by,
    source_of,
    taken,
)
from zsvec.inputs.small import small_copy
from zsvec.streams.flow import Flow
from zsvec.streams.stream import ahead, prefetch

Vectors: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Vectors of images by encoder: float32 ``(n_images, dim)``, with rows of unit norm. Row i of each array is image i."""

ImageVectors: TypeAlias = Mapping[str, NDArray[np.float32]]
"""Vector of one image by encoder: float32 ``(dim,)`` of unit norm."""

RECENT_IMAGES = 1000
"""Number of classified images whose vectors stay in memory; a few kilobytes each."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """Vectors of one image.

    Attributes:
        source: Path or name of the image.
        vectors: Vector by encoder, float32 ``(dim,)`` of unit norm; empty for an unreadable image.
        error: Reason why the image is unreadable, or ``None``.
    """

    source: str
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image that is decoded and preprocessed for the encoders, or the error of an unreadable image.

    Attributes:
        source: Path or name of the image.
        inputs: The preprocessed image, as `EncoderSet.encode_images` takes it.
        error: Reason why the image is unreadable, or ``None``.
        hash: Content hash; empty unless requested.
        size: Width and height of the upright image in pixels.
        small: JPEG of a small copy (`zsvec.inputs.small`); ``None`` unless requested.
        cut_from: Content hash of the image that a region was cut from; empty for another image, or unless requested.
    """

    source: str
    inputs: Any = None
    error: ImageError | None = None
    hash: str = ""
    size: tuple[int, int] = (0, 0)
    small: bytes | None = None
    cut_from: str = ""


def stored_source(source: str) -> str:
    """Returns a source as valid Unicode. Bytes of a path that are not valid Unicode are escaped with backslashes."""
    return source.encode(errors="backslashreplace").decode()


class RecentVectors:
    """The vectors of the last `RECENT_IMAGES` classified images, by content hash. Thread-safe."""

    def __init__(self) -> None:
        self._images: OrderedDict[str, tuple[ImageVectors, str]] = OrderedDict()  # the oldest first
        self._lock = threading.Lock()

    def add(self, images: Sequence[PreparedImage], vectors: Vectors) -> None:
        """Adds images, which must have hashes; `vectors` has a row for each of `images`."""
        with self._lock:
            for i, image in enumerate(images):
                self._images[image.hash] = {name: rows[i].copy() for name, rows in vectors.items()}, image.cut_from
                self._images.move_to_end(image.hash)
            while len(self._images) > RECENT_IMAGES:
                self._images.popitem(last=False)

    def find(self, hashes: Iterable[str]) -> dict[str, ImageVectors]:
        """Returns the vectors of the images that are among the recent ones, by content hash."""
        with self._lock:
            return {digest: self._images[digest][0] for digest in hashes if digest in self._images}

    def forget(self, content_hash: str) -> None:
        """Drops an image and the regions that were cut from it, if they are among the recent ones."""
        with self._lock:
            for digest in [one for one, (_, whole) in self._images.items() if content_hash in (one, whole)]:
                del self._images[digest]


class Embedder:
    """Embeds images. `load` loads the encoders on first use. `check` raises an error in a forked process.

    Attributes:
        limits: Limits of the images.
        loaded: The encoders, once they are loaded.
        recent: Vectors of the images that were classified last.
    """

    def __init__(
        self, load: Callable[[], EncoderSet], limits: ImageLimits, check: Callable[[], None] = lambda: None
    ) -> None:
        self._load = load
        self._check = check
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self.limits = limits
        self.loaded: EncoderSet | None = None
        self.recent = RecentVectors()

    @property
    def encoders(self) -> EncoderSet:
        """The encoders; raises StoreError in a forked process, and WeightsUnavailableError if weights are missing."""
        if os.getpid() != self._pid:
            self._check()  # before the lock and the encoders, whose threads do not exist in a fork
        with self._lock:
            if self.loaded is None:
                self.loaded = self._load()
            return self.loaded

    def labelled(
        self, labelled: object, batch_size: int, check: Callable[[Sequence[str]], None]
    ) -> tuple[list[str], Vectors]:
        """Embeds images that are given as pairs of image and category; returns the categories and the vectors.

        Raises:
            InvalidInputError: The value is not a list of such pairs, or is empty.
            Exception: `check` rejects the categories. The images are not embedded then.
            ImageError: An image is unreadable.
        """
        names, images = _pairs(labelled)
        check(names)
        parts: dict[str, list[NDArray[np.float32]]] = {}
        flow = Flow()
        with closing(self.batches(images, batch_size, flow, hashed=False)) as batches, flow:
            for batch, vectors in batches:
                for error in (image.error for image in batch if image.error is not None):
                    raise error
                for name, rows in vectors.items():
                    parts.setdefault(name, []).append(rows)
        return names, {name: np.concatenate(rows) for name, rows in parts.items()}

    def prepare(
        self, image: ImageInput, flow: Flow | None = None, *, hashed: bool = True, small: bool = False
    ) -> PreparedImage:
        """Decodes and preprocesses one image; adds the content hash and a small copy if requested."""
        encoders = self.encoders
        flow = flow or Flow()
        source = source_of(image)
        try:
            with ExitStack() as memory:
                with flow.stage("decode"):
                    loaded = [read_held(image, memory, side=encoders.side, hashed=hashed, **self.limits)]
                    prepared = PreparedImage(
                        source,
                        hash=loaded[0].content_hash,
                        size=loaded[0].size,
                        small=small_copy(loaded[0].image) if small else None,
                        cut_from=loaded[0].cut_from,
                    )
                with flow.stage("preprocess"):  # releases the image before its memory is given back
                    return with_changes(prepared, inputs=encoders.preprocess(loaded.pop().image))
        except ImageError as exc:
            return PreparedImage(source, error=exc)

    def encode(
        self,
        images: Sequence[PreparedImage],
        known: Mapping[str, ImageVectors],
    ) -> dict[str, ImageVectors]:
        """Returns the vectors of readable images by content hash. Images whose vectors are known are not embedded.

        Args:
            images: The images, which must have hashes.
            known: Known vectors by content hash. Vectors of recent images are known without them.
        """
        by_hash = {image.hash: image for image in images}
        found = self.recent.find(by_hash) | dict(known)
        if new := [image for digest, image in by_hash.items() if digest not in found]:
            vectors = self.encoders.encode_images([image.inputs for image in new])
            found |= {image.hash: {name: rows[i] for name, rows in vectors.items()} for i, image in enumerate(new)}
        return found

    def batches(
        self,
        images: Iterable[ImageInput],
        batch_size: int,
        flow: Flow,
        *,
        max_wait: float | None = None,
        hashed: bool = True,
        small: bool = False,
        names: Callable[[], Collection[str] | None] = lambda: None,
    ) -> Generator[tuple[list[PreparedImage], Vectors], None, None]:
        """Yields batches of images with the vectors of the readable images. Threads decode ahead of the encoders.

        An incomplete batch is yielded `max_wait` seconds after its first image. `names` returns the encoders for a
        batch; ``None`` stands for all.
        """

        def take(image: ImageInput) -> ImageInput | PreparedImage:
            return prepare(image) if opened(image) else taken(image, **self.limits)

        def prepare(image: ImageInput | PreparedImage) -> PreparedImage:
            if isinstance(image, PreparedImage):
                return image
            with released(image):
                return self.prepare(image, flow, hashed=hashed, small=small)

        def encoded() -> Generator[tuple[list[PreparedImage], Vectors], None, None]:
            own = map(take, share(images, **self.limits))  # in the source's thread, before the source advances
            for batch in prefetch(prepare, own, batch_size, max_wait=max_wait, flow=flow, lane=shared_by):
                inputs = [image.inputs for image in batch if image.error is None]
                vectors: Vectors = {}
                if inputs:
                    with flow.encoding(len(inputs)):
                        vectors = self.encoders.encode_images(inputs, names())
                yield batch, vectors

        return ahead(encoded(), flow, "encode") if _work_ahead(self.encoders) else encoded()

    def stream(self, images: Iterable[ImageInput], batch_size: int) -> Iterator[Embedding]:
        """Yields embeddings of images, as `zsvec.classifier.Classifier.embed_stream` does."""
        flow = Flow()
        with closing(self.batches(images, batch_size, flow, hashed=False)) as batches, flow:
            for batch, vectors in batches:
                rows = iter(range(len(batch)))
                for image in batch:
                    if image.error is not None:
                        yield Embedding(image.source, error=str(image.error))
                    else:
                        row = next(rows)
                        yield Embedding(image.source, {name: matrix[row] for name, matrix in vectors.items()})


def _pairs(labelled: object) -> tuple[list[str], list[ImageInput]]:
    pairs = list(labelled) if is_several(labelled) else []
    if not pairs or any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in pairs):
        raise InvalidInputError(
            f"labelled must be pairs of an image and the name of its category, at least one. "
            f"Got {shown(labelled)} instead"
        )
    return [checked_name(name) for _, name in pairs], [image for image, _ in pairs]


def _work_ahead(encoders: EncoderSet) -> bool:
    """Returns whether the encoders run in their own thread, one batch ahead of the search.

    On a CPU, the encoders and the search would compete for cores: with two cores, the throughput was 1/8 lower.
    """
    return encoders.device != "cpu"
