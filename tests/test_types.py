from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, asdict, replace
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from zsvec.errors import InvalidInputError
from zsvec.types import (
    MAX_IMAGES,
    CandidateSets,
    Category,
    ExpertOutput,
    Fingerprint,
    Neighbor,
    Prediction,
    ThresholdProgress,
    contents,
    counted,
    expert_name,
    kind_of,
)

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
    novelty_basis="references",
    distance=0.25,
    ranking=(("cat", 0.8125), ("dog", 0.125), ("fox", 0.0625)),
    candidate_sets=CandidateSets(entries=(("cat", 0.5), ("dog", 0.93)), up_to=0.97),
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


# ---- answers of a tree

PATH = (("animal", 0.95), ("cat family", 0.9), ("cat", 0.8125))


@pytest.mark.parametrize(
    ("prediction", "min_accuracy", "answer", "words"),
    [
        (replace(CAT, path=PATH), 0.8, ("cat", 0.8125), "cat"),
        (replace(CAT, path=PATH), 0.9, ("cat family", 0.9), "some cat family"),
        (replace(CAT, path=PATH), 0.91, ("animal", 0.95), "some animal"),
        (replace(CAT, path=PATH), 1, None, None),
        (replace(STRANGE, path=PATH[:2]), 0.8, ("cat family", 0.9), "another kind of cat family"),
        (replace(STRANGE, path=PATH[:2]), 0.91, ("animal", 0.95), "another kind of animal"),
        (CAT, 0.8, ("cat", 0.8125), "cat"),
        (CAT, 0.9, None, None),
        (STRANGE, 0.8, None, None),
        (BROKEN, 0.8, None, None),
    ],
)
def test_an_answer_is_the_deepest_node_that_is_probable_enough(
    prediction: Prediction, min_accuracy: float, answer: tuple[str, float] | None, words: str | None
) -> None:
    assert prediction.at(min_accuracy) == answer
    assert (kind_of(prediction, answer[0]) if answer else None) == words


# ---- uncertainty


def doubtful(first: float, second: float, *, weight: float = 1.0, unknown: bool = False) -> Prediction:
    says = ExpertOutput(weight=weight, entropy=0, ranking=(("a", 1.0),), neighbors=())
    other = ExpertOutput(weight=1 - weight, entropy=0, ranking=(("b", 1.0),), neighbors=())
    ranking = (("a", first), ("b", second))
    return Prediction(source="", nearest="a", ranking=ranking, experts={"x": says, "y": other}, unknown=unknown)


def test_uncertainty() -> None:
    for prediction, why in (
        (doubtful(0.9, 0.1), None),
        (doubtful(0.6, 0.4), "close"),
        (doubtful(0.65, 0.35), None),
        (doubtful(0.9, 0.1, weight=0.4), "disputed"),
        (doubtful(0.9, 0.1, weight=0.6), None),
        (doubtful(0.9, 0.1, unknown=True), "unknown"),
        (BROKEN, None),
        (replace(doubtful(0.5, 0.5, weight=0.4), labels=(("a", 0.9), ("b", 0.8))), None),
        (replace(doubtful(0.9, 0.1), labels=(("a", 0.9), ("b", 0.6))), "close"),
        (replace(doubtful(0.9, 0.1), labels=(("a", 0.4),)), "close"),
        (Prediction(source="", nearest="a", ranking=(("a", 1.0),)), None),
        (Prediction(source="", nearest="a", ranking=(("a", 0.6),)), "close"),  # of which only the first is told
    ):
        assert prediction.uncertainty == why
    assert (BROKEN.margin, BROKEN.at_odds) == (0.0, 0.0)


# ---- sets of candidates


def test_candidates_are_the_categories_that_have_entered_at_the_coverage() -> None:
    sets = CandidateSets(entries=(("a", 0.55), ("b", 0.93), ("c", 0.96)), up_to=0.97)
    prediction = Prediction(source="", candidate_sets=sets)
    assert prediction.candidates() == ("a", "b")
    for coverage, found in (
        (1e-9, ("a",)),  # the most probable category is always one
        (0.55, ("a",)),
        (0.92, ("a",)),
        (0.921, ("a", "b")),  # counts as 0.93
        (0.93, ("a", "b")),
        (0.97, ("a", "b", "c")),
        (0.971, None),
        (0.9999, None),
    ):
        assert prediction.candidates(coverage) == found


def test_without_sets_nothing_is_promised() -> None:
    assert BROKEN.candidates() is None
    for coverage in (0, 1, -0.5, 95, math.nan, True, "0.9", None):
        for prediction in (CAT, BROKEN):
            with pytest.raises(InvalidInputError):
                prediction.candidates(coverage)  # type: ignore[arg-type]


# ---- the objects of --json (design.md, section 8)


def test_prediction_to_dict() -> None:
    assert CAT.to_dict() == {
        "source": "photo.jpg",
        "label": "cat",
        "nearest": "cat",
        "probability": 0.8125,
        "unknown": False,
        "novelty": 0.125,
        "novelty_basis": "references",
        "distance": 0.25,
        "ranking": [
            {"label": "cat", "probability": 0.8125},
            {"label": "dog", "probability": 0.125},
            {"label": "fox", "probability": 0.0625},
        ],
        "candidate_sets": {
            "entries": [{"label": "cat", "coverage": 0.5}, {"label": "dog", "coverage": 0.93}],
            "up_to": 0.97,
        },
        "path": [],
        "labels": [],
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
        "threshold_progress": None,
        "incomplete": [],
        "stale_seconds": 0.0,
        "revision": None,
        "error": None,
        "hash": None,
    }


def test_prediction_of_an_unknown_or_unreadable_image_to_dict() -> None:
    assert STRANGE.to_dict() == {**CAT.to_dict(), "label": None, "unknown": True, "novelty": 0.7}
    early = replace(CAT, threshold_progress=ThresholdProgress(9, 19))
    progress = {"images": 9, "needed": 19, "one_scene": 0, "copied": 0}
    assert early.to_dict() == {**CAT.to_dict(), "threshold_progress": progress}
    empty: dict[str, object] = {"ranking": [], "path": [], "labels": [], "experts": {}, "incomplete": []}
    values = {"source": "broken.jpg", "error": "broken.jpg is empty", "unknown": False, "calibration": "none"}
    assert BROKEN.to_dict() == dict.fromkeys(CAT.to_dict()) | empty | values | {"stale_seconds": 0.0}


def test_prediction_keys_are_those_of_the_design() -> None:
    for prediction in (CAT, BROKEN, STRANGE):
        written = prediction.to_dict()
        assert list(written) == [
            *("source", "label", "nearest", "probability", "unknown", "novelty", "novelty_basis"),
            *(
                "distance",
                "ranking",
                "candidate_sets",
                "path",
                "labels",
                "experts",
                "fusion",
                "calibration",
                "threshold_progress",
            ),
            *("incomplete", "stale_seconds", "revision", "error", "hash"),
        ]
        for expert in written["experts"].values():
            assert list(expert) == ["weight", "entropy", "ranking", "neighbors"]


def test_the_progress_towards_a_threshold_says_how_many_images_are_needed() -> None:
    assert str(ThresholdProgress(9, 19)).startswith("9 of 19 images until ")
    assert str(ThresholdProgress(0, 1)).startswith("0 of 1 image until ")
    assert ThresholdProgress(9, 19).not_counted == ""
    similar = ThresholdProgress(0, 19, one_scene=40, copied=2)
    assert "40 images of categories that show one scene, 2 images with a copy" in str(similar)
    early = replace(CAT, threshold_progress=ThresholdProgress(9, 19))
    assert "9 of 19 images" in early._repr_html_()
    assert (str(early), repr(early)) == (str(CAT), repr(CAT))  # one line of many in a batch


@pytest.mark.parametrize(
    "stored",
    [
        *(None, [], "9 of 19", 9, {}, {"images": 9}, {"images": "9", "needed": "19"}, {"images": 9.0, "needed": 19.0}),
        *({"images": -1, "needed": 19}, {"images": 19, "needed": 19}, {"images": 20, "needed": 19}),
        *({"images": 0, "needed": MAX_IMAGES + 1}, {"images": None, "needed": 19}, {"images": [9], "needed": 19}),
    ],
    ids=str,
)
def test_an_invalid_progress_is_ignored(stored: object) -> None:
    assert ThresholdProgress.from_dict(stored) is None


def test_the_progress_is_read_as_it_was_stored() -> None:
    assert ThresholdProgress.from_dict({"images": 9, "needed": 19}) == ThresholdProgress(9, 19)
    progress = ThresholdProgress(9, 19, one_scene=3, copied=2)
    assert ThresholdProgress.from_dict(asdict(progress)) == progress
    for wrong in (-1, 0.5, "1", None, 10**30):
        assert ThresholdProgress.from_dict({**asdict(progress), "copied": wrong}) is None


@pytest.mark.parametrize(
    ("references", "said"),
    [
        ({"clip:text": 3, "clip:image": 9, "dino:image": 9}, "9 images and 3 texts"),
        ({"clip:image": 1, "dino:image": 0}, "1 image"),
        ({"clip:text": 1}, "1 text"),
        ({"clip:image": 0}, ""),
        ({}, ""),
    ],
    ids=str,
)
def test_references_are_counted_as_images_and_texts(references: dict[str, int], said: str) -> None:
    assert contents(references) == said


def test_category_to_dict() -> None:
    assert PANDA.to_dict() == {
        "category": "red panda",
        "version": 3,
        "updated": "2023-11-14T22:13:20+00:00",
        "texts": ["a small reddish arboreal mammal", "红熊猫"],
        "references": {"clip:text": 2, "clip:image": 5},
    }


def test_dicts_are_json() -> None:
    values: list[Prediction | Category] = [CAT, BROKEN, PANDA]
    for value in values:
        written = value.to_dict()
        assert json.loads(json.dumps(written, allow_nan=False)) == written


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


def test_prediction_as_text() -> None:
    others = "(then dog 12.5%, fox 6.2%)"
    assert str(CAT) == f"photo.jpg: cat 81.2% {others}, novelty 0.12"
    assert str(replace(CAT, ranking=(*CAT.ranking, ("owl", 0.0)))) == str(CAT)  # three categories are enough
    assert str(replace(CAT, ranking=(("cat", 0.8125),))) == "photo.jpg: cat 81.2%, novelty 0.12"
    assert str(STRANGE) == "photo.jpg: unknown; nearest is cat, novelty 0.70"
    assert str(replace(STRANGE, labels=(("dog", 0.5),))) == f"{STRANGE}; labels dog"
    assert str(replace(CAT, novelty=None)) == f"photo.jpg: cat 81.2% {others}, distance 0.25"
    assert str(BROKEN) == "broken.jpg: not classified, broken.jpg is empty"


def test_labels_of_a_prediction() -> None:
    both = replace(CAT, labels=(("cat", 0.75), ("dog", 0.5)))
    assert both.to_dict()["labels"] == [{"label": "cat", "probability": 0.75}, {"label": "dog", "probability": 0.5}]
    assert str(both) == f"{CAT}; labels cat 75.0%, dog 50.0%"
    assert "cat 75.0%, dog 50.0%" in both._repr_html_()


MARKUP = "<img src=x onerror=alert(1)>&\"'\n\u202e$\\href{javascript:alert(1)}{a}$\udcff"


def test_repr_is_one_short_line() -> None:
    assert repr(CAT) == "Prediction(source='photo.jpg', label='cat', probability=0.812, novelty=0.125)"
    assert repr(replace(CAT, novelty=None)) == (
        "Prediction(source='photo.jpg', label='cat', probability=0.812, distance=0.25)"
    )
    assert repr(STRANGE) == ("Prediction(source='photo.jpg', unknown=True, nearest='cat', novelty=0.7)")
    assert repr(BROKEN) == "Prediction(source='broken.jpg', error='broken.jpg is empty')"
    assert repr(PANDA) == "Category(name='red panda', images=5, texts=2, version=3)"


@pytest.mark.parametrize("text", [MARKUP, MARKUP * 1000], ids=["odd", "long"])
def test_text_from_a_store_or_a_file_name_stays_text_in_a_notebook(text: str) -> None:
    expert = replace(IMAGE, ranking=((text, 1.0),), neighbors=(Neighbor(text, 0.9, text, text),))
    answer = replace(CAT, source=text, label=text, nearest=text, ranking=((text, 1.0),), experts={text: expert})
    values: list[Any] = [
        answer,
        replace(answer, label=None, unknown=True, incomplete=(text,)),
        replace(BROKEN, source=text, error=text),
        replace(PANDA, name=text, texts=(text,) * 9, references={f"{text}:image": 3}),
    ]
    for value in values:
        seen = Seen()
        seen.feed(html := value._repr_html_())
        seen.close()
        assert set(seen.tags) <= {"table", "caption", "b", "tr", "td", "meter"}
        assert seen.tags["table"] == {"class": "tex2jax_ignore mathjax_ignore"}  # MathJax would follow \\href
        assert "<img src=x onerror=alert(1)>&\"'" in seen.text
        for written in (html, repr(value)):
            assert len(written) < 10_000
            assert written.isprintable()  # so neither a line break nor a mark of the writing direction is in it
            written.encode()


class Seen(HTMLParser):
    """The tags of a piece of HTML with their attributes, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: dict[str, dict[str, str | None]] = {}
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = dict(attrs)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_notebook_shows_the_answer_and_its_evidence() -> None:
    for part in ("photo.jpg: cat", "81.2%", "fox", "novelty", "clip:text", "weight 75%", "cat: a.jpg (0.90)"):
        assert part in CAT._repr_html_()
    strange = replace(STRANGE, labels=(("dog", 0.5),), experts={})._repr_html_()
    assert "photo.jpg: unknown" in strange
    assert "cat" in strange
    assert "%" not in strange
    assert "<meter" not in strange
    assert "broken.jpg is empty" in BROKEN._repr_html_()
    for part in ("red panda", "a small reddish arboreal mammal", "5 references", "2023-11-14 22:13 UTC, version 3"):
        assert part in PANDA._repr_html_()
    assert "and 4 more texts" in replace(PANDA, texts=("a",) * 9)._repr_html_()


def test_fingerprint_as_text() -> None:
    fingerprint = Fingerprint(model="org/model", revision="abc123", dim=512, preprocessing="resize 224")
    assert str(fingerprint) == "org/model@abc123 (512-d, resize 224)"
    assert str(replace(fingerprint, revision=None)) == "org/model (512-d, resize 224)"


def test_expert_name() -> None:
    assert expert_name("clip", "text") == "clip:text"
    assert expert_name("dino", "image") == "dino:image"


# ---- values


def test_frozen_keyword_only_and_equal_by_value() -> None:
    fingerprint = Fingerprint(model="m", revision=None, dim=2, preprocessing="")
    for value, name in ((CAT, "label"), (PANDA, "version"), (TEXT, "weight"), (NEAR, "hash"), (fingerprint, "dim")):
        before = getattr(value, name)
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, None)
        with pytest.raises(FrozenInstanceError):
            delattr(value, name)
        assert getattr(value, name) is before
    keyword_only: tuple[Any, ...] = (CAT, PANDA, TEXT, fingerprint)
    for value in keyword_only:
        with pytest.raises(TypeError, match="positional argument"):
            type(value)("x", 1)
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
