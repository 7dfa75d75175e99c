from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from zsvec.types import Category, ExpertOutput, Fingerprint, Neighbor, Prediction, counted, expert_name

TEXT = ExpertOutput(
    weight=0.75,
    entropy=0.5,
    ranking=(("cat", 0.8), ("dog", 0.2)),
    neighbors=(Neighbor("cat", 0.31, "a small feline", "c1"), Neighbor("dog", 0.25, "a canine", "d1")),
)
NEAR = Neighbor("cat", 0.9, "a.jpg", "a1")
IMAGE = ExpertOutput(weight=0.25, entropy=0.0, ranking=(("cat", 1.0),), neighbors=(NEAR,))

CAT = Prediction(
    source="photo.jpg",
    label="cat",
    nearest="cat",
    probability=0.8125,
    unknown=False,
    novelty=0.125,
    distance=0.25,
    ranking=(("cat", 0.8125), ("dog", 0.125), ("fox", 0.0625)),
    experts={"clip:text": TEXT, "dino:image": IMAGE},
    fusion="log_linear",
    calibration="current",
)
STRANGE = replace(CAT, label=None, unknown=True, novelty=0.7)
BROKEN = Prediction(source="broken.jpg", error="broken.jpg is empty")

PANDA = Category(
    name="red panda",
    version=3,
    rev=1_700_000_000_123_456,
    write_ids=("g1", "g2"),
    texts=("a small reddish arboreal mammal", "红熊猫"),
    references={"clip:text": 2, "clip:image": 5},
    metadata={"owner": "zoo"},
)


# ---- the objects of --json (design.md, section 8)


def test_prediction_to_dict() -> None:
    assert CAT.to_dict() == {
        "source": "photo.jpg",
        "label": "cat",
        "nearest": "cat",
        "probability": 0.8125,
        "unknown": False,
        "novelty": 0.125,
        "distance": 0.25,
        "ranking": [
            {"label": "cat", "probability": 0.8125},
            {"label": "dog", "probability": 0.125},
            {"label": "fox", "probability": 0.0625},
        ],
        "experts": {
            "clip:text": {
                "weight": 0.75,
                "entropy": 0.5,
                "ranking": [{"label": "cat", "probability": 0.8}, {"label": "dog", "probability": 0.2}],
                "neighbors": [
                    {"category": "cat", "similarity": 0.31, "source": "a small feline", "hash": "c1"},
                    {"category": "dog", "similarity": 0.25, "source": "a canine", "hash": "d1"},
                ],
            },
            "dino:image": {
                "weight": 0.25,
                "entropy": 0.0,
                "ranking": [{"label": "cat", "probability": 1.0}],
                "neighbors": [{"category": "cat", "similarity": 0.9, "source": "a.jpg", "hash": "a1"}],
            },
        },
        "fusion": "log_linear",
        "calibration": "current",
        "incomplete": [],
        "stale_seconds": 0.0,
        "error": None,
        "hash": None,
    }


def test_unknown_prediction_to_dict() -> None:
    assert STRANGE.to_dict() == {**CAT.to_dict(), "label": None, "unknown": True, "novelty": 0.7}


def test_prediction_of_an_unreadable_image_to_dict() -> None:
    assert BROKEN.to_dict() == {
        "source": "broken.jpg",
        "label": None,
        "nearest": None,
        "probability": None,
        "unknown": False,
        "novelty": None,
        "distance": None,
        "ranking": [],
        "experts": {},
        "fusion": None,
        "calibration": "none",
        "incomplete": [],
        "stale_seconds": 0.0,
        "error": "broken.jpg is empty",
        "hash": None,
    }


@pytest.mark.parametrize("prediction", [CAT, BROKEN, STRANGE])
def test_prediction_keys_are_those_of_the_design(prediction: Prediction) -> None:
    said = prediction.to_dict()
    assert list(said) == [
        *("source", "label", "nearest", "probability", "unknown", "novelty", "distance", "ranking"),
        *("experts", "fusion", "calibration", "incomplete", "stale_seconds", "error", "hash"),
    ]
    for expert in said["experts"].values():
        assert list(expert) == ["weight", "entropy", "ranking", "neighbors"]
        assert [list(place) for place in expert["ranking"]] == [["label", "probability"]] * len(expert["ranking"])
    assert [list(place) for place in said["ranking"]] == [["label", "probability"]] * len(said["ranking"])


def test_category_to_dict() -> None:
    assert PANDA.to_dict() == {
        "category": "red panda",
        "version": 3,
        "updated": "2023-11-14T22:13:20+00:00",
        "texts": ["a small reddish arboreal mammal", "红熊猫"],
        "references": {"clip:text": 2, "clip:image": 5},
    }


def test_category_keys_are_those_of_the_design() -> None:
    assert list(PANDA.to_dict()) == ["category", "version", "updated", "texts", "references"]


@pytest.mark.parametrize("value", [CAT, BROKEN, PANDA])
def test_dicts_are_json(value: Prediction | Category) -> None:
    said = value.to_dict()
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def test_dicts_are_copies() -> None:
    PANDA.to_dict()["references"]["clip:text"] = 0
    PANDA.to_dict()["texts"].append("other")
    CAT.to_dict()["experts"].clear()
    CAT.to_dict()["ranking"].clear()
    assert PANDA.references == {"clip:text": 2, "clip:image": 5}
    assert PANDA.texts == ("a small reddish arboreal mammal", "红熊猫")
    assert list(CAT.experts) == ["clip:text", "dino:image"]
    assert len(CAT.ranking) == 3


# ---- read by people


@pytest.mark.parametrize(
    ("prediction", "text"),
    [
        (CAT, "photo.jpg: cat 81.2% (then dog 12.5%, fox 6.2%), novelty 0.12"),
        (replace(CAT, ranking=(*CAT.ranking, ("owl", 0.0))), str(CAT)),  # three categories are enough
        (replace(CAT, ranking=(("cat", 0.8125),)), "photo.jpg: cat 81.2%, novelty 0.12"),
        (
            STRANGE,
            "photo.jpg: unknown; nearest is cat 81.2% (then dog 12.5%, fox 6.2%), novelty 0.70",
        ),
        (replace(CAT, novelty=None), "photo.jpg: cat 81.2% (then dog 12.5%, fox 6.2%), distance 0.25"),
        (BROKEN, "broken.jpg: not classified, broken.jpg is empty"),
    ],
)
def test_prediction_as_text(prediction: Prediction, text: str) -> None:
    assert str(prediction) == text


@pytest.mark.parametrize(
    ("revision", "text"),
    [("abc123", "org/model@abc123 (512-d, resize 224)"), (None, "org/model (512-d, resize 224)")],
)
def test_fingerprint_as_text(revision: str | None, text: str) -> None:
    assert str(Fingerprint(model="org/model", revision=revision, dim=512, preprocessing="resize 224")) == text


def test_expert_name() -> None:
    assert expert_name("clip", "text") == "clip:text"
    assert expert_name("dino", "image") == "dino:image"


# ---- values


@pytest.mark.parametrize(
    ("value", "attribute"),
    [
        (CAT, "label"),
        (PANDA, "version"),
        (TEXT, "weight"),
        (TEXT.neighbors[0], "similarity"),
        (Fingerprint(model="m", revision=None, dim=2, preprocessing=""), "dim"),
    ],
)
def test_frozen(value: object, attribute: str) -> None:
    before = getattr(value, attribute)
    with pytest.raises(FrozenInstanceError):
        setattr(value, attribute, None)
    with pytest.raises(FrozenInstanceError):
        delattr(value, attribute)
    assert getattr(value, attribute) is before


@pytest.mark.parametrize("value", [CAT, PANDA, TEXT, Fingerprint(model="m", revision=None, dim=2, preprocessing="")])
def test_keyword_only(value: Any) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        type(value)("x", 1)


def test_equal_by_value() -> None:
    assert replace(CAT) == CAT
    assert replace(CAT, novelty=0.2) != CAT
    assert {NEAR, replace(NEAR)} == {NEAR}


def test_defaults_are_not_shared() -> None:
    first, second = Prediction(source="a"), Prediction(source="b")
    assert first.experts == {}
    assert first.experts is not second.experts


def test_updated_is_the_last_commit_in_utc() -> None:
    assert PANDA.updated == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert replace(PANDA, rev=0).to_dict()["updated"] == "1970-01-01T00:00:00+00:00"


def test_one_is_singular() -> None:
    assert [counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [counted(n, "copy", "copies") for n in (0, 1, 2)] == ["0 copies", "1 copy", "2 copies"]
