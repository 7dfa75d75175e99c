"""Embeds the references of a store again with other encoders, beside the store, and switches to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import numpy as np
from numpy.typing import NDArray

import zsvec.encoders
from zsvec.encoders import Encoder, EncoderSet
from zsvec.encoders.spec import TEMPERATURES, EncoderSpec
from zsvec.errors import InvalidInputError, StoreError
from zsvec.ingest.embedding import Embedder
from zsvec.ingest.recalibration import Calibrator
from zsvec.inputs.categories import as_words
from zsvec.inputs.images import ImageInput
from zsvec.inputs.small import open_small
from zsvec.method.arrays import Key
from zsvec.method.quality.label_errors import judge
from zsvec.search.searcher import Searcher
from zsvec.settings.settings import Settings, SettingsArguments, load_settings
from zsvec.store import Reference, Store
from zsvec.store.reembedding import Origin, Survey, Vectors
from zsvec.streams.flow import Flow
from zsvec.types import Category, Modality, Reembedded, SmallImage, encoder_and_modality, expert_name

if TYPE_CHECKING:
    from zsvec.types import Fingerprint


_ROUNDS = 10  # of following the changes of the store; a switch follows the rest


def reembed(
    store: str | os.PathLike[str],
    *,
    encoders: Iterable[Encoder] | None = None,
    switch: bool = False,
    on_survey: Callable[[Survey], None] = lambda survey: None,
    on_image: Callable[[int], None] = lambda number: None,
    on_commit: Callable[[Category], None] = lambda category: None,
    **settings: Unpack[SettingsArguments],
) -> Reembedded:
    """Embed the references of a store again with other encoders, into a copy beside the store, and switch to the copy.

    Images are embedded from the original files, if these are at their paths and unchanged, else from the small copies.
    Texts are embedded again. An encoder that the store already has, by its fingerprint, is not run: its vectors are
    copied. So an encoder can be added or dropped alone. Metadata, parents and the marks of moved and removed references
    come along. A repeated call continues after an interruption, and follows the changes of the store.

    Every process that opens the store after the switch uses the copy. A process that opened it before goes on answering
    from the state before the switch, until `Classifier.gc` deletes that state: then a StoreError is raised. Its writes
    are refused: no change is lost.

    Args:
        store: Folder or URL of the store.
        encoders: Encoder objects to use instead of the encoders that the settings name.
        switch: Whether to switch the store to the copy, which `ChangeHistory.undo` undoes.
        on_survey: Called once, before images are embedded, with the numbers of originals and of small copies.
        on_image: Called with a number of images, whenever so many more are done.
        on_commit: Called with each category of the copy once it is committed.
        **settings: Settings as for `open`. ``profile`` names the other encoders.

    Raises:
        InvalidInputError: A setting is invalid, or the store already has vectors of these encoders.
        StoreError: There is no store; or, with `switch`, a category cannot be copied.
        ConflictError: Other processes interfered with the switch at every attempt.
        StoreLockedError: The folder of the store is already open, in this or another process.
        StoreUnavailableError: The server cannot be reached or refuses the key, or the disk is full.
        WeightsUnavailableError: Weights are neither on disk nor available from the hub.
    """
    chosen = load_settings(**{**settings, "store": os.fspath(store)})
    if chosen.store == ":memory:":
        raise InvalidInputError("a store ':memory:' ends with its process: give a folder or the URL of a server")
    with chosen.open_store() as opened:
        return reembed_store(
            opened,
            chosen,
            encoders=encoders,
            switch=switch,
            on_survey=on_survey,
            on_image=on_image,
            on_commit=on_commit,
        )


def reembed_store(
    store: Store,
    settings: Settings,
    *,
    encoders: Iterable[Encoder] | None = None,
    switch: bool = False,
    on_survey: Callable[[Survey], None] = lambda survey: None,
    on_image: Callable[[int], None] = lambda number: None,
    on_commit: Callable[[Category], None] = lambda category: None,
) -> Reembedded:
    """As `reembed`, for an open store."""
    specs: Mapping[str, EncoderSpec] = {}
    if encoders is None and settings.encoders is not None:
        encoders = settings.import_encoders()
    if encoders is None:
        specs = settings.encoder_specs()
        own = zsvec.encoders.load_encoders(
            specs,
            device=settings.device,
            dtype=settings.dtype,
            runtime=settings.runtime,
            compiled=settings.compile,
            batch_size=settings.batch_size,
        )
    else:
        own = EncoderSet(encoders, batch_size=settings.batch_size)
    profile = settings.profile if specs and settings.profile in settings.known_profiles() else None
    copy = store.copy_for(own.fingerprints, profile)
    reencoder = _Reencoder(own, store.encoders(), settings, {name: spec.prompt for name, spec in specs.items()})
    running = store.reembedding(copy, reencoder, on_image=on_image, on_commit=on_commit)
    on_survey(running.survey())
    for _ in range(_ROUNDS):  # busy writers may change the store faster than it is embedded again
        if not running.follow():
            break
    calibrator = _calibrator(copy, settings, own.modalities, specs)
    _calibrate(copy, calibrator)
    change, detached = None, list[str]()
    if switch:
        change, detached = store.switch_to(copy, running)
        _calibrate(copy, calibrator)  # categories may have changed meanwhile
    origins = list(running.found.origins.values())
    return Reembedded(
        namespace=copy.namespace,
        categories=tuple(running.found.committed.values()),
        unchanged=tuple(sorted(running.found.unchanged)),
        originals=origins.count("original"),
        small=origins.count("small"),
        left_out=dict(sorted(running.found.left_out.items())),
        damaged=dict(sorted(running.found.damaged.items())),
        inbox=running.found.inbox,
        inbox_left_out=tuple(running.found.inbox_left_out.values()),
        change=change,
        detached=tuple(detached),
    )


def judged_by_leave_one_out(store: Store, settings: Settings) -> dict[Key, bool]:
    """Classifies each reference image by all other references, with a calibration that is learned now. Stores nothing.

    Returns:
        By category and content hash of each image, whether the category is the most probable one. Images without a
        vector of every encoder are missing, and so is the only image of a category.

    Raises:
        StoreError: The store has fewer than two categories, or no reference image.
    """
    profile = settings.known_profiles().get(store.profile() or "")
    present = {expert for category in store.categories() for expert in category.references}
    modalities: dict[str, list[Modality]] = {}
    for encoder, modality in map(encoder_and_modality, sorted(present)):
        modalities.setdefault(encoder, []).append(modality)
    calibrator = _calibrator(store, settings, modalities, profile.encoders if profile else {})
    made = calibrator.fitted()
    if made is None:
        raise StoreError(f"{store.location} cannot be judged: that takes two categories and a reference image")
    return {verdict.key: not verdict.mistaken for verdict in judge(calibrator.references(), made[0])}


class _Reencoder:
    """The encoders of the copy, of which only those run that the store does not have."""

    def __init__(
        self, encoders: EncoderSet, stored: Mapping[str, Fingerprint], settings: Settings, prompts: Mapping[str, str]
    ) -> None:
        self.fingerprints: Mapping[str, Fingerprint] = encoders.fingerprints
        self.modalities: Mapping[str, Collection[Modality]] = encoders.modalities
        self._encoders = encoders
        self._prompts = prompts
        self._batch_size = settings.batch_size
        new = [encoder for encoder in encoders if stored.get(encoder.name) != encoder.fingerprint]
        running = EncoderSet(new, batch_size=settings.batch_size, device=encoders.device, on_torch=encoders.on_torch)
        self._embedder = Embedder(lambda: running, settings.image_limits())

    def has_original(self, image: Reference) -> bool:
        """Returns whether the source of an image is a file."""
        try:
            return bool(image.source) and Path(image.source).is_file()
        except (OSError, ValueError):  # the name is too long, or contains a null character
            return False

    def prompt(self, encoder: str, name: str) -> str:
        """Returns the text that an encoder embeds for a category that is defined by its name alone."""
        return self._prompts.get(encoder, "{name}").replace("{name}", as_words(name))

    def texts(self, encoder: str, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the vectors of texts, float32 ``(n, dim)``, unit rows."""
        return self._encoders[encoder].encode_texts(texts)

    def images(
        self, images: Sequence[tuple[Reference, SmallImage | None]], encoders: Collection[str]
    ) -> Iterator[tuple[str, Origin, Vectors]]:
        """Yields content hash, origin and vectors of the images that can be read.

        The source of a reference may have been written by anyone. So an original counts only if its content has the
        hash of the reference.
        """
        originals = [image for image, _ in images if self.has_original(image)]
        done = set[str]()
        paths = [Path(image.source) for image in originals]
        for image, found, vectors in self._embedded(originals, paths, encoders):
            if found == image.hash:
                done.add(image.hash)
                yield image.hash, "original", vectors
        others = [(image, small) for image, small in images if image.hash not in done and small is not None]
        copies = [open_small(small.content) for _, small in others]
        for image, _, vectors in self._embedded([image for image, _ in others], copies, encoders):
            yield image.hash, "small", vectors

    def _embedded(
        self, references: Sequence[Reference], inputs: Sequence[ImageInput], encoders: Collection[str]
    ) -> Iterator[tuple[Reference, str, Vectors]]:
        """Yields each readable image with its reference, content hash and vectors."""
        if not references:
            return
        waiting, flow = iter(references), Flow()
        with (
            closing(self._embedder.batches(inputs, self._batch_size, flow, names=lambda: encoders)) as batches,
            flow,
        ):
            for batch, vectors in batches:
                rows = iter(range(len(batch)))
                for read in batch:
                    reference = next(waiting)
                    if read.error is None:
                        row = next(rows)
                        yield reference, read.hash, {name: matrix[row].copy() for name, matrix in vectors.items()}


def _calibrator(
    store: Store,
    settings: Settings,
    modalities: Mapping[str, Iterable[Modality]],
    specs: Mapping[str, EncoderSpec],
) -> Calibrator:
    searcher = Searcher(
        store,
        kind=settings.index,
        budget=settings.index_budget,
        neighbors=settings.neighbors,
        norms=settings.aggregation == "prototype",
    )
    temperatures = {
        expert_name(name, modality): (specs[name].temperature if name in specs else TEMPERATURES).get(
            modality, TEMPERATURES[modality]
        )
        for name, some in modalities.items()
        for modality in some
    }
    return Calibrator(store, searcher, settings, temperatures)


def _calibrate(copy: Store, calibrator: Calibrator) -> None:
    if copy.info()["calibration"] != "current" or not calibrator.has_settings():
        with suppress(StoreError):  # too few categories or images
            calibrator.calibrate()
