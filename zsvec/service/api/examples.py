"""Examples of what the main routes take and give, for the description of the API."""

from __future__ import annotations

from typing import Any

# One of red, as a PNG.
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
_HASH = "c2a6f41b8e5d60b5c0d3a97b1f5f2f7f6f0b8c3f5a1e4d7c9b2a8f6e3d1c0b9a"
_CATEGORY = {
    "category": "red panda",
    "version": 3,
    "updated": "2026-02-03T10:15:00+00:00",
    "texts": ["a small reddish arboreal mammal"],
    "references": {"clip:text": 1, "clip:image": 8, "dino:image": 8},
}
_REFERENCE = {
    "category": "red panda",
    "hash": _HASH,
    "modality": "image",
    "source": "a.jpg",
    "prompt": None,
    "group": None,
    "added": "2026-02-03T10:15:00+00:00",
    "by": "ann",
    "experts": ["clip:image", "dino:image"],
}
_PREDICTION = {
    "source": "photo.jpg",
    "label": "red panda",
    "nearest": "red panda",
    "probability": 0.93,
    "unknown": False,
    "novelty": 0.12,
    "distance": 0.21,
    "ranking": [{"label": "red panda", "probability": 0.93}, {"label": "raccoon", "probability": 0.05}],
    "experts": {},
    "fusion": "loglinear",
    "calibration": "current",
    "incomplete": [],
    "stale_seconds": 0.0,
    "error": None,
    "hash": _HASH,
}
_CHANGE = {
    "id": "0b9f6a52-3a0e-4f6a-8d3c-5b1f3f4f8a11",
    "what": "add",
    "at": "2026-02-03T10:15:00+00:00",
    "by": "ann",
    "categories": ["red panda"],
    "undone": False,
}
_CATEGORY_PATH = "/v1/categories/{name}"
_REFERENCE_PATH = "/v1/categories/{name}/references/{hash}"

# By path and method: a request, and an answer.
EXAMPLES: dict[tuple[str, str], tuple[Any, Any]] = {
    ("/v1/classify", "post"): ({"images": [{"data": _PIXEL, "name": "photo.jpg"}]}, [_PREDICTION]),
    ("/v1/categories", "get"): (None, [_CATEGORY]),
    (_CATEGORY_PATH, "get"): (None, {**_CATEGORY, "metadata": {"family": "Ailuridae"}, "stored": [_REFERENCE]}),
    (_CATEGORY_PATH, "put"): (
        {
            "texts": ["a small reddish arboreal mammal"],
            "images": [{"data": _PIXEL, "name": "a.jpg"}],
            "metadata": {"family": "Ailuridae"},
        },
        _CATEGORY,
    ),
    (_CATEGORY_PATH, "patch"): ({"name": "lesser panda"}, {**_CATEGORY, "category": "lesser panda"}),
    ("/v1/categories/{name}/references", "get"): (None, [_REFERENCE]),
    ("/v1/categories/{name}/references", "post"): ({"images": [_PIXEL]}, _CATEGORY),
    (_REFERENCE_PATH, "get"): (None, _REFERENCE),
    (_REFERENCE_PATH, "patch"): ({"category": "raccoon"}, {**_CATEGORY, "category": "raccoon"}),
    ("/v1/inbox", "get"): (
        None,
        [
            {
                "hash": _HASH,
                "source": "photo.jpg",
                "added": "2026-02-03T10:15:00+00:00",
                "width": 640,
                "height": 480,
                "urgency": 0.8,
                "prediction": {**_PREDICTION, "label": None, "unknown": True, "novelty": 0.7},
            }
        ],
    ),
    ("/v1/inbox", "post"): (
        {"images": [{"data": _PIXEL, "name": "photo.jpg"}]},
        [{"source": "photo.jpg", "hash": _HASH, "error": None}],
    ),
    ("/v1/inbox/label", "post"): ({"hashes": [_HASH], "category": "red panda"}, _CATEGORY),
    ("/v1/inbox/dismiss", "post"): ({"hashes": [_HASH]}, None),
    ("/v1/correct", "post"): ({"images": [{"data": _PIXEL, "name": "photo.jpg"}]}, _CATEGORY),
    ("/v1/history", "get"): (None, [_CHANGE]),
    ("/v1/undo", "post"): ({"category": "red panda"}, {**_CHANGE, "undone": True}),
}
