"""Classifies batches of columns in data pipelines: Ray Data, Hugging Face ``datasets``, Spark, Dask.

Pipelines pickle their functions, and may unpickle them for every batch. So the open classifiers belong to the process,
and a function finds the classifier that another function with equal arguments has opened.
"""

from __future__ import annotations

import math
import os
import threading
import uuid
import weakref
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Unpack

import zsvec
from zsvec.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from zsvec.classifier import Classifier
    from zsvec.settings.settings import SettingsArguments
    from zsvec.types import Prediction

# Values of an image that has none. Pipelines take the type of a column from the first rows, and None has no type.
_MISSING: Mapping[str, str | float | int | bool] = {
    "label": "",
    "nearest": "",
    "probability": math.nan,
    "unknown": False,
    "novelty": math.nan,
    "novelty_basis": "",
    "distance": math.nan,
    "calibration": "none",
    "error": "",
    "revision": 0,
}
_KEPT = 4  # stores that stay open; the store with the oldest last batch makes room for another


class _Opening:
    """A classifier, which is opened once. It is closed when it is neither kept nor in use."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments
        self._classifier: Classifier | None = None
        self._lock = threading.Lock()  # not the lock of the list, because opening takes seconds

    def classifier(self) -> Classifier:
        with self._lock:
            if self._classifier is None:
                _, store, encoders, settings = self.arguments
                self._classifier = zsvec.open(store, encoders=encoders, **settings)
                # Not at the exit of the process, which may be a fork: the parent still uses the store.
                weakref.finalize(self, self._classifier.close).atexit = False
            return self._classifier

    def close(self) -> None:
        with self._lock:
            if self._classifier is not None:
                self._classifier.close()


_opened: list[_Opening] = []  # the one with the newest batch is the last
_inherited: list[list[_Opening]] = []
_lock = threading.Lock()  # of the list


def _forked() -> None:
    """Starts with no open classifier, since none survives a fork, and with a free lock."""
    global _lock, _opened
    _inherited.append(_opened)  # without an end, which would unlock folders of the parent
    _opened, _lock = [], threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


class Classify:
    """Classifies the images in one column of a batch: a function from columns to columns, which can be pickled.

    The first batch in a process opens the store and loads the encoders, for all functions with equal arguments in the
    process. Up to four stores stay open in a process. Pickling carries the arguments and nothing else. Each process
    adds its own environment and settings files, such as ``ZSVEC_API_KEY``, when it opens the store.

    ```python
    dataset = dataset.map(Classify("http://localhost:6333"), batched=True)
    ```

    Args:
        store: As for `zsvec.open`. A folder is a store for one process.
        image: Name of the column of images.
        encoders: Encoders in Python, as ``MODULE:OBJECT``.
        **settings: As for `zsvec.open`. An `api_key` given here is pickled in clear text.

    Attributes:
        image: Name of the column of images.

    Raises:
        InvalidInputError: There is no such setting. The values are checked by the first batch, since each process adds
            its own settings.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        image: str = "image",
        encoders: str | None = None,
        **settings: Unpack[SettingsArguments],
    ) -> None:
        from zsvec.settings.settings import Settings, did_you_mean  # slow to import

        if unknown := settings.keys() - Settings.model_fields.keys():
            name = min(unknown)
            raise InvalidInputError(f"there is no setting {name!r}{did_you_mean(name, Settings.model_fields)}")
        self.image = image
        self._store, self._encoders, self._settings = store, encoders, settings
        # datasets caches results by the pickled function, and the store may have changed since an equal function ran.
        self._id = uuid.uuid4().hex

    def __call__(self, batch: MutableMapping[str, Any]) -> Any:
        """Returns the batch with columns for the predictions.

        Args:
            batch: Columns of equal length by name: lists, arrays or series. An image is a path, bytes, a PIL image or
                an array as for `Classifier.classify`, or an encoded image of ``datasets``, a mapping with ``bytes`` and
                ``path``.

        Returns:
            All columns of the batch, and these lists, which have the type of their column in every row: the fields
            ``label``, ``nearest``, ``probability``, ``unknown``, ``novelty``, ``novelty_basis``, ``distance``,
            ``calibration``, ``error`` and ``revision`` of `zsvec.types.Prediction`. Where a prediction has ``None``,
            text is empty, a number is NaN, and the revision is 0. If images of the store may have several labels,
            there is also ``labels``, a list of names in each row.

        Raises:
            InvalidInputError: The batch has no column of images, is one row, or has a column named like a result.
            StoreLockedError: The folder of the store is open in another process, or with other arguments in this one.
            ZSVecError: As `zsvec.open` and `Classifier.classify`. An unreadable image is no error, but has ``error``.
        """
        if not isinstance(batch, MutableMapping):
            raise InvalidInputError(f"a batch must be a dict of columns, got {type(batch).__name__}. Give its columns")
        if self.image not in batch:
            raise InvalidInputError(f"a batch must have a column {self.image!r}, got {shown([*batch])}. Set image")
        if isinstance(batch[self.image], str | bytes):  # a row of datasets, for example
            raise InvalidInputError(
                f"the column {self.image!r} must have a value for each image, got one value. Map with batched=True"
            )
        if taken := sorted({*_MISSING, "labels"} & set(batch)):
            raise InvalidInputError(
                f"a batch must have no column named like a result, got {taken}. Rename or remove it"
            )
        # datasets decodes a column when it is first read, and would then encode the images again for the result.
        images: Any = batch.copy()[self.image]  # type: ignore[attr-defined]
        opening = self._opening()  # in use until the end of this call
        classifier = opening.classifier()
        predictions = classifier.classify([_image(value) for value in images], errors="report")
        columns: dict[str, list[Any]] = {name: [_value(one, name) for one in predictions] for name in _MISSING}
        if classifier.labels == "many":
            columns["labels"] = [[name for name, _ in one.labels] for one in predictions]
        return batch | columns  # type: ignore[operator]

    def __enter__(self) -> Classify:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the store in this process, for all functions with equal arguments. The next batch opens it again."""
        with _lock:
            opening = _taken(self._arguments())
        if opening is not None:
            opening.close()

    def _opening(self) -> _Opening:
        arguments = self._arguments()
        with _lock:
            _opened.append(_taken(arguments) or _Opening(arguments))
            opening, dropped = _opened[-1], _opened[:-_KEPT]
            del _opened[:-_KEPT]
        del dropped  # closes it, while other stores can be found
        return opening

    def _arguments(self) -> tuple[Any, ...]:
        store = None if self._store is None else os.fspath(self._store)
        # The folder decides what a relative path means, and which zsvec.toml is read.
        folder = None if store is not None and os.path.isabs(store) else os.getcwd()  # noqa: PTH109, PTH117 - a text
        return folder, store, self._encoders, self._settings


def _taken(arguments: tuple[Any, ...]) -> _Opening | None:
    """Takes an opening from the list."""
    found = next((one for one in _opened if one.arguments == arguments), None)
    if found is not None:
        _opened.remove(found)
    return found


def _image(value: Any) -> Any:
    """Returns the content, or else the path, of an encoded image of ``datasets``; any other image as it is."""
    return value.get("bytes") or value.get("path") if isinstance(value, Mapping) else value


def _value(prediction: Prediction, name: str) -> str | float | int | bool:
    value: str | float | int | bool | None = getattr(prediction, name)
    return _MISSING[name] if value is None else value
