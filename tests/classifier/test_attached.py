"""A team attaches a collection that another program has embedded with the same encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import models

from tests.store.support import LocalDeployment
from tests.support import COLOURS, classifier_over, coloured, state, two_encoders
from zsvec.classifier import Classifier
from zsvec.encoders import EncoderSet
from zsvec.errors import EncoderMismatchError, InvalidInputError, StoreError
from zsvec.inputs.images import content_hash
from zsvec.settings.settings import load_settings
from zsvec.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

IMAGES = 12  # of each colour


@pytest.fixture
def deployment() -> Iterator[LocalDeployment]:
    opened = LocalDeployment()
    yield opened
    opened.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Mapping[int, tuple[str, Path]]:
    """Colour and file of each point."""
    found = {}
    for number, colour in enumerate(COLOURS):
        for i in range(IMAGES):
            file = tmp_path / f"{colour} {i}.png"
            coloured(colour, 100 * number + i).save(file)
            found[100 * number + i + 1] = colour, file
    return found


def clip_vectors(pictures: Mapping[int, tuple[str, Path]]) -> dict[int, list[float]]:
    clip, _ = two_encoders()
    with classifier_over(Store(LocalDeployment().backend(), "other")) as other:
        embedded = other.embed_stream([file for _, file in pictures.values()])
        return {i: one.vectors[clip.name].tolist() for i, one in zip(pictures, embedded, strict=True)}


@pytest.fixture
def shop(deployment: LocalDeployment, pictures: Mapping[int, tuple[str, Path]]) -> str:
    """A collection with the vectors of ``clip`` alone."""
    vectors = clip_vectors(pictures)
    deployment.client.create_collection(
        "shop", vectors_config=models.VectorParams(size=32, distance=models.Distance.COSINE)
    )
    points = [
        models.PointStruct(id=i, vector=vectors[i], payload={"colour": colour, "file": str(file)})
        for i, (colour, file) in pictures.items()
    ]
    deployment.client.upsert("shop", points, wait=True)
    return "shop"


def opened(deployment: LocalDeployment, **settings: Any) -> Classifier:
    return classifier_over(Store(deployment.backend(), "ours"), **settings)


ATTACHED: Mapping[str, Any] = {"label": "colour", "expert": "clip:image", "source": "file"}


@pytest.mark.parametrize("index", ["memory", "qdrant"])
def test_attached_points_classify_calibrate_and_reject(deployment: LocalDeployment, shop: str, index: str) -> None:
    with opened(deployment, index=index) as classifier:
        attached = classifier.attach(shop, **ATTACHED)
        assert (attached.points, attached.categories, attached.attachment.compared) == (3 * IMAGES, 3, 16)
        assert [(c.name, c.images, dict(c.attached)) for c in classifier.categories()] == [
            (colour, IMAGES, {"clip:image": IMAGES}) for colour in sorted(COLOURS)
        ]
        assert classifier.category("red").images == IMAGES
        assert classifier.references.of("red") == []
        prediction = classifier.classify(coloured("red", 999))
        assert (prediction.label, prediction.unknown) == ("red", False)
        assert prediction.experts["clip:image"].neighbors[0].hash.startswith("shop#")
        assert prediction.experts["clip:image"].neighbors[0].source.endswith(".png")
        report = classifier.calibrate()
        assert report.after is not None
        assert report.after.top1 == 1
        assert classifier.classify(coloured("red", 999)).calibration == "current"
        strange = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        assert classifier.classify(strange).unknown
        assert classifier.info()["references"] == {"clip:image": 3 * IMAGES}
        assert classifier.info()["attached"][0]["points"] == 3 * IMAGES


@pytest.mark.parametrize("index", ["memory", "qdrant"])
def test_similar_images_behind_attached_points(deployment: LocalDeployment, shop: str, index: str) -> None:
    clip, _ = two_encoders()
    with Classifier(
        Store(deployment.backend(), "ours"),
        load_settings(index=index),
        load_encoders=lambda: EncoderSet([clip]),
        temperatures={"clip:image": 0.05},
        prompts={},
    ) as classifier:
        classifier.attach(shop, **ATTACHED)
        classifier.add_category("green", images=[coloured("green", 900 + i) for i in range(4)])
        known = content_hash(coloured("red", 990))
        classifier.add_category("red", images=[coloured("red", 990 + i) for i in range(3)])
        found = classifier.similar(known, number=6)
        assert [one.category for one in found.references] == ["red"] * 2 + ["green"] * 4
        assert known not in [one.hash for one in found.references]
        assert len(classifier.similar(known, number=2).references) == 2


def test_a_change_of_others_makes_the_calibration_stale(deployment: LocalDeployment, shop: str) -> None:
    with opened(deployment) as classifier:
        classifier.attach(shop, **ATTACHED)
        classifier.calibrate()
        assert classifier.info()["calibration"] == "current"
        deployment.client.set_payload(shop, {"colour": "pink"}, points=[1, 2], wait=True)
        classifier.attached()
        assert classifier.info()["calibration"] == "stale"
        assert classifier.classify(coloured("red", 999)).calibration == "stale"
        classifier.calibrate()
        assert classifier.classify(coloured("red", 999)).calibration == "current"


def test_attaching_calibrates_as_any_change_does(deployment: LocalDeployment, shop: str) -> None:
    with opened(deployment) as classifier:
        classifier.attach(shop, **ATTACHED)
        assert classifier.info()["calibration"] == "current"
        classifier.detach(shop)
        assert classifier.info()["calibration"] == "none"
        assert classifier.categories() == []


def test_the_audit_names_points(deployment: LocalDeployment, shop: str) -> None:
    deployment.client.set_payload(shop, {"colour": "blue"}, points=[201], wait=True)  # which is red
    with opened(deployment) as classifier:
        classifier.attach(shop, **ATTACHED)
        found = classifier.references.audit()
        assert found.images == found.judged == 3 * IMAGES
        assert [(label.hash, label.category, label.instead) for label in found.labels] == [("shop#201", "blue", "red")]
        with pytest.raises(InvalidInputError):
            classifier.references.move("shop#201", source="blue", target="red")
        with pytest.raises(InvalidInputError):
            classifier.references.keep("blue", "shop#201", finding="label")


def test_a_store_whose_only_collection_is_gone_says_so(deployment: LocalDeployment, shop: str) -> None:
    with opened(deployment) as classifier:
        classifier.attach(shop, **ATTACHED)
        deployment.client.delete_collection(shop)
        classifier.attached()
        with pytest.raises(StoreError, match=shop):
            classifier.classify(coloured("red", 999))


def test_vectors_of_another_encoder_are_refused(
    deployment: LocalDeployment, shop: str, pictures: Mapping[int, tuple[str, Path]]
) -> None:
    vectors = clip_vectors(pictures)
    mixed = [models.PointVectors(id=i, vector=vectors[i][::-1]) for i in vectors]
    deployment.client.update_vectors(shop, mixed, wait=True)
    with opened(deployment) as classifier:
        with pytest.raises(EncoderMismatchError):
            classifier.attach(shop, **ATTACHED)
        assert classifier.attached() == []
        assert classifier.attach(shop, **{**ATTACHED, "source": None}).attachment.compared == 0  # nobody can tell


@pytest.mark.parametrize("bad", [{"label": 7}, {"where": ["a"]}, {"refresh": "soon"}, {"expert": "dino:text"}])
def test_wrong_arguments(deployment: LocalDeployment, shop: str, bad: Mapping[str, Any]) -> None:
    with opened(deployment) as classifier, pytest.raises(InvalidInputError):
        classifier.attach(shop, **{**ATTACHED, **bad})


def test_a_copy_is_as_good_and_a_second_one_adds_what_is_new(deployment: LocalDeployment, shop: str) -> None:
    with opened(deployment) as classifier:
        classifier.attach(shop, **ATTACHED)
        asked = [coloured(colour, seed) for colour in COLOURS for seed in (901, 902)]
        rankings = [dict(one.ranking) for one in classifier.classify(asked)]
        classifier.detach(shop)
        copied = classifier.copy_collection(shop, **ATTACHED)
        assert {category.name: dict(category.references) for category in copied} == {
            colour: {"clip:image": IMAGES} for colour in COLOURS
        }
        for prediction, ranking in zip(classifier.classify(asked), rankings, strict=True):
            assert dict(prediction.ranking) == pytest.approx(ranking, abs=1e-6)
        before = state(classifier._store)
        vector = [0.0] * 31 + [1.0]
        deployment.client.upsert(shop, [models.PointStruct(id=7, vector=vector, payload={"colour": "red"})], wait=True)
        classifier.copy_collection(shop, **ATTACHED)
        after = state(classifier._store)
        assert {name: len(vectors) for name, (_, vectors) in after.items()} == {
            name: len(vectors) + (name == "red") for name, (_, vectors) in before.items()
        }
