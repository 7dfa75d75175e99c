"""The classifier: images → encoders → search → logits → fusion → predictions, over a live store."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsvec.builder import Builder
from zsvec.config import Settings
from zsvec.encoders import EncoderSet, mirror_on, rows_times_rows
from zsvec.errors import ImageError, InvalidInputError, StoreError, ZSVecError
from zsvec.generation.manifest import DeclinedRecord, ImageRecord
from zsvec.generation.plan import Budget, Held, Plan, make_plan
from zsvec.generation.synthesis import Gate, Generated, store_images
from zsvec.inputs.categories import CategoryInput, checked_images, checked_name, checked_vectors, readable
from zsvec.inputs.images import ImageInput, load_image, source_of
from zsvec.method.calibration import Calibration, uncalibrated
from zsvec.method.confusions import Confusions, confusions
from zsvec.method.fit import FALSE_UNKNOWN_RATE, CalibrationReport, calibrate, largest_sample, quality
from zsvec.method.leave_one_out import LeftOut
from zsvec.method.scoring import Scoring
from zsvec.search.searcher import Hold, InProcess, Searcher
from zsvec.store import Census, Store
from zsvec.store.schema import CATALOG
from zsvec.stream import Flow, StreamStats, ahead, from_async, in_thread, prefetch
from zsvec.types import Category, Prediction, encoder_and_modality

Errors = Literal["raise", "report"]

_CHEAP = 2 * 10**10  # multiplications: some half a second on two cores
_FITTING = 20_000  # multiplications that fitting costs for each image, category and view
GENERATED = "zsvec-generated"
"""Folder of what is generated, in the working directory."""
_NEAREST = 3  # references that a prediction shows for each expert
_BESIDE_ENCODERS: Hold = partial(InProcess, product=rows_times_rows)


class Classifier:
    """Classifies images by the categories of a store, which may change at any time.

    Use `zsvec.open` to make one. Encoders are loaded when they are first needed. Safe to use from
    several threads; after a fork, open another.

    Args:
        store: Where the categories are.
        settings: How to encode, search and fuse.
        load_encoders: Gives the encoders; called once, when they are first needed.
        temperatures: By expert, what its similarities are divided by; names the encoders.
        prompts: By encoder, the text of a category without definition texts, from its ``{name}``.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        load_encoders: Callable[[], EncoderSet],
        temperatures: Mapping[str, float],
        prompts: Mapping[str, str],
    ) -> None:
        self.store = store
        self.settings = settings
        self._load_encoders = load_encoders
        self._loaded: EncoderSet | None = None
        self._prompts = prompts
        self._lock = threading.RLock()
        self._flow = Flow()
        self._census = Census(store)
        self._searcher = Searcher(
            store,
            method=settings.search,
            budget=settings.mirror_budget,
            limit=settings.neighbors,
            norms=settings.aggregation == "prototype",
            hold=self._hold,
        )
        self.scoring = Scoring(
            temperatures=temperatures,
            fixed_temperatures=settings.temperatures,
            aggregation=settings.aggregation,
            top_m=settings.top_m,
            fusion=settings.fusion,
            weights=settings.weights,
            calibrated=settings.calibration == "auto",
            unknown_above=settings.unknown_above,
            unknown_per_category=settings.unknown_per_category,
        )
        self._temperatures = temperatures
        self._names = sorted({encoder_and_modality(expert)[0] for expert in temperatures})
        try:
            self._check_names(temperatures)
            store.check(self._names)
        except ZSVecError:
            store.close()  # nobody else has it, and an embedded one stays locked while it is open
            raise

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<zsvec.Classifier of {self.store.location}, encoders {', '.join(self._names)}>"

    # Categories

    def add_category(
        self,
        name: str,
        texts: Sequence[str] | None = None,
        images: Iterable[ImageInput] = (),
        *,
        vectors: Mapping[str, ArrayLike] | None = None,
        metadata: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> Category:
        """Add a category, or references to one that exists; seen by every process at its next batch.

        Nothing is retrained. What the category holds already is recognised by its content: it is not
        embedded again, and adding the same twice changes nothing.

        Args:
            name: The label.
            texts: Definition texts. Without any, a new category gets its name for one.
            images: Reference images: paths, bytes, files, PIL images, arrays.
            vectors: References embedded elsewhere by the same encoder: ``{"clip:image": (n, dim)}``. They are
                recognised when those of the same encoders are given together again.
            metadata: JSON to keep with it.
            replace: Whether these references take the place of those it has.

        Returns:
            The category as committed.

        Raises:
            InvalidInputError: A name, text or vector cannot be used, or there is no reference at all.
            ImageError: An image cannot be read; nothing was stored.
            EncoderMismatchError: The store was made with other encoders.
            ConflictError: Other writers changed the category at every attempt.
        """
        given = CategoryInput(
            name=name, texts=texts, images=images, vectors={} if vectors is None else vectors, metadata=metadata
        )
        (category,) = self.add_categories([given], replace=replace)
        return category

    def add_categories(
        self,
        categories: Iterable[CategoryInput],
        *,
        replace: bool = False,
        on_error: Callable[[str, ImageError], None] | None = None,
    ) -> Iterator[Category]:
        """Add many categories; their references share the encoders' batches.

        Args:
            categories: At most one of each name; iterated in a thread of its own.
            replace: Whether their references take the place of those that exist.
            on_error: Called with source and error for each image that cannot be read and is left out;
                without it, such an error is raised.

        Yields:
            Each category when it is committed. What was yielded survives a kill at any instant. After the last
            the store is calibrated, if that is cheap.

        Raises:
            ZSVecError: As `add_category`.
        """
        builder = self._builder()
        try:
            yield from builder.build(categories, replace=replace, on_error=on_error)
        except (GeneratorExit, ZSVecError):
            self._refresh_calibration()  # of what is committed
            raise
        self._refresh_calibration()

    def remove_category(self, name: str) -> None:
        """Remove a category and its references.

        Raises:
            CategoryNotFoundError: There is none of this name.
        """
        self.store.remove(checked_name(name))
        self._refresh_calibration()

    def categories(self) -> list[Category]:
        """The committed categories, by name."""
        return self.store.categories()

    def _builder(self) -> Builder:
        return Builder(
            self.store,
            self._encoders_to_write(),
            prompts=self._prompts,
            batch_size=self.settings.batch_size,
            max_pixels=self.settings.max_pixels,
        )

    # Synthesis

    def plan_generation(
        self,
        categories: Iterable[str] | None = None,
        *,
        per_category: int = 4,
        budget: Budget | None = None,
        folder: str | os.PathLike[str] = GENERATED,
    ) -> Plan:
        """Plan to draw reference images (paper, section 3.1). Nothing is asked, bought or written, and no key needed.

        Categories that the stored references confuse come first, and their images will show what they share and
        what tells them apart.

        Args:
            categories: Names, new ones too; by default all that the store has.
            per_category: Images of each that the folder shall hold.
            budget: The most that these may be and cost, earlier runs over the folder included.
            folder: Where images and what was paid for them are kept; what is there is not bought again.

        Raises:
            InvalidInputError: A name cannot be used, there are none, or the price of a model is not known and the
                budget is in dollars.
        """
        _check_count("per_category", per_category)
        held = {of.name: Held(max((readable(of.name), *of.texts), key=len), _images(of)) for of in self.categories()}
        names = list(dict.fromkeys(map(checked_name, _names(categories) if categories is not None else held)))
        if not names:
            raise InvalidInputError(f"{self.store.location} has no category to draw: name some")
        made = self._calibrated(self.false_unknown_rate) if held else None
        return make_plan(
            names,
            held,
            confusions(made[1], made[0].views) if made else Confusions(),
            self.settings.generation,
            per_category=per_category,
            budget=budget or Budget(),
            folder=Path(folder),
        )

    def generate(
        self,
        plan: Plan,
        *,
        keep_flagged: bool = False,
        track: Callable[[Iterable[ImageRecord | DeclinedRecord]], Iterable[ImageRecord | DeclinedRecord]] = iter,
    ) -> Generated:
        """Carry out a plan: describe, compare, draw; then store the images, with the descriptions as texts.

        Killed at any instant, or ended by the budget or an error, it goes on where it was when the same is
        planned and run again. Images that show nothing, the same as another, or something else are flagged.

        Args:
            plan: From `plan_generation`.
            keep_flagged: Whether flagged images are stored as well, if they can be read.
            track: Iterates what is bought, to show progress.

        Raises:
            GenerationError: There is no key (``OPENAI_API_KEY``), or the service cannot do it; what has arrived by
                then is stored, and is its ``generated``.
            InvalidInputError: The folder is in use, or cannot be used.
        """
        from zsvec.generation.run import carry_out  # the package `openai` takes a second to import

        drawn = carry_out(plan, self.settings.generation, track=track)
        if drawn.error is not None and not drawn.images:
            raise drawn.error
        builder = self._builder()
        references, _ = self._searcher.references()
        gate = Gate(
            self.encoders,
            self._prompts,
            references,
            batch_size=self.settings.batch_size,
            max_pixels=self.settings.max_pixels,
        )
        existing = {category.name for category in self.categories()}
        done = store_images(
            drawn, plan.folder, gate=gate, builder=builder, existing=existing, keep_flagged=keep_flagged
        )
        self._refresh_calibration()
        if drawn.error is not None:
            drawn.error.generated = done
            raise drawn.error
        return done

    def generate_references(
        self,
        categories: Iterable[str] | None = None,
        *,
        per_category: int = 4,
        budget: Budget | None = None,
        folder: str | os.PathLike[str] = GENERATED,
        keep_flagged: bool = False,
    ) -> Generated:
        """`plan_generation` and `generate` in one."""
        plan = self.plan_generation(categories, per_category=per_category, budget=budget, folder=folder)
        return self.generate(plan, keep_flagged=keep_flagged)

    # Classification

    @overload
    def classify(self, images: ImageInput, *, top_k: int = 5, errors: Errors = "raise") -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def classify(
        self, images: Sequence[ImageInput], *, top_k: int = 5, errors: Errors = "raise"
    ) -> list[Prediction]: ...
    def classify(
        self, images: ImageInput | Sequence[ImageInput], *, top_k: int = 5, errors: Errors = "raise"
    ) -> Prediction | list[Prediction]:
        """Classify one image, or a list of them.

        Args:
            images: A path, bytes, file, PIL image or array; or a list or tuple of such.
            top_k: Categories in the rankings.
            errors: For an image that cannot be read, ``raise``, or ``report`` a `Prediction` with ``error``.

        Returns:
            A prediction for an image, a list of them, in order, for a list.

        Raises:
            ImageError: An image cannot be read.
            StoreError: The store has no category.
            EncoderMismatchError: It was made with other encoders.
        """
        many = isinstance(images, list | tuple)
        predictions = list(self.classify_stream(images if many else [images], top_k=top_k, errors=errors))  # type: ignore[list-item, arg-type]
        return predictions if many else predictions[0]

    async def aclassify(
        self, images: ImageInput | Sequence[ImageInput], *, top_k: int = 5, errors: Errors = "raise"
    ) -> Prediction | list[Prediction]:
        """`classify` in a thread, so that an event loop goes on meanwhile."""
        return await asyncio.to_thread(self.classify, images, top_k=top_k, errors=errors)

    def classify_stream(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int | None = None,
        max_wait_ms: float | None = None,
        top_k: int = 5,
        errors: Errors = "report",
    ) -> Iterator[Prediction]:
        """Classify images as they come, in order and in bounded memory, endless sources included.

        Threads decode ahead of the encoders, and on a GPU these work ahead of the search. Each batch sees every
        category committed before it is searched. `stats` says what is being done meanwhile.

        Args:
            images: Iterated in a thread of its own.
            batch_size: Images that an encoder takes at once; by default the setting.
            max_wait_ms: Milliseconds that a batch waits, from its first image on, for images that have not come; by
                default 50.
            top_k: Categories in the rankings.
            errors: For an image that cannot be read, ``report`` a `Prediction` with ``error``, or ``raise``.

        Yields:
            One prediction for each image. Whoever stops early closes the iterator: the threads end.

        Raises:
            ZSVecError: As `classify`.
        """
        return self._stream(images, Flow(), batch_size, max_wait_ms, top_k, errors)

    def _stream(
        self,
        images: Iterable[ImageInput],
        flow: Flow,
        batch_size: int | None,
        max_wait_ms: float | None,
        top_k: int,
        errors: Errors,
    ) -> Generator[Prediction, None, None]:
        size = self.settings.batch_size if batch_size is None else batch_size
        _check_count("batch_size", size)
        _check_count("top_k", top_k)
        if max_wait_ms is not None and not (isinstance(max_wait_ms, Real) and 0 <= max_wait_ms < float("inf")):
            raise InvalidInputError(f"max_wait_ms must be a number from 0 up. Got {max_wait_ms!r} instead")
        if errors not in ("raise", "report"):
            raise InvalidInputError(f"errors must be 'raise' or 'report'. Got {errors!r} instead")
        images = checked_images(images)

        def predictions() -> Generator[Prediction, None, None]:
            self._flow = flow
            max_wait = None if max_wait_ms is None else float(max_wait_ms) / 1000
            encoders = self._encoders_to_read()
            embedded = self._embed(images, size, encoders, flow, max_wait)
            batches = ahead(embedded, flow, "encode") if _work_ahead(encoders) else embedded
            try:
                for batch, vectors in batches:
                    sources = [image.source for image in batch if image.error is None]
                    answers = iter(self._predict(sources, vectors, top_k, flow) if sources else ())
                    flow.count(len(batch), len(batch) - len(sources))
                    for image in batch:
                        if image.error is None:
                            yield next(answers)
                        elif errors == "raise":
                            raise image.error
                        else:
                            yield Prediction(source=image.source, error=str(image.error))
            finally:
                flow.end()
                batches.close()

        return predictions()

    @property
    def stats(self) -> StreamStats:
        """What the stream that was begun last has done so far; may be asked from any thread."""
        return self._flow.stats()

    def aclassify_stream(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        batch_size: int | None = None,
        max_wait_ms: float | None = None,
        top_k: int = 5,
        errors: Errors = "report",
    ) -> AsyncGenerator[Prediction, None]:
        """`classify_stream` for an event loop, which goes on meanwhile; its images may come from one, too.

        Cancelled, or closed early (``contextlib.aclosing``), it ends its threads.
        """
        flow = Flow()
        if isinstance(images, AsyncIterable):
            images = from_async(images, flow)
        return in_thread(self._stream(images, flow, batch_size, max_wait_ms, top_k, errors), flow)

    def embed_stream(self, images: Iterable[ImageInput], *, batch_size: int | None = None) -> Iterator[Embedding]:
        """Vectors of images as they come, in order and in bounded memory; for `classify_vectors`, or for keeping.

        Args:
            images: Iterated in a thread of its own.
            batch_size: Images that an encoder takes at once; by default the setting.

        Yields:
            One embedding for each image, with its ``error`` if it cannot be read.

        Raises:
            ZSVecError: As `load`.
        """
        size = self.settings.batch_size if batch_size is None else batch_size
        _check_count("batch_size", size)
        flow = Flow()
        try:
            for batch, vectors in self._embed(checked_images(images), size, self.encoders, flow, None):
                position = 0
                for image in batch:
                    if image.error is not None:
                        yield Embedding(image.source, error=str(image.error))
                    else:
                        yield Embedding(image.source, {name: of[position] for name, of in vectors.items()})
                        position += 1
        finally:
            flow.end()

    def _embed(
        self, images: Iterable[ImageInput], size: int, encoders: EncoderSet, flow: Flow, max_wait: float | None
    ) -> Generator[tuple[list[_Prepared], dict[str, NDArray[np.float32]]], None, None]:
        """Batches of images, and the vectors of those that can be read, by encoder."""

        def prepare(image: ImageInput) -> _Prepared:
            source = source_of(image)
            try:
                with flow.stage("decode"):
                    rgb = load_image(image, max_pixels=self.settings.max_pixels, side=encoders.side)
            except ImageError as exc:
                return _Prepared(source, error=exc)
            with flow.stage("preprocess"):
                return _Prepared(source, encoders.preprocess(rgb))

        for batch in prefetch(prepare, images, size, max_wait=max_wait, flow=flow):
            readable = [image.inputs for image in batch if image.error is None]
            with flow.stage("encode"):
                vectors = encoders.encode_images(readable) if readable else {}
            yield batch, vectors

    def classify_vectors(self, vectors: Mapping[str, ArrayLike], *, top_k: int = 5) -> list[Prediction]:
        """Classify images that are already embedded.

        Args:
            vectors: By encoder, all of them, float ``(n_images, dim)`` of any norm; the same images in each.
            top_k: Categories in the rankings.

        Raises:
            InvalidInputError: They are of other encoders, of other shapes, zero or not finite.
            StoreError: The store has no category.
        """
        _check_count("top_k", top_k)
        fingerprints = self.store.encoders()
        if not fingerprints:
            raise self._empty()
        if set(vectors) != set(fingerprints):
            raise InvalidInputError(
                f"vectors must be given of the encoders {', '.join(fingerprints)}. Got {', '.join(vectors) or 'none'}"
            )
        queries = {name: checked_vectors(of, fingerprints[name].dim, of=name) for name, of in vectors.items()}
        counts = {name: len(of) for name, of in queries.items()}
        if len(set(counts.values())) > 1:
            raise InvalidInputError(f"each encoder must have vectors of the same images. Got {counts}")
        sources = [f"vector {i}" for i in range(max(counts.values()))]
        return self._predict(sources, queries, top_k, Flow()) if sources else []

    def _predict(
        self, sources: Sequence[str], vectors: Mapping[str, NDArray[np.float32]], top_k: int, flow: Flow
    ) -> list[Prediction]:
        with flow.stage("search"):
            found = self._searcher.search(vectors, _NEAREST)
        # A modality that is not in use any more may still have references.
        used = tuple(expert for expert in found.experts if expert.name in self.scoring.temperatures)
        if not used:
            raise self._empty()
        found = replace(found, experts=used)
        with flow.stage("fuse"):
            return self.scoring.predict(found, sources, top_k)

    def _check_names(self, experts: Collection[str]) -> None:
        for name in self._names:
            if name == CATALOG or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", name):
                raise InvalidInputError(
                    f"an encoder cannot be named {name!r}: it is part of the name of a collection, so take letters, "
                    f"digits, '_', '-' and '.', and not {CATALOG!r}"
                )
        if not experts:
            raise InvalidInputError("there are no encoders: give at least one")
        for expert in {**self.settings.weights, **self.settings.temperatures}:
            if expert not in experts:
                raise InvalidInputError(f"there is no expert {expert!r}; there are {', '.join(experts)}")

    # Calibration

    def calibrate(self, *, false_unknown_rate: float | None = None) -> CalibrationReport:
        """Learn temperatures, weights and the threshold of novelty from the references, and keep them in the store.

        No encoder runs: every reference image is scored against the others. After a write this is done
        without being asked, while it is cheap (at most `_CHEAP` multiplications); a larger store is marked stale.

        Args:
            false_unknown_rate: Fraction of the images of known categories that may be called unknown; by default the
                setting, that of the present calibration, or 0.05.

        Raises:
            InvalidInputError: `false_unknown_rate` is not between 0 and 1.
            StoreError: There are no two categories, or no reference image.
        """
        if false_unknown_rate is not None and not (isinstance(false_unknown_rate, Real) and 0 < false_unknown_rate < 1):
            raise InvalidInputError(f"false_unknown_rate must be between 0 and 1. Got {false_unknown_rate!r} instead")
        former = Calibration.from_dict(self.store.calibration())
        made = self._calibrate(false_unknown_rate or self.false_unknown_rate)
        if made is None:
            raise StoreError(
                f"{self.store.location} cannot be calibrated: that takes two categories and a reference image"
            )
        calibration, sample = made
        before = uncalibrated({expert: self._temperatures[expert] for expert in sample.views}, calibration.aggregation)
        if former is not None and former.fits(sample.views, calibration.aggregation, calibration.top_m):
            before = former.views
        return CalibrationReport(calibration, quality(before, sample), quality(calibration.views, sample))

    @property
    def false_unknown_rate(self) -> float:
        """Fraction of the images of known categories that a calibration without another wish lets be called unknown."""
        former = Calibration.from_dict(self.store.calibration())
        return self.settings.false_unknown_rate or (former.false_unknown_rate if former else FALSE_UNKNOWN_RATE)

    def _calibrated(self, false_unknown_rate: float) -> tuple[Calibration, LeftOut] | None:
        """What calibration would be now, and what it is learned from."""
        references, revision = self._searcher.references()
        return calibrate(
            {expert: of for expert, of in references.items() if expert in self._temperatures},
            self._temperatures,
            revision=revision,
            aggregation=self.scoring.aggregation,
            top_m=self.scoring.top_m,
            false_unknown_rate=false_unknown_rate,
        )

    def _calibrate(self, false_unknown_rate: float) -> tuple[Calibration, LeftOut] | None:
        """Calibrate and keep it; where that is not possible any more, keep none."""
        made = self._calibrated(false_unknown_rate)
        if made is not None:
            self.store.keep_calibration(made[0].to_dict())
        elif self.store.calibration():
            self.store.keep_calibration({})  # it is of categories that are gone
        return made

    def _refresh_calibration(self) -> None:
        """Calibrate after a write, if that is cheap and nobody else has done it."""
        if self.settings.calibration == "off":
            return
        # What was written is committed: whatever prevents a calibration now, the store is only marked stale by it.
        with suppress(StoreError):
            kept = Calibration.from_dict(self.store.calibration())
            others = kept is not None and not kept.fits((), self.scoring.aggregation, self.scoring.top_m)
            categories, references, revision = self._census.update()
            current = kept is not None and kept.revision >= revision
            if not others and not current and self._cost_of_calibrating(categories, references) <= _CHEAP:
                self._calibrate(self.false_unknown_rate)

    def _cost_of_calibrating(self, categories: int, references: Mapping[str, int]) -> float:
        """Multiplications, roughly: products of images and references, and steps of fitting."""
        dims = {name: fingerprint.dim for name, fingerprint in self.store.encoders().items()}
        images = min(max(references.values(), default=0), largest_sample(categories))
        products = sum(images * n * dims[encoder_and_modality(expert)[0]] for expert, n in references.items())
        return products + images * categories * 2 * len(references) * _FITTING

    # Life

    def load(self) -> None:
        """Load the encoders now, not with the first image.

        Raises:
            WeightsUnavailableError: Weights can be loaded neither from disk nor from a hub.
        """
        _ = self.encoders

    @property
    def encoders(self) -> EncoderSet:
        """The encoders; loaded when they are first asked for."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load_encoders()
            return self._loaded

    def close(self) -> None:
        """Make everything written durable and let go of the store."""
        self.store.close()

    def _hold(self) -> Hold:
        """Where the references are compared with images: on the device of the encoders, once these are loaded.

        On a CPU torch makes the products, if it is loaded; the rest is faster in numpy.
        """
        device = self.settings.mirror_device
        if device == "auto":
            device = self._loaded.device if self._loaded else "cpu"
        if device != "cpu":
            return mirror_on(device, self.settings.mirror_dtype)
        return _BESIDE_ENCODERS if "torch" in sys.modules else InProcess

    def _encoders_to_read(self) -> EncoderSet:
        if not self.store.encoders():
            raise self._empty()
        encoders = self.encoders
        self.store.check_fingerprints(encoders.fingerprints)
        return encoders

    def _encoders_to_write(self) -> EncoderSet:
        encoders = self.encoders
        self.store.bind(encoders.fingerprints)
        return encoders

    def _empty(self) -> StoreError:
        return StoreError(f"{self.store.location} has no category yet: add one with `zsvec add` or `zsvec import`")


def _work_ahead(encoders: EncoderSet) -> bool:
    """Whether encoders work ahead of the search.

    On a CPU it would take cores from a network whose threads wait for each other: two cores classified an eighth less.
    """
    return encoders.device != "cpu"


def _names(categories: object) -> Iterable[Any]:
    if isinstance(categories, str) or not isinstance(categories, Iterable):
        raise InvalidInputError(f"categories must be a list of names. Got {categories!r} instead")
    return categories


def _images(category: Category) -> int:
    """How many reference images a category has."""
    of_images = (n for expert, n in category.references.items() if encoder_and_modality(expert)[1] == "image")
    return max(of_images, default=0)


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"{name} must be a whole number from 1 up. Got {value!r} instead")


@dataclass(frozen=True, slots=True)
class Embedding:
    """An image as the encoders see it.

    Attributes:
        source: Where the image came from.
        vectors: By encoder, float32 ``(dim,)``, unit norm; empty if the image could not be read.
        error: Why not, or ``None``.
    """

    source: str
    vectors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Prepared:
    """An image ready for the encoders, or why it is not."""

    source: str
    inputs: Any = None
    error: ImageError | None = None
