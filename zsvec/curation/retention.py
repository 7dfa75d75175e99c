"""Retention of the inbox: limits on number and age, and no near-duplicates, under concurrent writers.

After each write, the writer reads the whole inbox and deletes the images that `surplus` selects. Of two concurrent
writers, the one that reads last sees both writes. So the limits hold once both writers are done. Concurrent deletions
may lose an image of the inbox, but never a reference.
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
from zsvec.ingest.embedding import PreparedImage, Vectors, stored_source
from zsvec.ingest.validation import checked_keep
from zsvec.method.quality.inbox_ranking import ALIKE, distinct
from zsvec.settings.settings import Settings
from zsvec.store import InboxImage, Store, Why
from zsvec.streams.flow import Flow
from zsvec.types import Keep, Prediction

_log = logging.getLogger(__name__)

_EVICTED: Sequence[Why] = ("all", "uncertain", "asked")  # first to last
_MAX_WAITING_BATCHES = 8  # batches of one stream that may wait to be written
_REQUEST_TIMEOUT_S = 5.0  # for each request; when a stream ends, it waits for the last write


class Keeper:
    """Keeps images in the inbox of a store. Thread-safe."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._size = settings.inbox_size
        self._age = timedelta(days=settings.inbox_days)
        self._default = settings.keep
        self._vectors: dict[str, Mapping[str, NDArray[np.float32]]] = {}
        self._lock = threading.RLock()

    def of_stream(self, keep: Keep | None, flow: Flow) -> StreamKeeper | None:
        """Returns the keeper of a stream; ``None`` if none is needed. Raises InvalidInputError if `keep` is invalid."""
        chosen = checked_keep(self._default if keep is None else keep)
        return None if chosen == "none" else StreamKeeper(self, self._store, chosen, flow)

    def present(self) -> list[InboxImage]:
        """Returns the unexpired images with their vectors, dismissed ones included, without labelled ones."""
        return [image for image in self._read()[0] if image.state != "labelled"]

    def _read(self) -> tuple[list[InboxImage], set[str]]:
        """Returns the images of `present` and labelled ones, and the hashes of images that are expired or lack vectors.

        The vectors of an image never change, so they are read once.
        """
        with self._lock:
            oldest = datetime.now(UTC) - self._age
            every = self._store.inbox.read(labelled=True)
            found = [image for image in every if image.added > oldest]
            if new := [image.hash for image in found if image.hash not in self._vectors]:
                read = self._store.inbox.read(new, vectors=True, labelled=True)
                self._vectors |= {image.hash: image.vectors for image in read}
            self._vectors = {image.hash: self._vectors[image.hash] for image in found if image.hash in self._vectors}
            there = [
                replace(image, vectors=self._vectors[image.hash]) for image in found if image.hash in self._vectors
            ]
            return there, {image.hash for image in every} - self._vectors.keys()

    def ask(self, content_hash: str) -> bool:
        """Marks an image of the inbox as kept on request. Returns False if no such image waits."""
        with self._lock:
            waits = any(image.hash == content_hash and image.state == "waiting" for image in self.present())
            if waits:
                self._store.inbox.ask(content_hash)
            return waits

    def keep(self, images: Sequence[InboxImage]) -> set[str]:
        """Keeps the images that are not near-duplicates, and returns the hashes of the given images that now wait.

        An image kept on request replaces near-duplicates from streams.
        """
        with self._lock:
            there = self.present()
            known = {image.hash for image in there}
            fresh = list({image.hash: image for image in images if image.hash not in known}.values())
            asked = [image for image in fresh if image.why == "asked"]
            firm = [image for image in there if image.state == "dismissed" or image.why == "asked"]
            chosen = [*_new(asked, firm), *_new([image for image in fresh if image.why != "asked"], there)]
            if chosen:
                self._store.inbox.put(chosen)
                there = self._settled()
            return {image.hash for image in there if image.state == "waiting"} & {image.hash for image in images}

    def _settled(self) -> list[InboxImage]:
        there, unusable = self._read()
        gone = surplus(there, self._size)
        self._store.inbox.delete(gone | unusable)
        left = [image for image in there if image.hash not in gone]
        self._store.inbox.settle(left)
        return left


def surplus(images: Sequence[InboxImage], size: int) -> set[str]:
    """Returns the hashes of the images to delete.

    A near-duplicate of a dismissed image is deleted. Of two waiting near-duplicates, the image kept on request stays;
    otherwise, the older image. If more than `size` images still wait, images with a confident prediction are deleted
    first, then uncertain images, and last images kept on request; of each kind, the oldest first. So images of streams
    never evict images kept on request. If more than `size` images are dismissed, the oldest of these are deleted; the
    same holds for labelled images, which are kept for an undo.
    """
    labelled, dismissed = (
        sorted((image for image in images if image.state == state), key=_age) for state in ("labelled", "dismissed")
    )
    waiting = sorted(
        (image for image in images if image.state == "waiting"), key=lambda one: (one.why != "asked", _age(one))
    )
    kept = _new(waiting, dismissed)
    kept.sort(key=lambda image: (_EVICTED.index(image.why), _age(image)))
    stay = {image.hash for image in (*kept[-size:], *dismissed[-size:], *labelled[-size:])}
    return {image.hash for image in images} - stay


def _new(images: Sequence[InboxImage], there: Sequence[InboxImage]) -> list[InboxImage]:
    """Returns the images that are near-duplicates neither of `there` nor of an earlier image."""
    return [images[row - len(there)] for row in distinct(matrices([*there, *images]), first=len(there))]


def _age(image: InboxImage) -> tuple[datetime, str]:
    return image.added, image.hash


def matrices(images: Sequence[InboxImage]) -> Vectors:
    """Returns the vectors by encoder, float32 ``(n_images, dim)``."""
    names = images[0].vectors if images else ()
    return {name: np.stack([image.vectors[name] for image in images]) for name in names}


def inbox_image(
    image: PreparedImage, vectors: Mapping[str, NDArray[np.float32]], why: Why, added: datetime
) -> InboxImage:
    """Returns a prepared image as an image of the inbox. The prepared image must have a hash."""
    width, height = image.size
    return InboxImage(
        hash=image.hash,
        source=stored_source(image.source),
        added=added,
        width=width,
        height=height,
        cut_from=image.cut_from or None,
        why=why,
        vectors=vectors,
        content=image.small,
    )


def is_a_reference(prediction: Prediction) -> bool:
    """Returns whether an image is a near-duplicate of a reference."""
    return prediction.distance is not None and prediction.distance <= 1 - ALIKE


class StreamKeeper:
    """Keeps images of a stream in a separate thread. The stream does not wait, and survives errors of the store.

    Images are dropped while too many batches wait to be written. The end of the stream waits for the last write.
    """

    def __init__(self, keeper: Keeper, store: Store, keep: Keep, flow: Flow) -> None:
        self._keeper = keeper
        self._store = store
        self._all = keep == "all"
        self._flow = flow
        self._batches = flow.new_queue()
        self._started = False
        self._failed = False

    def offer(self, images: Sequence[PreparedImage], vectors: Vectors, predictions: Sequence[Prediction]) -> None:
        """Queues the images that `keep` selects, except near-duplicates of references.

        All images must be readable and have hashes.
        """
        now = datetime.now(UTC)
        chosen = [
            inbox_image(image, {name: rows[i] for name, rows in vectors.items()}, why, now)
            for i, (image, prediction) in enumerate(zip(images, predictions, strict=True))
            if (why := self._reason(prediction)) and not is_a_reference(prediction)
        ]
        if chosen and self._batches.qsize() < _MAX_WAITING_BATCHES:
            if not self._started:
                self._started = True
                self._flow.start(self._work, "zsvec-keep")
            self._batches.put(chosen)

    def _reason(self, prediction: Prediction) -> Why | None:
        if prediction.uncertainty:
            return "uncertain"
        return "all" if self._all else None

    def _work(self) -> None:
        while (chosen := self._batches.get()) is not None:
            try:
                with self._store.within(_REQUEST_TIMEOUT_S):
                    self._keeper.keep(chosen)
                self._failed = False
            except ZSVecError as exc:
                if not self._failed:
                    _log.warning("images of the stream are not kept for labelling: %s", exc)
                self._failed = True
                if self._flow.stopped:
                    return
            except Exception:  # noqa: BLE001 - a defect is logged, and the service goes on
                _log.exception("images of the stream are not kept for labelling")
