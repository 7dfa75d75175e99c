"""Which images the inbox keeps: bounded in number and age, no two nearly alike, whoever else writes.

Whoever has written looks at all that is there, and deletes by one rule (`surplus`) what is too much. Of two processes
that write at once, the one that looks last sees both. So the bounds hold when all are done; an image may be lost where
two delete at once, and never a reference.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from zsvec.errors import ZSVecError
from zsvec.ingest.embedding import PreparedImage, Vectors
from zsvec.ingest.validation import checked_keep
from zsvec.method.quality.unlabelled import ALIKE, distinct, uncertainty
from zsvec.settings.settings import Settings
from zsvec.store import InboxImage, Store, Why
from zsvec.streams.flow import Flow
from zsvec.types import Keep, Prediction

_log = logging.getLogger(__name__)

_EVICTED: Sequence[Why] = ("all", "uncertain", "asked")  # in this order
_AHEAD = 8  # batches of a stream that wait to be written
_PATIENCE = 5.0  # seconds that one request may take; the end of a stream waits for it


class Keeper:
    """Keeps images in the inbox of a store. Safe in several threads.

    Args:
        store: Bound to its encoders before the first write.
        settings: How many images may wait, and for how long; which of a stream are kept.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._size = settings.inbox_size
        self._age = timedelta(days=settings.inbox_days)
        self._default = settings.keep
        self._vectors: dict[str, Mapping[str, NDArray[np.float32]]] = {}
        self._lock = threading.RLock()

    def of_stream(self, keep: Keep | None, flow: Flow) -> StreamKeeper | None:
        """What keeps images of a stream; ``None``: none are.

        Args:
            keep: ``none``, ``uncertain`` or ``all``; by default the setting.
            flow: Of the stream.

        Raises:
            InvalidInputError: `keep` is none of these.
        """
        chosen = checked_keep(self._default if keep is None else keep)
        return None if chosen == "none" else StreamKeeper(self, self._store, chosen, flow)

    def present(self) -> list[InboxImage]:
        """The images that are there and not too old, with their vectors, those that were dismissed too.

        The vectors of an image never change, so each is read once.
        """
        with self._lock:
            oldest = datetime.now(UTC) - self._age
            found = [image for image in self._store.inbox.read() if image.added > oldest]
            if new := [image.hash for image in found if image.hash not in self._vectors]:
                read = self._store.inbox.read(new, vectors=True)
                self._vectors |= {image.hash: image.vectors for image in read}
            self._vectors = {image.hash: self._vectors[image.hash] for image in found if image.hash in self._vectors}
            return [replace(image, vectors=self._vectors[image.hash]) for image in found if image.hash in self._vectors]

    def ask(self, content_hash: str) -> bool:
        """Keep an image that waits as one that was asked for; whether it waits.

        Raises:
            StoreError: The inbox cannot be read or written.
        """
        with self._lock:
            found = [image for image in self.present() if image.hash == content_hash and not image.dismissed]
            for image in found:
                if image.why != "asked":
                    small = self._store.inbox.small(content_hash)
                    self._store.inbox.put([replace(image, why="asked", content=small.content if small else None)])
            return bool(found)

    def keep(self, images: Sequence[InboxImage]) -> set[str]:
        """Keep those of the images that equal none that is there, nor nearly; give the hashes of those that wait then.

        One that is asked for takes the place of those that are nearly equal and were not asked for.

        Args:
            images: With their vectors.

        Raises:
            StoreError: The inbox cannot be written.
        """
        with self._lock:
            there = self.present()
            known = {image.hash for image in there}
            fresh = list({image.hash: image for image in images if image.hash not in known}.values())
            asked = [image for image in fresh if image.why == "asked"]
            firm = [image for image in there if image.dismissed or image.why == "asked"]
            chosen = [*_new(asked, firm), *_new([image for image in fresh if image.why != "asked"], there)]
            if chosen:
                self._store.inbox.put(chosen)
                there = self._settled()
            return {image.hash for image in there if not image.dismissed} & {image.hash for image in images}

    def _settled(self) -> list[InboxImage]:
        """Delete what is too much; what is left."""
        there = self.present()
        gone = surplus(there, self._size)
        every = {image.hash for image in self._store.inbox.read()}
        self._store.inbox.delete(gone | every - {image.hash for image in there})  # too old, or without its vectors
        return [image for image in there if image.hash not in gone]


def surplus(images: Sequence[InboxImage], size: int) -> set[str]:
    """Hashes of the images that are too much.

    Of those that wait, these nearly equal one that was dismissed, was asked for, or has waited longer. Of the others,
    the oldest go beyond `size`: first those that were not uncertain, then those that were, and last those that were
    asked for. So images of streams never evict one that was asked for. Of those that were dismissed, the oldest go
    beyond as many.

    Args:
        images: With their vectors.
        size: How many may wait; and how many that were dismissed may stay.
    """
    dismissed = sorted((image for image in images if image.dismissed), key=_age)
    waiting = sorted(
        (image for image in images if not image.dismissed), key=lambda one: (one.why != "asked", _age(one))
    )
    kept = _new(waiting, dismissed)
    kept.sort(key=lambda image: (_EVICTED.index(image.why), _age(image)))
    stay = {image.hash for image in (*kept[-size:], *dismissed[-size:])}
    return {image.hash for image in images} - stay


def _new(images: Sequence[InboxImage], there: Sequence[InboxImage]) -> list[InboxImage]:
    """Those of the images that nearly equal none that is there, nor one before them."""
    return [images[row - len(there)] for row in distinct(matrices([*there, *images]), first=len(there))]


def _age(image: InboxImage) -> tuple[datetime, str]:
    return image.added, image.hash


def matrices(images: Sequence[InboxImage]) -> Vectors:
    """Vectors by encoder, float32 ``(n_images, dim)``."""
    names = images[0].vectors if images else ()
    return {name: np.stack([image.vectors[name] for image in images]) for name in names}


def inbox_image(
    image: PreparedImage, vectors: Mapping[str, NDArray[np.float32]], why: Why, added: datetime
) -> InboxImage:
    """An image that was read with its hash, as the inbox keeps it."""
    width, height = image.size
    source = image.source.encode(errors="backslashreplace").decode()  # a path may be any bytes
    return InboxImage(
        hash=image.hash,
        source=source,
        added=added,
        width=width,
        height=height,
        why=why,
        vectors=vectors,
        content=image.small,
    )


def is_a_reference(prediction: Prediction) -> bool:
    """Whether an image equals a reference, or nearly."""
    return prediction.distance is not None and prediction.distance <= 1 - ALIKE


class StreamKeeper:
    """Keeps images of a stream, in a thread of its own: the stream waits for nothing, and goes on whatever fails.

    Images are left out while more than a few batches wait to be written.

    Args:
        keeper: Writes them.
        store: Theirs.
        keep: ``uncertain`` or ``all``.
        flow: Of the stream, whose end waits until the last ones are written.
    """

    def __init__(self, keeper: Keeper, store: Store, keep: Keep, flow: Flow) -> None:
        self._keeper = keeper
        self._store = store
        self._why: Why = "all" if keep == "all" else "uncertain"
        self._flow = flow
        self._batches = flow.new_queue()
        self._started = False
        self._failed = False

    def offer(self, images: Sequence[PreparedImage], vectors: Vectors, predictions: Sequence[Prediction]) -> None:
        """Keep those of a batch that are wanted.

        Args:
            images: That could be read, with their hashes.
            vectors: Of them.
            predictions: Of them.
        """
        now = datetime.now(UTC)
        chosen = [
            inbox_image(image, {name: rows[i] for name, rows in vectors.items()}, why, now)
            for i, (image, prediction) in enumerate(zip(images, predictions, strict=True))
            if (why := self._reason(prediction)) and not is_a_reference(prediction)
        ]
        if chosen and self._batches.qsize() < _AHEAD:
            if not self._started:
                self._started = True
                self._flow.start(self._work, "zsvec-keep")
            self._batches.put(chosen)

    def _reason(self, prediction: Prediction) -> Why | None:
        if uncertainty(prediction):
            return "uncertain"
        return "all" if self._why == "all" else None

    def _work(self) -> None:
        while (chosen := self._batches.get()) is not None:
            try:
                with self._store.within(_PATIENCE):
                    self._keeper.keep(chosen)
                self._failed = False
            except ZSVecError as exc:
                if not self._failed:
                    _log.warning("images of the stream are not kept for labelling: %s", exc)
                self._failed = True
                if self._flow.stopped:
                    return
            except Exception:  # noqa: BLE001 - a service goes on for months after a defect, which the log has
                _log.exception("images of the stream are not kept for labelling")
