"""The classifier: a façade that composes store, encoders, search, method, ingest and curation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace as with_changes
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast, overload

from numpy.typing import ArrayLike
from PIL.Image import Image

from zsvec.classifier.predictor import Predictor
from zsvec.classifier.single import SingleImages
from zsvec.curation.retention import Keeper
from zsvec.encoders import EncoderSet
from zsvec.errors import ImageError, ZSVecError
from zsvec.ingest.embedding import Embedder, Embedding
from zsvec.ingest.ingestion import Builder
from zsvec.ingest.recalibration import Calibrator
from zsvec.ingest.validation import Errors, checked_batch_size, checked_callback, checked_flag
from zsvec.inputs.categories import CategoryInput, ReferenceImage, checked_category, checked_images, checked_name
from zsvec.inputs.images import ImageInput, load_image
from zsvec.inputs.small import SIDE, open_small, small_copy
from zsvec.method.calibrate.fit import CalibrationReport
from zsvec.search.searcher import Searcher
from zsvec.settings.info import info as facts
from zsvec.settings.settings import Settings
from zsvec.store import Store
from zsvec.streams.flow import Flow, StreamStats
from zsvec.streams.stream import AsyncStream, Stream, iterate_async_source, iterate_in_thread
from zsvec.types import Category, Keep, Prediction, encoder_and_modality

if TYPE_CHECKING:
    from zsvec.curation.feedback import Teaching
    from zsvec.curation.history import ChangeHistory
    from zsvec.curation.inbox import Inbox
    from zsvec.curation.references import StoredReferences
    from zsvec.generation.facet import Generation


class Classifier:
    """Classifies images by the categories of a store, which may change at any time.

    Made by `zsvec.open`. Encoders are loaded when first needed. Safe in several threads; after a fork, open another.

    Args:
        store: Where the categories are.
        settings: How to encode, search and fuse.
        load_encoders: Gives the encoders; called once, when they are first needed.
        temperatures: By expert, what its similarities are divided by; names the encoders.
        prompts: By encoder, the text of a category without definition texts, from its ``{name}``.

    Attributes:
        settings: As given.
    """

    settings: Settings

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        load_encoders: Callable[[], EncoderSet],
        temperatures: Mapping[str, float],
        prompts: Mapping[str, str],
    ) -> None:
        self._store = store
        self.settings = settings
        self._prompts = prompts
        self._encoder_names = sorted({encoder_and_modality(expert)[0] for expert in temperatures})
        self._embedder = Embedder(load_encoders, **settings.image_limits(), check=store.check_open)
        self._searcher = Searcher(
            store,
            kind=settings.index,
            budget=settings.index_budget,
            neighbors=settings.neighbors,
            norms=settings.aggregation == "prototype",
            max_staleness=settings.max_staleness,
            cached=settings.index_cache,
        )
        self._scoring = settings.scoring(temperatures)
        self._predictor = Predictor(store, self._searcher, self._scoring, self._embedder, settings)
        self._calibrator = Calibrator(store, self._searcher, settings, temperatures)
        store.after_changes(self._calibrator.calibrate_if_cheap)
        self._keeper = Keeper(store, settings)
        self._single = SingleImages(self._predictor, self._embedder, self._keeper, store, settings.max_wait_ms / 1000)
        try:
            settings.check_experts(temperatures)
            store.check(self._encoder_names)
        except ZSVecError:
            store.close()  # nobody else has it, and an embedded one stays locked while it is open
            raise

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<zsvec.Classifier of {self._store.location}, encoders {', '.join(self._encoder_names)}>"

    def add_category(
        self,
        name: str,
        texts: Sequence[str] | None = None,
        images: Iterable[ImageInput | ReferenceImage] = (),
        *,
        vectors: Mapping[str, ArrayLike] | None = None,
        metadata: Mapping[str, Any] | None = None,
        replace: bool = False,
    ) -> Category:
        """Add a category, or references to one that exists; seen by every process at its next batch.

        Nothing is retrained. References that the category has already are recognised by their content: they are
        not embedded again, and adding the same twice changes nothing.

        Args:
            name: The label.
            texts: Definition texts. Without any, a new category gets its name for one.
            images: Reference images: paths, bytes, files, PIL images, arrays; or `ReferenceImage`, with more of them.
            vectors: References embedded elsewhere by the same encoder: ``{"clip:image": (n, dim)}``. They are
                recognised if the same experts are given together again.
            metadata: JSON to keep with the category.
            replace: Whether the images, texts and metadata that are given take the place of those that the category
                has. What is not given stays.

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
        (category,) = self.add_categories([checked_category(given)], replace=replace)  # checked before encoders load
        return category

    def add_categories(
        self,
        categories: Iterable[CategoryInput],
        *,
        replace: bool = False,
        on_error: Callable[[str, ImageError], None] | None = None,
        on_commit: Callable[[Category], None] | None = None,
    ) -> list[Category]:
        """Add many categories, whose references share batches; then calibrate the store, if that is cheap.

        Args:
            categories: At most one of each name; iterated in a thread of its own.
            replace: Whether what is given of them takes the place of what exists, as in `add_category`.
            on_error: Called with source and error for each image that cannot be read and is left out; a category whose
                images were to be replaced is then left as it is. Without it, such an error is raised.
            on_commit: Called with each category when it is committed: from then on it survives a kill at any instant.

        Returns:
            The categories as committed, in order.

        Raises:
            ZSVecError: As `add_category`. What was committed before stays.
        """
        committed, replace, refuse = [], checked_flag("replace", replace), checked_callback("on_error", on_error)
        notify = checked_callback("on_commit", on_commit) or (lambda category: None)
        with self._store.one_change("replace" if replace else "add"):
            for category in self._builder().build(categories, replace=replace, on_error=refuse):
                committed.append(category)
                notify(category)
        return committed

    def remove_category(self, name: str) -> None:
        """Remove a category and its references; CategoryNotFoundError if there is none of this name."""
        self._store.remove(checked_name(name))

    def categories(self) -> list[Category]:
        """The committed categories, by name."""
        return self._store.categories()

    def category(self, name: str) -> Category:
        """The committed category of this name; CategoryNotFoundError if there is none."""
        return self._store.category(checked_name(name))

    @cached_property
    def generation(self) -> Generation:
        """References from a language model and an image model (paper, section 3.1)."""
        from zsvec.generation.facet import Generation

        return Generation(self._store, self.settings.generation, self._searcher, self._calibrator, self._builder)

    @cached_property
    def references(self) -> StoredReferences:
        """Looks after the references: moves and removes them, and says which are probably under a wrong category."""
        from zsvec.curation.references import StoredReferences

        return StoredReferences(self._store, self._searcher, self._calibrator, self._builder)

    @cached_property
    def history(self) -> ChangeHistory:
        """The changes of categories of the last time, which can be taken back."""
        from zsvec.curation.history import ChangeHistory

        return ChangeHistory(self._store)

    @cached_property
    def inbox(self) -> Inbox:
        """Images that wait for a label: what to label next, and groups that may be categories which are missing."""
        from zsvec.curation.inbox import Inbox

        experts = map(encoder_and_modality, self._scoring.temperatures)
        names = [name for name, modality in experts if modality == "image"]
        return Inbox(self._store, self._keeper, self._predictor.predict_each, names, lambda: self.encoders)

    @cached_property
    def _teaching(self) -> Teaching:
        from zsvec.curation.feedback import Teaching

        parts = self._store, self.inbox, self._keeper, self._embedder, self.settings.image_limits()

        def add(name: str, image: ReferenceImage) -> Category:
            return self.add_category(name, images=[image])

        return Teaching(*parts, create=self.create, predict=self._predictor.predict_each, add=add)

    def keep(self, image: ImageInput | Prediction) -> str | None:
        """Keep an image in the inbox; or that of a prediction which has a `hash`, if its file is still the same.

        Returns:
            Its content hash; ``None`` if it does not wait, because it equals, or nearly equals, a reference, an image
            that was asked for before, or one that was dismissed.

        Raises:
            ImageError: It cannot be read, or its file has changed.
            InvalidInputError: The prediction has no hash.
        """
        return self._teaching.keep(image)

    def correct(self, image: ImageInput | Prediction, name: str) -> Category:
        """Make an image a reference of the right category, from the next image of every process on.

        One that is a reference of another category is moved. One that waits in the inbox is not embedded again.

        Args:
            image: An image, or a prediction, as for `keep`.
            name: The category; made if there is none.

        Returns:
            The category as committed.

        Raises:
            ImageError: It cannot be read, or its file has changed.
            InvalidInputError: The name cannot be used, the prediction has no hash, or another category would lose its
                last reference.
            ConflictError: Other writers changed a category at every attempt.
        """
        return self._teaching.correct(image, name)

    def image(self, content_hash: str) -> Image | None:
        """The small copy of a reference image, or of one that waits; ``None`` without one that can be read."""
        small = self.references.small(content_hash) or self.inbox.small(content_hash)
        return open_small(small.content) if small else None

    def thumbnail(self, image: ImageInput) -> bytes:
        """A JPEG of any image, as `image` finds it of a stored one: its shorter side has 256 pixels at most.

        Raises:
            ImageError: It cannot be read.
        """
        return small_copy(load_image(image, side=SIDE, **self.settings.image_limits()))

    @overload
    def classify(  # type: ignore[overload-overlap]
        self, images: ImageInput, *, top_k: int = 5, errors: Errors = "raise", keep: Keep | None = None
    ) -> Prediction: ...
    @overload
    def classify(
        self, images: Sequence[ImageInput], *, top_k: int = 5, errors: Errors = "raise", keep: Keep | None = None
    ) -> list[Prediction]: ...
    def classify(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        top_k: int = 5,
        errors: Errors = "raise",
        keep: Keep | None = None,
    ) -> Prediction | list[Prediction]:
        """Classify one image, in the calling thread (threads that call at once share batches), or a list, as a stream.

        Args:
            images: A path, bytes, file, PIL image or array; or a list or tuple.
            top_k: Categories in the rankings.
            errors: For an image that cannot be read, ``raise``, or ``report`` a `Prediction` with ``error``.
            keep: As for `classify_stream`; of one image ``None`` is ``none``.

        Returns:
            A prediction for an image, a list of them, in order, for a list.

        Raises:
            ImageError: An image cannot be read.
            StoreError: The store has no category.
            EncoderMismatchError: It was made with other encoders.
        """
        if isinstance(images, list | tuple):
            with self.classify_stream(images, top_k=top_k, errors=errors, keep=keep) as stream:
                return list(stream) if images else []
        return self._single.classify(cast("ImageInput", images), top_k, errors, keep)

    @overload
    async def aclassify(  # type: ignore[overload-overlap]
        self, images: ImageInput, *, top_k: int = 5, errors: Errors = "raise", keep: Keep | None = None
    ) -> Prediction: ...
    @overload
    async def aclassify(
        self, images: Sequence[ImageInput], *, top_k: int = 5, errors: Errors = "raise", keep: Keep | None = None
    ) -> list[Prediction]: ...
    async def aclassify(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        top_k: int = 5,
        errors: Errors = "raise",
        keep: Keep | None = None,
    ) -> Prediction | list[Prediction]:
        """`classify` in a thread, so that an event loop goes on meanwhile."""
        return await asyncio.to_thread(self.classify, images, top_k=top_k, errors=errors, keep=keep)

    def classify_stream(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int | None = None,
        max_wait_ms: float | None = None,
        top_k: int = 5,
        errors: Errors = "report",
        keep: Keep | None = None,
    ) -> Stream[Prediction]:
        """Classify images as they come, in order and in bounded memory, endless sources included.

        Threads decode ahead of the encoders. Each batch sees every category committed before it is searched.

        Args:
            images: Iterated in a thread of its own.
            batch_size: Images that an encoder takes at once; by default the setting.
            max_wait_ms: Milliseconds that a batch waits, from its first image on, for images that have not come; by
                default 50.
            top_k: Categories in the rankings.
            errors: For an image that cannot be read, ``report`` a `Prediction` with ``error``, or ``raise``.
            keep: Which images wait in the inbox for a label: ``none``, those that are ``uncertain``, or ``all``; by
                default the setting.

        Returns:
            An iterator of predictions with its ``stats``. Close it, or use it as a context manager, to stop early.
            It raises as `classify`.
        """
        flow = Flow()
        keeper = self._keeper.of_stream(keep, flow)
        return Stream(self._predictor.stream(images, flow, batch_size, max_wait_ms, top_k, errors, keeper), flow)

    def aclassify_stream(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        batch_size: int | None = None,
        max_wait_ms: float | None = None,
        top_k: int = 5,
        errors: Errors = "report",
        keep: Keep | None = None,
    ) -> AsyncStream[Prediction]:
        """`classify_stream` for an event loop, whose images may come from one; cancelled or closed, its threads end."""
        flow = Flow()
        if isinstance(images, AsyncIterable):
            images = iterate_async_source(images, flow)
        keeper = self._keeper.of_stream(keep, flow)
        predictions = self._predictor.stream(images, flow, batch_size, max_wait_ms, top_k, errors, keeper)
        return AsyncStream(iterate_in_thread(predictions, flow), flow)

    @property
    def stats(self) -> StreamStats:
        """What has been done so far, and the store's counters; from any thread.

        All streams of predictions count, and the images that were classified alone.
        """
        return with_changes(self._predictor.totals.stats(), store=self._store.stats())

    def embed_stream(self, images: Iterable[ImageInput], *, batch_size: int | None = None) -> Iterator[Embedding]:
        """Vectors of images as they come, in order and in bounded memory; for `classify_vectors`, or for keeping.

        Args:
            images: Iterated in a thread of its own.
            batch_size: Images that an encoder takes at once; by default the setting.

        Returns:
            An iterator of embeddings, each with its ``error`` if the image cannot be read; raises as `load`.
        """
        size = checked_batch_size(self.settings.batch_size if batch_size is None else batch_size)
        return self._embedder.stream(checked_images(images), size)

    def classify_vectors(self, vectors: Mapping[str, ArrayLike], *, top_k: int = 5) -> list[Prediction]:
        """Classify images that are already embedded.

        Args:
            vectors: By encoder, all of them, float ``(n_images, dim)`` of any norm; the same images in each.
            top_k: Categories in the rankings.

        Raises:
            InvalidInputError: They are of other encoders, of other shapes, zero or not finite.
            StoreError: The store has no category.
        """
        return self._predictor.predict_embedded(vectors, top_k)

    def calibrate(
        self, *, false_unknown_rate: float | None = None, labelled: Iterable[tuple[ImageInput, str]] | None = None
    ) -> CalibrationReport:
        """Learn temperatures, expert weights and unknown thresholds from the stored references, and keep them there.

        Without `labelled`, no encoder runs. A write does this unasked while it is cheap; else the store turns stale.

        Args:
            false_unknown_rate: Of images of known categories; by default the setting, the present one, or 0.05.
            labelled: Images and their categories: how sure to be of such is learned, and kept until called without any.

        Raises:
            InvalidInputError: `false_unknown_rate` is not between 0 and 1, or a label is no category of the store.
            ZSVecError: As `classify`; or there are no two categories, or no reference image.
        """
        known = None
        if labelled is not None:
            self._predictor.encoders_to_read()
            known = self._embedder.labelled(labelled, self.settings.batch_size, self._calibrator.check_labels)
        return self._calibrator.calibrate(false_unknown_rate, known)

    def create(self) -> None:
        """Make the collections of the store; then a key that may write to them is enough. Raises as a write does."""
        self._store.bind(self.encoders.fingerprints, images=self.settings.keep_images)
        if self.settings.keep != "none":
            self._store.inbox.create()

    @property
    def location(self) -> str:
        """Folder or URL of the store, and its namespace."""
        return self._store.location

    def info(self) -> dict[str, Any]:
        """Place, size, encoders and calibration of the store, and versions of its engine; JSON.

        Raises:
            StoreError: The store cannot be read.
        """
        return facts(self._store, self.settings)

    def ping(self) -> None:
        """Ask the store for one record; raises a StoreError if it does not answer, or cannot be read."""
        self._store.encoders()

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Give each request of this thread to a server no more than so many seconds, in a block.

        ```python
        with clf.within(2):
            clf.classify("photo.jpg")
        ```
        """
        return self._store.within(seconds)

    def load(self) -> None:
        """Load the encoders now, not with the first image; raises as `encoders`."""
        _ = self.encoders

    @property
    def encoders(self) -> EncoderSet:
        """The encoders, loaded when first asked for; WeightsUnavailableError where there are no weights."""
        return self._embedder.encoders

    def close(self) -> None:
        """Make everything written durable and let go of the store."""
        self._single.close()
        self._searcher.close()
        self._store.close()

    def _builder(self) -> Builder:
        chosen = self.settings
        self.create()
        return Builder(
            self._store,
            self.encoders,
            prompts=self._prompts,
            batch_size=chosen.batch_size,
            keep_images=chosen.keep_images != "none" and self._store.keeps_images(),
            by=self._store.by,
            **chosen.image_limits(),
        )
