"""The classifier: a façade that composes store, encoders, search, method, ingest and curation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Container, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager
from dataclasses import replace as with_changes
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Unpack, cast, overload

from PIL.Image import Image

from zsvec.classifier.predictor import Predictor
from zsvec.classifier.tracker import TOP_K, Tracker
from zsvec.curation import attachments
from zsvec.curation.retention import Keeper
from zsvec.encoders import EncoderSet
from zsvec.errors import ImageError, InvalidInputError, shown
from zsvec.ingest.embedding import Embedder, Embedding
from zsvec.ingest.ingestion import Builder
from zsvec.ingest.recalibration import Calibrator
from zsvec.ingest.validation import (
    Errors,
    checked_batch_size,
    checked_callback,
    checked_flag,
    checked_keep,
    checked_versions,
)
from zsvec.inputs.boxes import Boxes, Detections, is_detections, with_predictions
from zsvec.inputs.categories import CategoryInput, ReferenceImage, checked_category, checked_images, checked_name
from zsvec.inputs.images import ImageInput, Region, SupportsArray, checked_margin, is_one_image, load_image
from zsvec.inputs.small import SIDE, open_small, small_copy
from zsvec.method.calibrate.fit import CalibrationReport
from zsvec.notebook import Html
from zsvec.search.searcher import Searcher
from zsvec.settings.settings import Settings, SettingsArguments, did_you_mean
from zsvec.settings.settings import info as facts
from zsvec.store import Store
from zsvec.streams.flow import Flow, StreamStats
from zsvec.streams.stream import AsyncStream, Stream, iterate_async_source, iterate_in_thread
from zsvec.types import (
    Attached,
    Attachment,
    Category,
    Keep,
    Labels,
    Prediction,
    Similar,
    StoredReference,
    Synced,
    encoder_and_modality,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from zsvec.curation.archive import Archive
    from zsvec.curation.audit import Audit
    from zsvec.curation.history import ChangeHistory
    from zsvec.curation.inbox import Feedback, Inbox
    from zsvec.curation.references import StoredReferences
    from zsvec.curation.search_index import SearchIndex
    from zsvec.curation.syncing import Following
    from zsvec.generation.facet import Generation
    from zsvec.method.predict.scoring import Scores, Scoring
    from zsvec.method.similarities import References


class Classifier:
    """Classifies images into the categories of a store, which may change at any time.

    `zsvec.open` makes a classifier. Encoders are loaded on first use. A classifier is thread-safe. After a fork, open
    another classifier in the new process.

    Args:
        store: Store of the categories.
        settings: Settings of encoding, search and fusion.
        load_encoders: Returns the encoders; called once, on first use.
        temperatures: By expert, the temperature that divides similarities. The experts determine the encoders in use.
        prompts: By encoder, a template for the text of a category without definition texts; ``{name}`` is the
            category's name.
        profile: Name of the profile that the encoders come from, which a new store remembers.

    Attributes:
        settings: The settings of this classifier.
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
        profile: str | None = None,
    ) -> None:
        self._store = store
        self.settings = settings
        self._prompts = prompts
        self._profile = profile
        self._encoder_names = sorted({encoder_and_modality(expert)[0] for expert in temperatures})
        self._embedder = Embedder(load_encoders, settings.image_limits(), store.check_open)
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
        self._keeper = Keeper(store, settings)
        self._predictor = Predictor(
            store, self._searcher, self._scoring, self._embedder, self._keeper, settings, prompts
        )
        self._calibrator = Calibrator(store, self._searcher, settings, temperatures)
        store.after_changes(self._calibrator.calibrate_if_cheap)
        settings.check_experts(temperatures)

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<zsvec.Classifier of {self._store.location}, encoders {', '.join(self._encoder_names)}>"

    def add_category(
        self,
        name: str,
        *,
        texts: Sequence[str] | None = None,
        images: Iterable[ImageInput | ReferenceImage] | None = None,
        vectors: Mapping[str, ArrayLike] | None = None,
        sources: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        parent: str | None = None,
        replace: bool = False,
    ) -> Category:
        """Adds a category, or references to an existing category. Every process sees the change in its next batch.

        Nothing is retrained. Adding is idempotent: references that the category already has are recognised by content.
        A text or an image is not embedded again if any category has it, or if an undo could restore it; nor is an image
        that waits in the inbox, or is one of the last 1,000 classified images.

        Args:
            name: Name of the category.
            texts: Definition texts. Without any, a new category is defined by the name.
            images: Reference images: a list or another iterable of paths, bytes, files, PIL images, arrays or tensors,
                or a batch as one array or tensor, as for `classify`. Use `ReferenceImage` to add metadata. An empty
                iterable, as of a glob that finds nothing, is an error unless texts or vectors are given, too.
            vectors: References that the same encoders have embedded elsewhere, by expert: ``{"clip:image": (n, dim)}``.
                They are recognised only if the vectors of the same experts are given together again.
            sources: Name of each row of `vectors`, such as an id of your own: the ``source`` in the evidence of
                predictions. If given, every array has as many rows. To change stored sources, use `replace`.
            metadata: JSON to store with the category.
            parent: The names above the category in the tree, topmost first, such as ``animal > bird``. Each name is a
                category, or a group that exists because categories name it. An empty text removes the parent, and
                ``None`` keeps it.
            replace: Whether the given images, texts and metadata replace those of the category. Parts that are not
                given stay.

        Returns:
            The category as committed.

        Raises:
            InvalidInputError: A name, text, vector, source or parent is unusable, a new category has no reference, or
                there is a text but no encoder that embeds texts.
            ImageError: An image is unreadable; nothing was stored.
            EncoderMismatchError: The store was made with other encoders.
            ConflictError: The category would have no reference, or other writers changed the category at every attempt.
        """
        given = CategoryInput(
            name=name,
            texts=texts,
            images=images,
            vectors={} if vectors is None else vectors,
            sources=sources,
            metadata=metadata,
            parent=parent,
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
        on_withdrawn: Callable[[StoredReference], None] | None = None,
        on_shared: Callable[[StoredReference, Sequence[str]], None] | None = None,
    ) -> list[Category]:
        """Adds many categories, which share batches of the encoders, and then calibrates the store if that is cheap.

        After an error, earlier categories stay committed and are calibrated. After an interrupt
        (``KeyboardInterrupt``), earlier categories stay committed as well, but the stored calibration is stale until
        the next write or `calibrate`.

        Args:
            categories: The categories, at most one of each name. Iterated in a separate thread.
            replace: As for `add_category`.
            on_error: Called with the source and the error of each unreadable image, which is left out. A category is
                then skipped if it would have no reference or if `replace` would drop its stored images, and a new
                category without texts also if none of its images is readable. By default, the error is raised.
            on_commit: Called with each category once it is committed. From then on, the category survives a killed
                process.
            on_withdrawn: Called with each given text or image that was moved or removed from its category since it was
                added, which is left out. All references of a category that was removed, renamed or merged are left out.
                By default, such references are added again. Either way, a forgotten image is added again.
            on_shared: Called with each added image that other categories have, and the names of these categories (of
                many, only some), once its category is committed. Images that are given with vectors are not looked up.

        Returns:
            The categories as committed, in order. Skipped categories are missing.

        Raises:
            ZSVecError: As `add_category`.
        """
        committed, replace, refuse = [], checked_flag("replace", replace), checked_callback("on_error", on_error)
        leave_out, share = checked_callback("on_withdrawn", on_withdrawn), checked_callback("on_shared", on_shared)
        notify = checked_callback("on_commit", on_commit) or (lambda category: None)
        with self._store.one_change("replace" if replace else "add"):
            built = self._builder().build(
                categories, replace=replace, on_error=refuse, on_withdrawn=leave_out, on_shared=share
            )
            for category in built:
                committed.append(category)
                notify(category)
        return committed

    def remove_category(self, name: str) -> None:
        """Removes a category and its references; raises CategoryNotFoundError for an unknown name."""
        self._store.remove(checked_name(name))

    def expecting(self, name: str, versions: Container[int]) -> AbstractContextManager[None]:
        """Makes the first commit of a category in a block a compare-and-set: no change of another writer is lost.

        An undo and a copy of a store in the block are not compared.

        ```python
        category = clf.category("red panda")
        with clf.expecting("red panda", {category.version}):
            clf.references.update("red panda", metadata={**category.metadata, "checked": True})
        ```

        Args:
            name: Name of the category.
            versions: Versions that the category may have before the commit; 0 stands for a missing category.

        Raises:
            InvalidInputError: The name is unusable, or `versions` is not a collection of whole numbers.
            VersionConflictError: The category has another version, at the start of the block or at the commit. Nothing
                was written. Read the category again, and repeat the change.
        """
        return self._store.expecting(checked_name(name), checked_versions(versions))

    def categories(self) -> list[Category]:
        """Returns the committed categories with the points of attached collections, sorted by name."""
        return self._store.all_categories()

    def category(self, name: str) -> Category:
        """Returns the committed category of this name; raises CategoryNotFoundError for an unknown name."""
        return self._store.whole_category(checked_name(name))

    def attach(
        self,
        collection: str,
        *,
        label: str,
        expert: str,
        vector: str = "",
        where: Mapping[str, str | int | bool] | None = None,
        source: str | None = None,
        refresh: float = 60.0,
    ) -> Attached:
        """Makes the points of another collection of the same Qdrant deployment references, from the next batch on.

        A payload field names the category of each point. The points compete with the categories of the store, and add
        to those of the same name. Nothing is ever written to the collection. Every process reads labels again every
        `refresh` seconds. A collection that is attached again is read anew, with all vectors.

        Args:
            collection: Name of the collection.
            label: Payload field with the category: a text, an integer or a boolean. Dots lead into nested objects, such
                as ``metadata.brand``. Other points are left out.
            expert: Expert that the vectors belong to, such as ``clip:image``.
            vector: Name of the vector, if the points have named vectors.
            where: Value that each of these payload fields must have.
            source: Payload field with the path of the image or, for a text expert, with the text. Up to 16 sources are
                embedded again, which tells vectors of another encoder. The writers of the collection choose these
                paths.
            refresh: Seconds after which labels are read again, at least 1.

        Returns:
            The collection as read now. `Attachment.compared` tells how many sources were embedded again.

        Raises:
            InvalidInputError: The store is not on a server, or there is no such collection, vector or expert.
            EncoderMismatchError: The vectors come from another encoder: dimension, distance or sources differ.
            StoreUnavailableError: The server cannot be reached, or the key may not read the collection.
        """
        wanted = self._attachment(collection, label, expert, vector, where, source, refresh)
        return attachments.attach(self._store, self._embedder, wanted, self.create)

    def copy_collection(
        self,
        collection: str,
        *,
        label: str,
        expert: str,
        vector: str = "",
        where: Mapping[str, str | int | bool] | None = None,
        source: str | None = None,
    ) -> list[Category]:
        """Copies the points of another collection to the categories of this store, and returns these categories.

        Arguments and errors are those of `attach`. Categories are committed one by one. A repeated call goes on after
        an interruption, and adds new points. The source of a reference is the field `source`, or collection and id.
        """
        wanted = self._attachment(collection, label, expert, vector, where, source, 60.0)
        return list(attachments.copy(self._store, self._embedder, wanted, self.create, self.add_categories))

    def _attachment(
        self,
        collection: str,
        label: str,
        expert: str,
        vector: str,
        where: Mapping[str, str | int | bool] | None,
        source: str | None,
        refresh: float,
    ) -> Attachment:
        wanted = attachments.new_attachment(
            collection, label=label, expert=expert, vector=vector, where=where, source=source, refresh=refresh
        )
        if expert not in self._scoring.temperatures:
            experts = self._scoring.temperatures
            near = did_you_mean(expert, experts)
            raise InvalidInputError(f"expert must be one of {', '.join(experts)}, got {expert!r}{near}")
        return wanted

    def detach(self, collection: str, *, expert: str | None = None) -> None:
        """Ends an attachment, for every process from its next batch on. The collection stays as it is.

        Args:
            collection: Name of the collection.
            expert: Expert of the attachment; by default, all attachments of the collection end.

        Raises:
            InvalidInputError: The collection is not attached.
        """
        try:
            self._store.detach(collection, expert)
        except InvalidInputError as exc:
            present = [one.attachment for one in self._store.attached()]
            near = did_you_mean(str(collection), {one.collection for one in present})
            if of_collection := {one.expert for one in present if one.collection == collection}:
                near = did_you_mean(str(expert), of_collection)
            raise InvalidInputError(f"{exc}{near}") from exc

    def attached(self) -> list[Attached]:
        """Returns the attached collections. Reads their labels now, which other processes do when it is time."""
        return self._store.attached()

    @cached_property
    def generation(self) -> Generation:
        """Generates references by a language model and an image model (paper, section 3.1)."""
        from zsvec.generation.facet import Generation

        takes_texts = any(encoder_and_modality(expert)[1] == "text" for expert in self._scoring.temperatures)
        settings, searcher, calibrator = self.settings.generation, self._searcher, self._calibrator
        return Generation(self._store, settings, searcher, calibrator, self._builder, takes_texts=takes_texts)

    @cached_property
    def references(self) -> StoredReferences:
        """Moves, removes and audits references."""
        from zsvec.curation.references import StoredReferences

        return StoredReferences(self._store, self._searcher, self._calibrator, self._builder, self._embedder.recent)

    @cached_property
    def archive(self) -> Archive:
        """Exports the store to one file, and imports such files, without running an encoder."""
        from zsvec.curation.archive import Archive

        return Archive(self._store, self._encoder_names, self.settings.keep_images, lambda: self.encoders.fingerprints)

    @cached_property
    def history(self) -> ChangeHistory:
        """Recent changes of categories, which can be undone."""
        from zsvec.curation.history import ChangeHistory

        return ChangeHistory(self._store)

    @cached_property
    def index(self) -> SearchIndex:
        """The index of the references on a Qdrant server, for stores with more references than `index_budget`."""
        from zsvec.curation.search_index import SearchIndex

        return SearchIndex(self._store, self.settings, self._scoring.temperatures)

    @cached_property
    def _following(self) -> Following:
        from zsvec.curation.syncing import Following

        return Following(self._store, self.settings, lambda: self.encoders.fingerprints)

    @cached_property
    def inbox(self) -> Inbox:
        """Images that wait for a label (active learning), and groups of images that may be missing categories."""
        from zsvec.curation.inbox import Inbox

        predict = self._predictor.predict_each
        return Inbox(self._store, self._keeper, predict, self._image_encoders, lambda: self.encoders)

    @property
    def _image_encoders(self) -> list[str]:
        experts = map(encoder_and_modality, self._scoring.temperatures)
        return [name for name, modality in experts if modality == "image"]

    @cached_property
    def _feedback(self) -> Feedback:
        from zsvec.curation.inbox import Feedback

        return Feedback(
            self._store,
            self.inbox,
            self._keeper,
            self._embedder,
            create=self.create,
            predict=self._predictor.predict_each,
            add=self.add_categories,
        )

    def keep(self, image: ImageInput | Prediction) -> str | None:
        """Keeps an image in the inbox, to be labelled later.

        Args:
            image: An image, or a prediction with a `hash`. The file of a prediction must be unchanged, unless the image
                already waits in the inbox. The image is not embedded again in the cases of `add_category`.

        Returns:
            Content hash of the image. ``None`` if the image is not kept, because it is a near-duplicate of a reference,
            of a dismissed image, or of another image that was kept on request.

        Raises:
            ImageError: The image is unreadable, or the file of the prediction has changed.
            InvalidInputError: The prediction has no hash.
        """
        return self._feedback.keep(image)

    def correct(self, image: ImageInput | Prediction, name: str | Sequence[str]) -> Category:
        """Makes an image a reference of the right category. Every process uses the reference from its next batch on.

        If another category has the image as a reference, the reference is moved: the image is a reference of the named
        categories alone. The image is not embedded again in the cases of `add_category`.

        Args:
            image: An image, or a prediction with a `hash`. The file of a prediction must be unchanged, unless the image
                is a reference or waits in the inbox.
            name: Name of the category, which is created if missing. In a store whose images may belong to several
                categories (`labels`), one or several names.

        Returns:
            The category as committed; the first of several.

        Raises:
            ImageError: The image is unreadable, or the file of the prediction has changed.
            InvalidInputError: A name is unusable, several names are given and an image belongs to one category, or the
                prediction has no hash.
            ConflictError: Another category would lose its last reference, or other writers changed a category at every
                attempt.
        """
        return self._feedback.correct(image, name)

    def similar(self, content_hash: str, *, number: int = 12) -> Similar:
        """Finds the reference images and the images of the inbox that are most similar to an image. No encoder runs.

        Args:
            content_hash: Content hash of a reference image, of an image in the inbox, or of one of the 1,000 images
                that this process has classified last.
            number: Maximum number of references, and of images of the inbox.

        Raises:
            InvalidInputError: The vectors of the image are not known, or an argument is unusable.
            StoreError: The store cannot be read.
        """
        from zsvec.curation.similar import similar_images

        return similar_images(
            content_hash,
            number,
            store=self._store,
            keeper=self._keeper,
            recent=self._embedder.recent,
            encoders=self._image_encoders,
            nearest=self._predictor.nearest_images,
        )

    def image(self, content_hash: str) -> Image | None:
        """Returns the small copy of a reference image or of an inbox image; ``None`` without a readable copy."""
        small = self.references.small(content_hash) or self.inbox.small(content_hash)
        return open_small(small.content) if small else None

    def thumbnail(self, image: ImageInput) -> bytes:
        """Returns any image as a small JPEG, like the copies of `image`: the shorter side has at most 256 pixels.

        Raises:
            ImageError: The image is unreadable.
        """
        return small_copy(load_image(image, side=SIDE, **self.settings.image_limits()))

    def show(self, found: Prediction | Sequence[Prediction] | Audit, image: ImageInput | None = None) -> Html:
        """Returns predictions or an audit with pictures, as the last line of a cell in a notebook.

        ```python
        clf.show(clf.classify("photo.jpg"), "photo.jpg")
        clf.show(clf.references.audit())
        ```

        Pictures of references come from the small copies in the store (setting ``keep_images``). No path in a store is
        opened.

        Args:
            found: One or several predictions of this classifier, or an audit of its references.
            image: The classified image of one prediction. By default, its small copy, if it is a reference or waits in
                the inbox.

        Raises:
            InvalidInputError: `found` is something else, or `image` is given with anything but one prediction.
            ImageError: `image` is unreadable.
            StoreError: The store cannot be read.
        """
        from zsvec.curation.audit import Audit
        from zsvec.curation.pictures import Pictures

        several: Sequence[Prediction | Audit] = [found] if isinstance(found, Prediction | Audit) else found
        if not (isinstance(several, Sequence) and all(isinstance(one, Prediction | Audit) for one in several)):
            raise InvalidInputError(f"found must be predictions or an audit. Got {shown(found)}: classify images first")
        own = None
        if image is not None:
            if not isinstance(found, Prediction):
                raise InvalidInputError("image must be given with one prediction. Show each prediction with its image")
            own = found.hash, open_small(self.thumbnail(image))
        pictures = Pictures(self.image, own)
        return Html("".join(one._html(pictures.find) for one in several))

    def image_map(self) -> dict[str, tuple[float, float]]:
        """Places the reference images and the images in the inbox on a map, where similar images are near each other.

        Points of attached collections are left out. The map is a t-SNE of the similarity that the calibration has
        learned. 20,000 images take about a minute on two processor cores.

        Returns:
            By content hash, x and y from 0 to 1. If there are more than 20,000 images, those of a random sample, which
            is the same each time. Beyond ``index_budget``, the references of a category without images of every encoder
            are left out.

        Raises:
            StoreError: The store cannot be read.
            MissingExtraError: scikit-learn is not installed.
        """
        from zsvec.curation.image_map import image_map

        return image_map(self._store, self._calibrator, self._scoring.temperatures, self._keeper.present())

    @overload
    def classify(
        self,
        images: NDArray[Any] | SupportsArray,
        *,
        top_k: int = 5,
        errors: Errors = "raise",
        keep: Keep | None = None,
    ) -> Any: ...
    @overload
    def classify(  # type: ignore[overload-overlap]
        self, images: ImageInput, *, top_k: int = 5, errors: Errors = "raise", keep: Keep | None = None
    ) -> Prediction: ...
    @overload
    def classify(
        self, images: Iterable[ImageInput], *, top_k: int = 5, errors: Errors = "raise", keep: Keep | None = None
    ) -> list[Prediction]: ...
    def classify(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        top_k: int = 5,
        errors: Errors = "raise",
        keep: Keep | None = None,
    ) -> Prediction | list[Prediction]:
        """Classifies one image, or several images.

        One image is classified in the calling thread, and concurrent threads share batches. Several images are
        classified as a stream.

        Args:
            images: A path, bytes, file, PIL image, array or tensor (`load_image` has the shapes and dtypes); or an
                iterable of these, such as a list, a generator or a ``pandas.Series`` of paths. An array or a tensor of
                shape (n_images, height, width, channels) or (n_images, channels, height, width) is a batch.
            top_k: Maximum number of categories in a ranking.
            errors: For an unreadable image, ``raise`` the error, or ``report`` a `Prediction` with ``error``.
            keep: As for `classify_stream`, but ``none`` by default for one image.

        Returns:
            A prediction for one image; for several, a list with one prediction per image, in order.

        Raises:
            InvalidInputError: An argument is unusable.
            ImageError: An image is unreadable, or the value is neither an image nor an iterable of images.
            StoreError: The store has no category.
            EncoderMismatchError: The store was made with other encoders.
        """
        if is_one_image(images):
            return self._predictor.classify(cast("ImageInput", images), top_k, errors, keep)
        several = cast("Iterable[ImageInput]", images)
        with self.classify_stream(several, top_k=top_k, errors=errors, keep=keep) as stream:
            return [] if isinstance(several, Sized) and not len(several) else list(stream)

    @overload
    async def aclassify(
        self,
        images: NDArray[Any] | SupportsArray,
        *,
        top_k: int = 5,
        errors: Errors = "raise",
        keep: Keep | None = None,
    ) -> Any: ...
    @overload
    async def aclassify(  # type: ignore[overload-overlap]
        self, images: ImageInput, *, top_k: int = 5, errors: Errors = "raise", keep: Keep | None = None
    ) -> Prediction: ...
    @overload
    async def aclassify(
        self, images: Iterable[ImageInput], *, top_k: int = 5, errors: Errors = "raise", keep: Keep | None = None
    ) -> list[Prediction]: ...
    async def aclassify(
        self,
        images: ImageInput | Iterable[ImageInput],
        *,
        top_k: int = 5,
        errors: Errors = "raise",
        keep: Keep | None = None,
    ) -> Prediction | list[Prediction]:
        """Runs `classify` in a thread, so that the event loop is not blocked."""
        return await asyncio.to_thread(self.classify, images, top_k=top_k, errors=errors, keep=keep)

    @overload
    def classify_regions(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        boxes: Detections,
        *,
        margin: float = 0.0,
        top_k: int = 5,
        errors: Errors = "report",
        keep: Keep | None = None,
    ) -> Detections: ...
    @overload
    def classify_regions(
        self,
        image: ImageInput,
        boxes: Boxes,
        *,
        margin: float = 0.0,
        top_k: int = 5,
        errors: Errors = "report",
        keep: Keep | None = None,
    ) -> list[Prediction]: ...
    def classify_regions(
        self,
        image: ImageInput,
        boxes: Any,
        *,
        margin: float = 0.0,
        top_k: int = 5,
        errors: Errors = "report",
        keep: Keep | None = None,
    ) -> Any:
        """Classifies the boxes that a detector found in an image, which is decoded once.

        ```python
        detections = clf.classify_regions("street.jpg", detections)  # supervision draws the categories
        ```

        For many images, classify a stream of `Region` objects: their crops share batches.

        Args:
            image: An image, as for `classify`.
            boxes: Left, top, right and bottom of each box in pixels of the upright image, shape ``(n, 4)``, at most
                10,000; or an object with these as ``xyxy``, such as the boxes of a result of ultralytics, or
                `supervision.Detections`. Fractions are rounded outwards, and boxes are cut at the border of the image.
            margin: Fraction of the width and height of a box, 0 to 10, to add on each side.
            top_k: Maximum number of categories in a ranking.
            errors: For an unusable box or an unreadable image, ``report`` predictions with ``error``, or ``raise`` the
                error.
            keep: As for `classify_stream`.

        Returns:
            A prediction for each box, in order. For ``Detections``, which have ``data`` and ``confidence`` too, a copy
            with the categories as ``data["class_name"]``, their probabilities as ``confidence``, and the predictions
            as ``data["zsvec"]``. There, unknown boxes have the name and the confidence of the detector. ``class_id``
            stays, and ``data["detector_class_name"]`` has the names of the detector.

        Raises:
            InvalidInputError: An argument is unusable.
            ZSVecError: As `classify`.
        """
        regions = self._predictor.regions(image, boxes, margin)
        with self.classify_stream(regions, top_k=top_k, errors=errors, keep=keep) as stream:
            predictions = list(stream) if regions else []
        return with_predictions(boxes, predictions) if is_detections(boxes) else predictions

    @overload
    async def aclassify_regions(  # type: ignore[overload-overlap]
        self,
        image: ImageInput,
        boxes: Detections,
        *,
        margin: float = 0.0,
        top_k: int = 5,
        errors: Errors = "report",
        keep: Keep | None = None,
    ) -> Detections: ...
    @overload
    async def aclassify_regions(
        self,
        image: ImageInput,
        boxes: Boxes,
        *,
        margin: float = 0.0,
        top_k: int = 5,
        errors: Errors = "report",
        keep: Keep | None = None,
    ) -> list[Prediction]: ...
    async def aclassify_regions(
        self,
        image: ImageInput,
        boxes: Any,
        *,
        margin: float = 0.0,
        top_k: int = 5,
        errors: Errors = "report",
        keep: Keep | None = None,
    ) -> Any:
        """Runs `classify_regions` in a thread, so that the event loop is not blocked."""
        return await asyncio.to_thread(
            self.classify_regions, image, boxes, margin=margin, top_k=top_k, errors=errors, keep=keep
        )

    def tracker(
        self,
        *,
        error_rate: float = 0.01,
        margin: float = 0.0,
        keep: Keep | None = None,
        max_tracks: int = 1000,
        max_age: float = 60.0,
    ) -> Tracker:
        """Returns a tracker, which gives each object that is followed through a video one answer.

        ```python
        tracker = clf.tracker()
        for frame in video:
            detections = tracker.classify(frame, byte_track.update(detect(frame)))
        ```

        Args:
            error_rate: Fraction of locked answers that may be wrong, above 0, at most 0.5.
            margin: As for `classify_regions`.
            keep: As for `classify_stream`.
            max_tracks: Maximum number of tracks. Beyond this, the track without frames for the longest time ends.
            max_age: Seconds without a frame after which a track ends.

        Raises:
            InvalidInputError: An argument is not in its range, or an image may belong to several categories.
        """
        if self.labels == "many":
            raise InvalidInputError(
                "a track has one category, so the images of a store with tracks must have one. Got a store with "
                'labels="many": read the labels of each image'
            )
        margin, chosen = checked_margin(margin), None if keep is None else checked_keep(keep)

        def classify(regions: Sequence[Region]) -> list[Prediction]:
            with self.classify_stream(regions, top_k=TOP_K, keep=chosen) as stream:
                return list(stream) if regions else []

        return Tracker(
            partial(self._predictor.regions, margin=margin),
            classify,
            error_rate=error_rate,
            max_tracks=max_tracks,
            max_age=max_age,
        )

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
        """Classifies images as they come, in order and in bounded memory. The source may be endless.

        Threads decode ahead of the encoders. Each batch sees every category committed before its search.

        Args:
            images: The images. Iterated in a separate thread.
            batch_size: Maximum number of images per batch of an encoder; by default, the setting.
            max_wait_ms: Milliseconds after which an incomplete batch is classified, counted from its first image; by
                default, 50.
            top_k: Maximum number of categories in a ranking.
            errors: For an unreadable image, ``report`` a `Prediction` with ``error``, or ``raise`` the error.
            keep: Images to keep in the inbox for a label: ``none``, ``uncertain`` images, or ``all``. By default, the
                setting.

        Returns:
            An iterator of predictions with ``stats``. Close the iterator, or use it as a context manager, to stop
            early. Iterating raises as `classify`.
        """
        flow = Flow()
        return Stream(self._predictor.stream(images, flow, batch_size, max_wait_ms, top_k, errors, keep), flow)

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
        """Runs `classify_stream` for an event loop, also from async sources. Canceling or closing ends the threads."""
        flow = Flow()
        if isinstance(images, AsyncIterable):
            images = iterate_async_source(images, flow)
        predictions = self._predictor.stream(images, flow, batch_size, max_wait_ms, top_k, errors, keep)
        return AsyncStream(iterate_in_thread(predictions, flow), flow)

    def classify_together(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int | None = None,
        top_k: int = 5,
        errors: Errors = "report",
        keep: Keep | None = None,
    ) -> list[Prediction]:
        """Classifies a whole set of images, such as a folder, in which similar images help each other.

        The images are classified as a stream. Then each image gets evidence from the images of the set that are most
        similar to it (Ziko et al., "Laplacian regularized few-shot learning", ICML 2020). Categories may be unequally
        frequent, and images of no category are allowed. `label`, `probability`, `ranking` and `path` change. The
        decision whether an image is unknown, `candidates`, `labels` and the evidence of the experts are those of the
        image alone, so a set of candidates may lack the label. Without reference images, nothing changes.

        The vectors and the distributions of all images stay in memory until the end. The time of the last step grows
        with the square of the number of images.

        Args:
            images: The images. The source must end.
            batch_size: As for `classify_stream`.
            top_k: Maximum number of categories in a ranking.
            errors: For an unreadable image, ``report`` a `Prediction` with ``error``, or ``raise`` the error.
            keep: As for `classify_stream`. The prediction for the image alone decides which image is uncertain.

        Returns:
            A prediction for each image, in order.

        Raises:
            InvalidInputError: An argument is unusable.
            ZSVecError: As `classify`.
        """
        if isinstance(images, Sized) and not len(images):
            return []
        return self._predictor.together(images, batch_size, top_k, errors, keep)

    async def aclassify_together(
        self,
        images: Iterable[ImageInput],
        *,
        batch_size: int | None = None,
        top_k: int = 5,
        errors: Errors = "report",
        keep: Keep | None = None,
    ) -> list[Prediction]:
        """Runs `classify_together` in a thread, so that the event loop is not blocked."""
        return await asyncio.to_thread(
            self.classify_together, images, batch_size=batch_size, top_k=top_k, errors=errors, keep=keep
        )

    @property
    def stats(self) -> StreamStats:
        """Statistics of all streams and of images classified one at a time, and the store's counters."""
        return with_changes(self._predictor.totals.stats(), store=self._store.stats())

    def embed_stream(self, images: Iterable[ImageInput], *, batch_size: int | None = None) -> Iterator[Embedding]:
        """Embeds images as they come, in order and in bounded memory, for `classify_vectors` or for storage.

        Args:
            images: The images. Iterated in a separate thread.
            batch_size: Maximum number of images per batch of an encoder; by default, the setting.

        Returns:
            An iterator of embeddings. The embedding of an unreadable image has an ``error``. Iterating raises as
            `encoders`.
        """
        size = checked_batch_size(self.settings.batch_size if batch_size is None else batch_size)
        return self._embedder.stream(checked_images(images), size)

    def classify_vectors(self, vectors: Mapping[str, ArrayLike], *, top_k: int = 5) -> list[Prediction]:
        """Classifies images that are already embedded.

        Args:
            vectors: By encoder, for all or some encoders of the store, float ``(n_images, dim)`` of any norm. Row i of
                each array belongs to image i. Other encoders give no evidence: a category without references of the
                given encoders has probability 0. The calibration may have no threshold for the experts of these
                encoders; then novelty is a prior (see `Prediction.novelty`). Novelty does not compare words.
            top_k: Maximum number of categories in a ranking.

        Raises:
            InvalidInputError: No encoder is given, an encoder is unknown, a shape is wrong, or a vector is zero or not
                finite.
            StoreError: The store has no category, or no category with references of the given encoders.
        """
        return self._predictor.predict_embedded(vectors, top_k)

    def calibrate(
        self, *, false_unknown_rate: float | None = None, labelled: Iterable[tuple[ImageInput, str]] | None = None
    ) -> CalibrationReport:
        """Learns temperatures, expert weights and rejection thresholds from the references, and stores the result.

        Without `labelled`, no encoder runs. Each write calibrates the store automatically if that is cheap. Otherwise
        the stored calibration becomes stale.

        Args:
            false_unknown_rate: Target fraction, between 0 and 1, of the images of known categories that may be rejected
                as unknown. By default, the setting, else the stored rate, else 0.05.
            labelled: Pairs of an image and the name of its category. The confidence is scaled to these images, and
                the scale is kept until a call without `labelled`.

        Raises:
            InvalidInputError: `false_unknown_rate` is not between 0 and 1, or a label is not a category of the store.
            ZSVecError: As `classify`. Also if the store has fewer than two categories, or no reference image.
        """
        known = None
        if labelled is not None:
            self._predictor.encoders_to_read()
            known = self._embedder.labelled(labelled, self.settings.batch_size, self._calibrator.check_labels)
        return self._calibrator.calibrate(false_unknown_rate, known)

    def create(self) -> None:
        """Creates the collections of the store, so that later writes need no permission to create them.

        Raises the same errors as a write.
        """
        self._store.bind(
            self.encoders.fingerprints,
            images=self.settings.keep_images,
            profile=self._profile,
            labels=self.settings.labels,
        )
        if self.settings.keep != "none":
            self._store.inbox.create()

    @property
    def location(self) -> str:
        """Folder or URL of the store, and the namespace."""
        return self._store.location

    @property
    def labels(self) -> Labels:
        """Whether an image belongs to ``one`` category of the store, or may belong to ``many``."""
        return self._store.labels()

    @property
    def revision(self) -> int:
        """Revision of the newest commit, removals included, as in `Prediction.revision`; 0 for an empty store.

        Raises:
            StoreError: The store cannot be read.
        """
        return self._calibrator.revision

    def info(self) -> dict[str, Any]:
        """Returns location, size, encoders, state of the calibration and engine versions, as a JSON object.

        Raises:
            StoreError: The store cannot be read.
        """
        return facts(self._store, self.settings, self._embedder.loaded)

    def ping(self) -> None:
        """Reads one record of the store; raises a StoreError if the store does not respond or was deleted."""
        self._store.ping()

    def within(self, seconds: float) -> AbstractContextManager[None]:
        """Limits each request that this thread sends to a server in a block to this many seconds.

        ```python
        with clf.within(2):
            clf.classify("photo.jpg")
        ```
        """
        return self._store.within(seconds)

    @property
    def encoders(self) -> EncoderSet:
        """The encoders, loaded on first access; raises WeightsUnavailableError without weights."""
        return self._embedder.encoders

    def sync(self, source: str, **settings: Unpack[SettingsArguments]) -> Synced:
        """Brings the folder of this classifier in step with a store on a server, as `zsvec.sync`.

        Call it between batches, or every few seconds in a thread of its own: if nothing has changed, it sends one
        request. Classification goes on meanwhile. Each batch sees the categories committed before its search.

        ```python
        with zsvec.open("device", namespace="birds") as clf:
            for batch in camera:
                clf.sync("https://store.example.com")
                predictions = clf.classify(batch)
        ```

        Args:
            source: URL of the server. A key that may only read suffices. The connection stays open until `close`.
            **settings: Settings of the source, as for `open`, such as ``api_key``. Its ``namespace`` is that of this
                classifier by default.

        Raises:
            InvalidInputError: A setting is invalid, the source is no server, or the store of this classifier is on one.
            EncoderMismatchError: The store has vectors of other encoders.
            StoreError: There is no store on the server, the store was switched to other encoders, or this store
                follows another one.
            StoreUnavailableError: The server cannot be reached or refuses the key, or the disk is full.
        """
        return self._following.sync(source, dict(settings))

    def close(self) -> None:
        """Makes all writes durable, and closes the store."""
        if "_following" in self.__dict__:
            self._following.close()
        self._predictor.close()
        self._searcher.close()
        self._store.close()

    def _builder(self) -> Builder:
        is_new = not self._store.encoders()
        if not is_new:
            self.create()
        return Builder(
            self._store,
            self._embedder,
            prompts=self._prompts,
            batch_size=self.settings.batch_size,
            keep_images=self.settings.keep_images != "none" and (is_new or self._store.keeps_images()),
            create=self.create if is_new else lambda: None,
        )


def basis_of(classifier: Classifier) -> tuple[Mapping[str, References], Scoring, float]:
    """Returns the parts of a classifier that an evaluation on its own references needs.

    Returns:
        References by expert in use, the scoring, and the target false-unknown rate, 0 to 1.

    Raises:
        StoreError: The references cannot be read.
    """
    calibrator = classifier._calibrator
    return dict(sorted(calibrator.references().items())), classifier._scoring, calibrator.false_unknown_rate


def scores_of(classifier: Classifier, vectors: Mapping[str, NDArray[Any]]) -> tuple[Sequence[str], Scores]:
    """Returns the categories, and the scores of embedded images for all of them, for an evaluation.

    Args:
        classifier: The classifier.
        vectors: By encoder, float32 ``(n_images, dim)``, unit rows; at least one image.

    Raises:
        StoreError: The store has no category, or cannot be read.
    """
    return classifier._predictor.scores(vectors)
