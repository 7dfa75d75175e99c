"""Boxes of a detector as regions of an image, and predictions in a copy of the detector's result.

Boxes are an array, or an object with ``xyxy``, such as `supervision.Detections` or the boxes of a result of
`ultralytics`. Neither library is imported.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeGuard, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from zsvec.errors import InvalidInputError, shown
from zsvec.inputs.categories import as_numbers
from zsvec.inputs.images import ImageInput, Region, as_array, is_one_image
from zsvec.types import Prediction, TrackId, TrackPrediction

MAX_BOXES = 10_000
"""Maximum number of boxes in one image."""

_KEPT = "detector_class_name"


class SupportsBoxes(Protocol):
    """An object with boxes, such as the boxes of a result of ultralytics."""

    @property
    def xyxy(self) -> Any:
        """Left, top, right and bottom of each box in pixels of the upright image: an array or a tensor ``(n, 4)``."""
        ...


class SupportsDetections(Protocol):
    """A result of a detector with data of each box, such as `supervision.Detections`.

    Attributes:
        xyxy: As in `SupportsBoxes`.
        confidence: Confidence of each box, 0 to 1, or ``None``.
        class_id: Number of the detector's class of each box, or ``None``.
        data: Lists or arrays with an entry for each box.
    """

    xyxy: Any
    confidence: Any
    class_id: Any
    data: dict[str, Any]


Boxes: TypeAlias = ArrayLike | SupportsBoxes
Detections = TypeVar("Detections", bound=SupportsDetections)


def regions_of(image: ImageInput, boxes: object, margin: float = 0.0) -> list[Region]:
    """Returns the regions of an image in the order of its boxes. A box is checked when its region is read.

    Args:
        image: The image.
        boxes: `Boxes` or `SupportsDetections`.
        margin: As `Region.margin`.

    Raises:
        InvalidInputError: The value is not boxes, or there are more than `MAX_BOXES`; or the value is not one image.
    """
    if not is_one_image(image):
        raise InvalidInputError(f"boxes must belong to one image. Got {shown(image)}; classify each image by itself")
    given = getattr(boxes, "xyxy", boxes)
    try:
        array: Any = np.empty((0, 4)) if isinstance(given, Sequence) and not given else as_numbers(as_array(given))
    except Exception as exc:  # arrays of other libraries may raise anything
        raise InvalidInputError(f"boxes must be numbers of the shape (n, 4). Got {shown(given)} instead") from exc
    if array.ndim != 2 or array.shape[1] != 4:
        raise InvalidInputError(
            f"boxes must be left, top, right and bottom of each, of the shape (n, 4). Got the shape {array.shape}"
        )
    if len(array) > MAX_BOXES:
        raise InvalidInputError(f"an image may have at most {MAX_BOXES:,} boxes, got {len(array):,}: divide them")
    return [Region(image, tuple(box), margin=margin) for box in array.tolist()]


def is_detections(boxes: object) -> TypeGuard[SupportsDetections]:
    """Returns whether boxes come with the data of a detector, which the predictions can join."""
    return hasattr(boxes, "xyxy") and hasattr(boxes, "confidence") and isinstance(getattr(boxes, "data", 0), Mapping)


def track_ids(boxes: object, ids: object, number: int) -> list[TrackId | None]:
    """Returns the id of the track of each box; ``None`` for a box that has no track yet, whose id is negative or NaN.

    Args:
        boxes: Boxes, or detections with ``tracker_id``.
        ids: Integers or texts; ``None`` for the ids of the detections.
        number: Number of boxes.

    Raises:
        InvalidInputError: There are no ids, one is neither an integer nor a text, there are more or fewer than boxes,
            or two boxes have the same id.
    """
    given = getattr(boxes, "tracker_id", None) if ids is None else ids
    if given is None and number:
        raise InvalidInputError(
            "each box must have the id of its track, got none. Give detections after a tracker, with tracker_id; or ids"
        )
    try:
        each = [] if given is None else given if isinstance(given, Sequence) else as_array(given).tolist()
        found = [_track_id(one) for one in each]
    except Exception as exc:  # arrays of other libraries may raise anything
        raise InvalidInputError(f"ids of tracks must be integers or texts. Got {shown(given)} instead") from exc
    if len(found) != number:
        raise InvalidInputError(f"each box must have one id of a track. Got {number} boxes and {len(found)} ids")
    tracks = [one for one in found if one is not None]
    if len(set(tracks)) < len(tracks):
        raise InvalidInputError(f"the boxes of an image must have different ids. Got {shown(found)}")
    return found


def _track_id(value: object) -> TrackId | None:
    """Returns an id as an int or str, also of numpy or a whole float; ``None`` for a negative number, NaN or None."""
    if value is None or isinstance(value, str):
        return value
    number = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise TypeError(f"{value!r} is no id")
    if number < 0 or math.isnan(number):
        return None
    if number != int(number):
        raise ValueError(f"{value!r} is no id")
    return int(number)


def with_predictions(detections: Detections, predictions: Sequence[Prediction | TrackPrediction]) -> Detections:
    """Returns a copy of detections with predictions: ``confidence`` and, in the data, ``class_name``, for annotators.

    Where the category is unknown or not locked, or the box is unusable, name and confidence of the detector stay.
    ``zsvec`` in the data has all predictions, and ``detector_class_name`` the names of the detector. ``class_id``
    stays.
    """
    copied, number = copy.copy(detections), len(predictions)
    ids = ["unknown"] * number if detections.class_id is None else [str(one) for one in detections.class_id]
    names = [str(name) for name in detections.data.get(_KEPT, detections.data.get("class_name", ids))]
    before = [math.nan] * number if detections.confidence is None else [float(one) for one in detections.confidence]
    both = list(zip(predictions, names, before, strict=True))
    own = np.empty(number, dtype=object)
    own[:] = predictions
    copied.data = {
        **detections.data,
        "class_name": np.array([name if one.label is None else one.label for one, name, _ in both], dtype=np.str_),
        "zsvec": own,
        _KEPT: np.array(names, dtype=np.str_),
    }
    kept = np.array([was if one.label is None else one.probability for one, _, was in both], dtype=np.float32)
    copied.confidence = kept
    return copied
