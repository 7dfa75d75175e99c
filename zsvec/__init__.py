"""Image classification with categories that live in Qdrant.

```python
import zsvec

with zsvec.open("./animals", profile="offline") as clf:
    clf.add_category("red panda", texts=["a small reddish arboreal mammal"], images=["panda.jpg"])
    print(clf.classify("photo.jpg"))
```
"""

from __future__ import annotations

import os as _os
from _thread import RLock as _RLock  # as in threading, which is slow to import
from importlib import import_module as _import_module

TYPE_CHECKING = False  # as in typing, which is slow to import
if TYPE_CHECKING:
    from collections.abc import Iterable as _Iterable
    from typing import Any as _Any
    from typing import Unpack as _Unpack

    from zsvec.classifier import Classifier
    from zsvec.classifier.tracker import Tracker
    from zsvec.curation.archive import Archive
    from zsvec.curation.audit import Audit, Confusion, Duplicates, Outlier, StoredImage, ThinCategory
    from zsvec.curation.copying import copy as copy
    from zsvec.curation.history import ChangeHistory
    from zsvec.curation.inbox import Group, Inbox, Unlabelled
    from zsvec.curation.reembedding import reembed as reembed
    from zsvec.curation.references import StoredReferences
    from zsvec.curation.search_index import SearchIndex
    from zsvec.curation.syncing import sync
    from zsvec.encoders.base import Backbone, BatchEncoder, Encoder
    from zsvec.encoders.encoder_set import EncoderSet
    from zsvec.encoders.spec import Device, Dtype, EncoderSpec, GraphPreprocessing, Prompt, RuntimeName, Temperature
    from zsvec.errors import (
        CategoryNotFoundError,
        ChangeIdNeededError,
        ConflictError,
        EncoderError,
        EncoderMismatchError,
        GenerationError,
        GenerationUnavailableError,
        ImageError,
        InvalidInputError,
        LargeAnswerError,
        LastReferenceError,
        MissingExtraError,
        StoreError,
        StoreLockedError,
        StoreUnavailableError,
        VersionConflictError,
        WeightsUnavailableError,
        ZSVecError,
    )
    from zsvec.generation.facet import Generated, Generation, Track
    from zsvec.generation.gate import GeneratedImage
    from zsvec.generation.manifest import DeclinedRecord, ImageRecord
    from zsvec.generation.plan import Budget, Plan
    from zsvec.ingest.embedding import Embedding
    from zsvec.ingest.validation import Errors
    from zsvec.inputs.boxes import Boxes, SupportsBoxes
    from zsvec.inputs.categories import CategoryInput, ReferenceImage, checked_name
    from zsvec.inputs.folders import read_categories
    from zsvec.inputs.images import ImageInput, Region, SupportsArray, content_hash, load_image
    from zsvec.method.calibrate.fit import CalibrationReport, Quality
    from zsvec.method.calibration import Calibration, CascadeRule, ExpertCalibration, LabelModel, LogLinear
    from zsvec.method.predict.background import Background
    from zsvec.method.quality.label_errors import Suspect
    from zsvec.notebook import Html
    from zsvec.settings.profiles import Profile
    from zsvec.settings.settings import (
        GenerationSettings,
        IndexDtype,
        IndexKind,
        ModelPrice,
        Settings,
        SettingsArguments,
    )
    from zsvec.streams.flow import StreamStats
    from zsvec.streams.stream import AsyncStream, Stream
    from zsvec.types import (
        Attached,
        Attachment,
        CalibrationState,
        CandidateSets,
        Category,
        Change,
        Copied,
        ExpertOutput,
        Fingerprint,
        Forgotten,
        Keep,
        KeepImages,
        Labels,
        Modality,
        Neighbor,
        NoveltyBasis,
        Prediction,
        Ranking,
        Reembedded,
        SearchMeasurement,
        SearchParams,
        SearchQuality,
        Similar,
        SmallImage,
        StoredReference,
        Synced,
        ThresholdProgress,
        TrackId,
        TrackPrediction,
        Uncertainty,
    )

__version__ = "0.2.0.dev0"
__all__ = [
    "Archive",
    "AsyncStream",
    "Attached",
    "Attachment",
    "Audit",
    "Backbone",
    "Background",
    "BatchEncoder",
    "Boxes",
    "Budget",
    "Calibration",
    "CalibrationReport",
    "CalibrationState",
    "CandidateSets",
    "CascadeRule",
    "Category",
    "CategoryInput",
    "CategoryNotFoundError",
    "Change",
    "ChangeHistory",
    "ChangeIdNeededError",
    "Classifier",
    "ConflictError",
    "Confusion",
    "Copied",
    "DeclinedRecord",
    "Device",
    "Dtype",
    "Duplicates",
    "Embedding",
    "Encoder",
    "EncoderError",
    "EncoderMismatchError",
    "EncoderSet",
    "EncoderSpec",
    "Errors",
    "ExpertCalibration",
    "ExpertOutput",
    "Fingerprint",
    "Forgotten",
    "Generated",
    "GeneratedImage",
    "Generation",
    "GenerationError",
    "GenerationSettings",
    "GenerationUnavailableError",
    "GraphPreprocessing",
    "Group",
    "Html",
    "ImageError",
    "ImageInput",
    "ImageRecord",
    "Inbox",
    "IndexDtype",
    "IndexKind",
    "InvalidInputError",
    "Keep",
    "KeepImages",
    "LabelModel",
    "Labels",
    "LargeAnswerError",
    "LastReferenceError",
    "LogLinear",
    "MissingExtraError",
    "Modality",
    "ModelPrice",
    "Neighbor",
    "NoveltyBasis",
    "Outlier",
    "Plan",
    "Prediction",
    "Profile",
    "Prompt",
    "Quality",
    "Ranking",
    "Reembedded",
    "ReferenceImage",
    "Region",
    "RuntimeName",
    "SearchIndex",
    "SearchMeasurement",
    "SearchParams",
    "SearchQuality",
    "Settings",
    "SettingsArguments",
    "Similar",
    "SmallImage",
    "StoreError",
    "StoreLockedError",
    "StoreUnavailableError",
    "StoredImage",
    "StoredReference",
    "StoredReferences",
    "Stream",
    "StreamStats",
    "SupportsArray",
    "SupportsBoxes",
    "Suspect",
    "Synced",
    "Temperature",
    "ThinCategory",
    "ThresholdProgress",
    "Track",
    "TrackId",
    "TrackPrediction",
    "Tracker",
    "Uncertainty",
    "Unlabelled",
    "VersionConflictError",
    "WeightsUnavailableError",
    "ZSVecError",
    "__version__",
    "checked_name",
    "content_hash",
    "load_image",
    "read_categories",
    "sync",
]

# Names that are imported on first access, by module. numpy, Pillow and pydantic are slow to import, and Ctrl-C while
# the command line imports this package would print a traceback.
_LATE = {
    "zsvec.classifier": "Classifier",
    "zsvec.classifier.tracker": "Tracker",
    "zsvec.curation.archive": "Archive",
    "zsvec.curation.audit": "Audit Confusion Duplicates Outlier StoredImage ThinCategory",
    "zsvec.curation.copying": "copy",
    "zsvec.curation.history": "ChangeHistory",
    "zsvec.curation.inbox": "Group Inbox Unlabelled",
    "zsvec.curation.reembedding": "reembed",
    "zsvec.curation.references": "StoredReferences",
    "zsvec.curation.search_index": "SearchIndex",
    "zsvec.curation.syncing": "sync",
    "zsvec.encoders.base": "Backbone BatchEncoder Encoder",
    "zsvec.encoders.encoder_set": "EncoderSet",
    "zsvec.encoders.spec": "Device Dtype EncoderSpec GraphPreprocessing Prompt RuntimeName Temperature",
    "zsvec.errors": (
        "CategoryNotFoundError ChangeIdNeededError ConflictError EncoderError EncoderMismatchError GenerationError "
        "GenerationUnavailableError ImageError InvalidInputError LargeAnswerError LastReferenceError "
        "MissingExtraError StoreError StoreLockedError StoreUnavailableError VersionConflictError "
        "WeightsUnavailableError ZSVecError"
    ),
    "zsvec.generation.facet": "Generated Generation Track",
    "zsvec.generation.gate": "GeneratedImage",
    "zsvec.generation.manifest": "DeclinedRecord ImageRecord",
    "zsvec.generation.plan": "Budget Plan",
    "zsvec.ingest.embedding": "Embedding",
    "zsvec.ingest.validation": "Errors",
    "zsvec.inputs.boxes": "Boxes SupportsBoxes",
    "zsvec.inputs.categories": "CategoryInput ReferenceImage checked_name",
    "zsvec.inputs.folders": "read_categories",
    "zsvec.inputs.images": "ImageInput Region SupportsArray content_hash load_image",
    "zsvec.method.calibrate.fit": "CalibrationReport Quality",
    "zsvec.method.calibration": "Calibration CascadeRule ExpertCalibration LabelModel LogLinear",
    "zsvec.method.predict.background": "Background",
    "zsvec.method.quality.label_errors": "Suspect",
    "zsvec.notebook": "Html",
    "zsvec.settings.profiles": "Profile",
    "zsvec.settings.settings": "GenerationSettings IndexDtype IndexKind ModelPrice Settings SettingsArguments",
    "zsvec.streams.flow": "StreamStats",
    "zsvec.streams.stream": "AsyncStream Stream",
    "zsvec.types": (
        "Attached Attachment CalibrationState CandidateSets Category Change Copied ExpertOutput Fingerprint "
        "Forgotten Keep KeepImages Labels Modality Neighbor NoveltyBasis Prediction Ranking Reembedded "
        "SearchMeasurement SearchParams SearchQuality Similar SmallImage StoredReference Synced ThresholdProgress "
        "TrackId TrackPrediction Uncertainty"
    ),
}
_HOMES = {name: module for module, names in _LATE.items() for name in names.split()}
# Held while these modules are imported. Two threads that enter numpy, or a package of zsvec, at different modules can
# each wait for a module of the other. Python then raises an error, or lets one thread use a module that is not ready.
_importing = _RLock()


if not TYPE_CHECKING:  # else type checkers accept any name

    def __getattr__(name: str) -> _Any:
        with _importing:
            if name in _HOMES:
                return getattr(_import_module(_HOMES[name]), name)
            if f"zsvec.{name}" in _LATE:  # `except zsvec.errors.ImageError`
                return _import_module(f"zsvec.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    dunders = {name for name in globals() if name.startswith("__")}
    # A star import must not replace the module `copy` and the builtin `open`, so `__all__` lacks these public names.
    return sorted({*dunders, *__all__, "copy", "open", "reembed"})


def open(  # noqa: A001 - zsvec.open, as there is gzip.open
    store: str | _os.PathLike[str] | None = None,
    *,
    encoders: _Iterable[Encoder] | str | None = None,
    **settings: _Unpack[SettingsArguments],
) -> Classifier:
    """Open a store of categories, and return a classifier that compares images with the references in the store.

    Args:
        store: Folder of an embedded store, ``http://`` or ``https://`` URL of a Qdrant server, or ``:memory:`` for a
            temporary store in memory. The first write creates the store. Defaults to the setting ``store``.
        encoders: Encoder objects to use instead of the encoders of a profile; or the setting ``encoders``, which names
            such objects as ``module:object``.
        **settings: Fields of `zsvec.settings.settings.Settings`, such as ``profile``, ``namespace``, ``api_key``,
            ``device`` or ``fusion``. Omitted fields come from environment variables such as ``ZSVEC_PROFILE``, from
            ``zsvec.toml``, from ``config.toml`` in your configuration folder, or from the defaults. An omitted
            ``profile`` is the profile that the store was made with.

    Returns:
        A classifier, which is also a context manager.

    Raises:
        InvalidInputError: A setting is invalid, or both a profile and encoders are given.
        EncoderError: The import of the encoders that a setting names fails.
        EncoderMismatchError: The store was made with other encoders.
        StoreLockedError: The embedded store is already open, in this or another process.
        StoreUnavailableError: The server cannot be reached or refuses the key.
    """
    with _importing:
        from zsvec.classifier import open_classifier
        from zsvec.errors import InvalidInputError
        from zsvec.settings.settings import load_settings

    location = _os.fspath(store) if isinstance(store, _os.PathLike) else store
    named = encoders if isinstance(encoders, str) else None
    if encoders is not None and named is None and settings.get("profile") is not None:
        raise InvalidInputError("profile and encoders exclude each other, got both. Leave one of the two out")
    chosen = load_settings(store=location, encoders=named, **settings)
    return open_classifier(chosen, encoders=None if isinstance(encoders, str) else encoders)
