"""Images → vectors: decoded, preprocessed and encoded, with an error for each image that cannot be read."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from zsvec.encoders import EncoderSet
from zsvec.errors import ImageError, InvalidInputError, shown
from zsvec.inputs.categories import checked_name, is_several
from zsvec.inputs.decoding import opened
from zsvec.inputs.images import ImageInput, ImageLimits, read_held, source_of, taken
from zsvec.inputs.memory import DEFAULT
from zsvec.inputs.small import small_copy
from zsvec.streams.flow import Flow
from zsvec.streams.stream import ahead, prefetch

Vectors: TypeAlias = Mapping[str, NDArray[np.float32]]
"""By encoder, float32 ``(n_images, dim)``, rows of unit norm; the same images in each."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """An image as the encoders see it.

    Attributes:
        source: Where the image came from.
        vectors: By encoder, float32 ``(dim,)``, unit norm; empty if the image could not be read.
        error: Why the image could not be read, or ``None``.
    """

    source: str
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image ready for the encoders, or why it is not.

    Attributes:
        source: Where the image came from.
        inputs: What `EncoderSet.encode_images` takes.
        error: Why the image cannot be read, or ``None``.
        hash: Content hash; empty if not asked for.
        size: Width and height, upright, in pixels; (0, 0) if no hash was asked for.
        small: A small copy, a JPEG; ``None`` if not asked for.
    """

    source: str
    inputs: Any = None
    error: ImageError | None = None
    hash: str = ""
    size: tuple[int, int] = (0, 0)
    small: bytes | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What else of an image is wanted than its vectors.

    Attributes:
        hash: Whether its content hash.
        small: Whether a small copy.
    """

    hash: bool = False
    small: bool = False


_NOTHING_ELSE = Wanted()


def _unmeasured(stage: str) -> AbstractContextManager[None]:
    return nullcontext()


class Embedder:
    """Embeds images. The encoders are loaded when they are first needed.

    Args:
        load: Returns the encoders; called once.
        max_pixels: Largest image that is decoded; see `zsvec.inputs.images.load_image`.
        image_memory: Likewise.
        check: Raises an error in a process forked from that which made the embedder.
    """

    def __init__(
        self,
        load: Callable[[], EncoderSet],
        *,
        max_pixels: int | None = None,
        image_memory: int = DEFAULT,
        check: Callable[[], None],
    ) -> None:
        self._load = load
        self._check = check
        self._pid = os.getpid()
        self._max_pixels, self._image_memory = max_pixels, image_memory
        self._lock = threading.RLock()
        self._side: int | None = None
        self.loaded: EncoderSet | None = None

    @property
    def encoders(self) -> EncoderSet:
        """The encoders.

        Raises:
            StoreError: This process was forked since.
            WeightsUnavailableError: Weights can be loaded neither from disk nor from a hub.
        """
        if os.getpid() != self._pid:
            self._check()  # before the lock and the encoders: their threads are not in a fork, and would be waited for
        with self._lock:
            if self.loaded is None:
                loaded = self._load()
                self._side, self.loaded = loaded.side, loaded
            return self.loaded

    def labelled(
        self, labelled: object, batch_size: int, check: Callable[[Sequence[str]], None]
    ) -> tuple[list[str], Vectors]:
        """The categories of labelled images, as they are stored, and the vectors of the images.

        Args:
            labelled: Pairs of an image and the name of its category.
            batch_size: Images that an encoder takes at once.
            check: Called with the categories before an image is read; raises where one is not of the store.

        Raises:
            InvalidInputError: They are no such pairs, or there is none; or as `check`.
            ImageError: An image cannot be read.
        """
        names, images = _labelled(labelled)
        check(names)
        parts: dict[str, list[NDArray[np.float32]]] = {}
        flow = Flow()
        with closing(self.batches(images, batch_size, flow)) as batches, flow:
            for batch, vectors in batches:
                for error in (image.error for image in batch if image.error is not None):
                    raise error
                for name, rows in vectors.items():
                    parts.setdefault(name, []).append(rows)
        return names, {name: np.concatenate(rows) for name, rows in parts.items()}

    def prepare(
        self,
        image: ImageInput,
        wanted: Wanted = _NOTHING_ELSE,
        flow: Flow | None = None,
    ) -> PreparedImage:
        """Decode and preprocess one image.

        Args:
            image: A path, bytes, file, PIL image or array.
            wanted: What else of it is wanted.
            flow: Of the stream that it is of, if it is of one.
        """
        encoders = self.encoders
        stage = flow.stage if flow else _unmeasured
        try:
            with ExitStack() as memory:
                with stage("decode"):
                    limits: ImageLimits = {"max_pixels": self._max_pixels, "image_memory": self._image_memory}
                    loaded = [read_held(image, memory, side=self._side, hashed=wanted.hash, **limits)]
                    found: dict[str, Any] = {}
                    if wanted.hash:
                        found = {"hash": loaded[0].content_hash, "size": loaded[0].size}
                    if wanted.small:
                        found["small"] = small_copy(loaded[0].image)
                with stage("preprocess"):  # which forgets the image before its memory is given back
                    return PreparedImage(source_of(image), encoders.preprocess(loaded.pop().image), **found)
        except ImageError as exc:
            return PreparedImage(source_of(image), error=exc)

    def _encode(self, images: Sequence[PreparedImage], flow: Flow) -> Vectors:
        """Vectors of the images that can be read, in their order; empty if there is none."""
        readable = [image.inputs for image in images if image.error is None]
        if not readable:
            return {}
        with flow.encoding(len(readable)):
            return self.encoders.encode_images(readable)

    def batches(
        self,
        images: Iterable[ImageInput],
        batch_size: int,
        flow: Flow,
        *,
        max_wait: float | None = None,
        wanted: Wanted = _NOTHING_ELSE,
    ) -> Generator[tuple[list[PreparedImage], Vectors], None, None]:
        """Batches of images, and the vectors of those that can be read.

        Threads decode ahead of the encoders.

        Args:
            images: Iterated in a thread of its own.
            batch_size: Images that an encoder takes at once.
            flow: Shared by the stages of the stream.
            max_wait: Seconds, from its first image, after which an incomplete batch is passed on.
            wanted: What else of the images is wanted.
        """
        encoded = self._encoded(images, batch_size, flow, max_wait, wanted)
        return ahead(encoded, flow, "encode") if _work_ahead(self.encoders) else encoded

    def _encoded(
        self, images: Iterable[ImageInput], batch_size: int, flow: Flow, max_wait: float | None, wanted: Wanted
    ) -> Generator[tuple[list[PreparedImage], Vectors], None, None]:
        def take(image: ImageInput) -> ImageInput | PreparedImage:
            if opened(image):
                return prepare(image)
            return taken(image, max_pixels=self._max_pixels, image_memory=self._image_memory)

        def prepare(image: ImageInput | PreparedImage) -> PreparedImage:
            return image if isinstance(image, PreparedImage) else self.prepare(image, wanted, flow)

        taking = map(take, images)  # in the thread of the source, before that goes on
        for batch in prefetch(prepare, taking, batch_size, max_wait=max_wait, flow=flow):
            yield batch, self._encode(batch, flow)

    def stream(self, images: Iterable[ImageInput], batch_size: int) -> Iterator[Embedding]:
        """Vectors of images, in order and in bounded memory.

        Yields:
            One embedding for each image, with its ``error`` if it cannot be read.
        """
        flow = Flow()
        with closing(self.batches(images, batch_size, flow)) as batches, flow:
            for batch, vectors in batches:
                rows = iter(range(len(batch)))
                for image in batch:
                    if image.error is not None:
                        yield Embedding(image.source, error=str(image.error))
                    else:
                        row = next(rows)
                        yield Embedding(image.source, {name: matrix[row] for name, matrix in vectors.items()})


def _labelled(labelled: object) -> tuple[list[str], list[ImageInput]]:
    pairs = list(labelled) if is_several(labelled) else []
    if not pairs or any(not isinstance(pair, tuple | list) or len(pair) != 2 for pair in pairs):
        raise InvalidInputError(
            f"labelled must be pairs of an image and the name of its category, at least one. "
            f"Got {shown(labelled)} instead"
        )
    return [checked_name(name) for _, name in pairs], [image for image, _ in pairs]


def _work_ahead(encoders: EncoderSet) -> bool:
    """Whether encoders work ahead of the search.

    Not on a CPU: the search would compete with the network for cores. Two cores classified an eighth fewer images.
    """
    return encoders.device != "cpu"
