"""`clf.generation`: drawn images enter the store or are flagged, and nothing is bought or stored twice."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import zsvec
from tests.generation.colour_encoder import ColourEncoder, coloured_encoders
from tests.generation.fake_openai import IMAGES, Fault
from tests.generation.studio import Studio, picture, studio_of, tinted
from tests.store.support import ServerDeployment
from tests.support import encode, isolated, photo, sources, state  # noqa: F401
from zsvec.encoders import EncoderSet
from zsvec.encoders.everyday import EVERYDAY
from zsvec.errors import GenerationError, ImageError, InvalidInputError
from zsvec.generation.facet import Generated
from zsvec.generation.plan import Budget
from zsvec.ingest.embedding import Embedder
from zsvec.ingest.ingestion import Builder
from zsvec.inputs.categories import CategoryInput, ReferenceImage
from zsvec.inputs.images import content_hash
from zsvec.store import Write
from zsvec.testing import HashEncoder

PANDA, WHALE = "a small reddish mammal", "a huge mammal of the sea"
APPEARANCES = {
    "red panda": PANDA,
    "red_panda": PANDA,
    "blue whale": WHALE,
    "fox": "a red animal",
    "panda": "another red animal",
    "whale": "a blue animal",
    "sea cow": "a blue animal",
}


@pytest.fixture
def studio() -> Iterator[Studio]:
    with studio_of(appearances=APPEARANCES) as opened:
        yield opened


def flags(done: Generated) -> dict[tuple[str, int], list[str]]:
    """Returns the flags of each image, in a word each, by category and index."""
    return {
        (image.record.category, image.record.index): [flag.split(":")[0] for flag in image.flags]
        for image in done.images
    }


def stored(done: Generated) -> dict[tuple[str, int], bool]:
    return {(image.record.category, image.record.index): image.stored for image in done.images}


def prompts_in(studio: Studio, encoder: str) -> dict[tuple[str, str], str | None]:
    """Returns the prompt in the payload of each image, by category and hash."""
    return {
        (payload["category"], payload["hash"]): payload.get("prompt")
        for payload in studio.payloads(encoder)
        if payload["modality"] == "image"
    }


# ---- stored images


def test_images_enter_with_their_prompts_under_every_encoder(studio: Studio) -> None:
    done = studio.generate("red panda", "blue whale", per_category=2)
    assert [(image.record.category, image.record.index, image.stored, image.flags) for image in done.images] == [
        ("blue whale", 0, True, []),
        ("blue whale", 1, True, []),
        ("red panda", 0, True, []),
        ("red panda", 1, True, []),
    ]
    assert (done.flagged, done.declined, done.out_of_budget) == ((), (), False)
    drawn = {(image.record.category, content_hash(image.path)): image.record.prompt for image in done.images}
    assert len(set(drawn.values())) == 4
    for encoder in ("clip", "dino"):
        assert prompts_in(studio, encoder) == drawn
        images = [payload for payload in studio.payloads(encoder) if payload["modality"] == "image"]
        assert {payload["source"] for payload in images} == {"generated"}
        assert {tuple(sorted(payload)) for payload in images} == {
            ("added", "category", "gen", "hash", "modality", "prompt", "source")
        }
    in_store = studio.clf._store.stored("red panda")
    by_modality = {
        modality: {reference.prompt for reference in in_store if reference.modality == modality}
        for modality in ("image", "text")
    }
    assert by_modality == {"image": {drawn[key] for key in drawn if "red panda" in key}, "text": {None}}
    shown = sorted(f"generated: {prompt}" for (name, _), prompt in drawn.items() if name == "red panda")
    assert sources(studio.clf._store, "red panda") == {
        "clip:text": [PANDA, "red panda"],
        "clip:image": shown,
        "dino:image": shown,
    }


def test_a_store_on_a_server_takes_them_as_a_folder_does(server: ServerDeployment) -> None:
    held = []
    for place in ({}, {"store": server.url, "namespace": server.namespace}):
        with studio_of(appearances=APPEARANCES, **place) as studio:
            assert all(stored(studio.generate("red panda", "blue whale", per_category=2)).values())
            asked = studio.requests()
            assert all(stored(studio.generate("red panda", "blue whale", per_category=2)).values())
            assert studio.requests() == asked  # all images are on disk
            held.append({name: sources(studio.clf._store, name) for name in ("red panda", "blue whale")})
    assert held[0] == held[1]


def test_stored_vectors_are_embeddings_of_the_images(studio: Studio) -> None:
    done = studio.generate("red panda", per_category=2)
    in_store = {
        (reference.encoder, reference.hash): reference.vector
        for reference in studio.clf._store.stored("red panda")
        if reference.modality == "image"
    }
    for image in done.images:
        for encoder in coloured_encoders():
            expected = encoder.encode_images([Image.open(image.path)])[0]
            np.testing.assert_allclose(in_store[encoder.name, image.record.sha256], expected, atol=1e-6)
            np.testing.assert_array_equal(image.vectors[encoder.name], in_store[encoder.name, image.record.sha256])


def test_a_new_category_is_known_by_its_name_and_its_description(studio: Studio) -> None:
    (category,) = studio.generate("red_panda", per_category=1).categories
    assert category.texts == ("red panda", PANDA)
    assert category.references == {"clip:text": 2, "clip:image": 1, "dino:image": 1}
    assert studio.clf.categories() == [category]
    assert studio.clf.classify(tinted("red", 7)).label == "red_panda"


def test_an_existing_category_keeps_its_texts_and_images_and_gets_the_description(studio: Studio) -> None:
    studio.clf.add_category("red panda", texts=["lives in trees"], images=[tinted("red", 1)], metadata={"by": "zoo"})
    (category,) = studio.generate("red panda", per_category=1).categories
    assert (category.texts, category.metadata) == (("lives in trees", PANDA), {"by": "zoo"})
    assert category.references == {"clip:text": 2, "clip:image": 2, "dino:image": 2}
    assert Counter(prompts_in(studio, "dino").values())[None] == 1


def test_without_a_description_a_new_category_is_known_by_its_name(studio: Studio) -> None:
    studio.fault = lambda request: None if request.path == IMAGES else Fault.refusal()
    done = studio.generate("red panda", per_category=1)
    assert done.categories[0].texts == ("red panda",)
    assert stored(done) == {("red panda", 0): True}
    assert PANDA not in str(studio.clf._store.stored("red panda"))


def test_names_are_said_in_the_words_of_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listener(ColourEncoder):
        def _text_vector(self, text: str) -> Any:
            heard.append(text)
            return super()._text_vector(text)

    heard: list[str] = []
    with studio_of(Listener(), appearances=APPEARANCES) as studio:
        clf, encoders = studio.clf, EncoderSet(studio.encoders)
        clf._store.bind(encoders.fingerprints)
        prompts = {"clip": "a photo of a {name}"}
        embedder = Embedder(lambda: encoders, {"max_pixels": 10_000})
        builder = Builder(clf._store, embedder, prompts=prompts, batch_size=8)
        monkeypatch.setattr(clf.generation, "_builder", lambda: builder)
        studio.generate("red_panda", per_category=1)
        assert sources(studio.clf._store, "red_panda")["clip:text"] == ["a photo of a red panda", PANDA]
        everyday = {f"a photo of a {word}" for word in EVERYDAY}
        assert set(heard) == everyday | {"a photo of a red panda", PANDA}  # of the gate, too


def test_a_store_without_encoders_of_texts() -> None:
    dino = HashEncoder("dino", dim=64, modalities=("image",))
    with studio_of(dino) as studio:
        studio.pictures["red panda"] = [
            picture("blue", 1),
            encode(Image.new("RGB", (8, 8), "blue")),
            picture("blue", 2),
        ]
        done = studio.generate("red panda", per_category=3)
        # Without texts no image is far.
        assert flags(done) == {("red panda", 0): [], ("red panda", 1): ["blank"], ("red panda", 2): []}
        assert done.categories[0].references == {"dino:image": 2}
        in_store = state(studio.clf._store)
        again = studio.generate("red panda", per_category=3)
        assert stored(again) == {("red panda", 0): True, ("red panda", 1): False, ("red panda", 2): True}
        assert state(studio.clf._store) == in_store


def test_an_encoder_of_texts_alone_beside_one_of_images() -> None:
    encoders = ColourEncoder(modalities=("text",)), HashEncoder("dino", dim=64, modalities=("image",))
    with studio_of(*encoders, appearances=APPEARANCES) as studio:
        studio.clf.add_category("red fox", images=[tinted("red", 1)])
        studio.pictures["red panda"] = [picture("red", 1), picture("blue", 2), picture("red", 3)]
        done = studio.generate("red panda", per_category=3)
        assert flags(done) == {("red panda", 0): ["copy"], ("red panda", 1): ["far"], ("red panda", 2): []}
        assert done.categories[0].references == {"clip:text": 2, "dino:image": 1}


def test_prompts_survive_the_compaction_of_many_additions(studio: Studio) -> None:
    drawn = [image.record for image in studio.generate("red panda", per_category=2).images]
    for seed in range(40):
        studio.clf.add_category("red panda", images=[photo(seed)])
    category = studio.clf.category("red panda")
    assert category.version > 40
    assert len(category.write_ids) <= 32
    for encoder in ("clip", "dino"):
        found = prompts_in(studio, encoder)
        assert len(found) == 42
        assert {key: prompt for key, prompt in found.items() if prompt} == {
            (record.category, record.sha256): record.prompt for record in drawn
        }


def test_prompts_survive_replacement_by_the_same_image(studio: Studio) -> None:
    kept, dropped = studio.generate("red panda", per_category=2).images
    before = studio.embedded()
    studio.clf.add_category("red panda", texts=[PANDA], images=[kept.path], replace=True)
    assert studio.embedded() == before
    assert (
        prompts_in(studio, "clip")
        == prompts_in(studio, "dino")
        == {("red panda", kept.record.sha256): kept.record.prompt}
    )
    assert dropped.path.is_file()


# ---- flagged images


FLAGGED = [
    pytest.param([encode(Image.new("RGB", (8, 8), "red"))], ["blank"], id="blank"),
    pytest.param([encode(Image.new("RGB", (8, 8), "blue"))], ["blank", "far"], id="blank and far"),
    pytest.param([encode(tinted("red", 9).resize((80, 60), Image.Resampling.NEAREST))], ["copy"], id="of an upload"),
    pytest.param([picture("red", 1), encode(tinted("red", 1), "BMP")], ["copy"], id="of another generated one"),
    pytest.param([picture("red", 1), picture("red", 1)], ["copy"], id="the same twice"),
]


@pytest.mark.parametrize(("drawn", "expected"), FLAGGED)
def test_flagged_images_stay_on_disk_and_are_stored_on_demand(
    studio: Studio, drawn: list[bytes], expected: list[str]
) -> None:
    def in_store() -> set[str]:
        return {digest for name, digest in prompts_in(studio, "dino") if name == "red panda"}

    studio.clf.add_category("red fox", images=[tinted("red", 9)])
    studio.pictures["red panda"] = list(drawn)
    done = studio.generate("red panda", per_category=len(drawn))
    last = done.images[-1]
    assert [flag.split(":")[0] for flag in last.flags] == expected
    assert done.flagged == (last,)
    assert last.stored is False
    assert last.path.read_bytes() == drawn[-1]
    assert in_store() == {image.record.sha256 for image in done.images[:-1]}
    assert done.categories[0].texts == ("red panda", PANDA)  # also where no image is stored
    bought = studio.requests()
    studio.generate("red panda", per_category=len(drawn), keep_flagged=True)
    assert in_store() == {image.record.sha256 for image in done.images}
    assert studio.requests() == bought


def test_a_flag_names_the_original_of_a_copy(studio: Studio) -> None:
    studio.clf.add_category("red fox", images=[tinted("red", 9)])
    studio.pictures["red panda"] = [picture("red", 9), picture("red", 1), picture("red", 1)]
    upload, first, second = studio.generate("red panda", per_category=3).images
    assert upload.flags == ["copy: the same picture as a reference of 'red fox'"]
    assert second.flags == [f"copy: the same picture as {first.path}"]
    assert first.flags == []


def test_an_upload_of_the_same_category_is_there_already(studio: Studio) -> None:
    studio.clf.add_category("red panda", images=[picture("red", 9)])
    studio.pictures["red panda"] = [picture("red", 9), encode(tinted("red", 9), "BMP")]
    same, other_format = studio.generate("red panda", per_category=2).images
    assert (same.stored, same.flags) == (True, [])
    assert (other_format.stored, other_format.flags) == (
        False,
        ["copy: the same picture as a reference of 'red panda'"],
    )
    assert len(prompts_in(studio, "dino")) == 1


def test_an_upload_that_one_encoder_has_is_not_there_for_all(bench: Bench) -> None:
    studio, store = bench.studio, bench.studio.clf._store
    bench.add(ReferenceImage(image=picture("red", 9), prompt="an upload"))
    by_clip = [reference for reference in store.stored("red panda") if reference.encoder == "clip"]
    store.write([Write(name="red panda", references=by_clip, replace=True)])
    studio.pictures["red panda"] = [picture("red", 9)]
    (image,) = studio.generate("red panda", per_category=1).images
    assert (image.stored, image.flags) == (True, [])
    assert prompts_in(studio, "clip") == {("red panda", image.record.sha256): "an upload"}
    assert prompts_in(studio, "dino") == {("red panda", image.record.sha256): image.record.prompt}


def test_unreadable_images_are_never_stored(studio: Studio) -> None:
    studio.fault = lambda request: Fault.not_an_image() if request.path == IMAGES and request.number % 2 else None
    done = studio.generate("red panda", per_category=4, keep_flagged=True)
    broken = [image for image in done.images if image.flags]
    assert 0 < len(broken) < 4
    for image in broken:
        assert image.flags[0].startswith("unreadable: cannot read ")
        assert (image.stored, dict(image.vectors)) == (False, {})
        assert image.path.read_bytes() == b"This is not an image."
    assert len(prompts_in(studio, "clip")) == 4 - len(broken)
    assert done.categories[0].references["dino:image"] == 4 - len(broken)


def test_descriptions_count_in_the_check_for_far_images(studio: Studio) -> None:
    """The description of "sea cow" names a colour, the name does not."""
    studio.pictures["sea cow"] = [picture("blue", 1), picture("red", 2)]
    assert flags(studio.generate("sea cow", per_category=2)) == {("sea cow", 0): [], ("sea cow", 1): ["far"]}


def test_an_image_is_far_only_for_all_encoders_of_texts() -> None:
    class Blind(ColourEncoder):
        """Finds every image near to pandas and far from everyday words."""

        def _text_vector(self, text: str) -> Any:
            return np.array([0, 0, 0, 1.0 if "panda" in text else -1.0])

    with studio_of(ColourEncoder(), Blind("blind")) as studio:
        studio.pictures["red panda"] = [picture("blue", 1)]
        assert flags(studio.generate("red panda", per_category=1)) == {("red panda", 0): []}


# ---- nothing twice


def test_images_are_embedded_once(studio: Studio) -> None:
    studio.generate("red panda", "blue whale", per_category=3)
    texts, images = studio.embedded()["clip"]
    assert images == 6
    assert studio.embedded()["dino"] == (0, 6)
    before = len(studio.clf._store.stored("red panda"))
    studio.generate("red panda", per_category=4)  # one more
    assert studio.embedded()["dino"] == (0, 7)
    assert studio.embedded()["clip"][0] > texts  # everyday words, for the gate
    assert len(studio.clf._store.stored("red panda")) == before + 2


def test_a_second_run_asks_embeds_and_stores_nothing(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    first = studio.generate("red panda", "blue whale", per_category=2)
    monkeypatch.delenv("OPENAI_API_KEY")  # no request is left
    before = state(studio.clf._store), studio.clf._store.calibration(), studio.embedded(), studio.requests()
    second = studio.generate("red panda", "blue whale", per_category=2)
    assert (state(studio.clf._store), studio.clf._store.calibration(), studio.embedded(), studio.requests()) == before
    assert stored(second) == stored(first)
    assert second.spent == first.spent > 0
    assert second.categories == first.categories


def test_a_new_store_gets_the_bought_images(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    studio.generate("red panda", per_category=2)
    expected = studio.clf.category("red panda").references
    monkeypatch.delenv("OPENAI_API_KEY")
    with zsvec.open(":memory:", encoders=coloured_encoders(), generation={"base_url": studio.server.url}) as clf:
        done = clf.generation.references(["red panda"], per_category=2, folder=studio.folder)
    assert done.categories[0].references == expected
    assert stored(done) == {("red panda", 0): True, ("red panda", 1): True}


# ---- mended categories


def mend_all(studio: Studio, *digests: str) -> None:
    """Moves one image, removes the others."""
    first, *others = digests
    studio.clf.references.move(first, source="red panda", target="fox")
    studio.clf.references.remove("red panda", others)


@pytest.mark.parametrize("keep_flagged", [False, True])
def test_what_was_moved_or_removed_is_not_stored_again(studio: Studio, *, keep_flagged: bool) -> None:
    first = studio.generate("red panda", per_category=3)
    moved, removed, _ = (image.record.sha256 for image in first.images)
    [text] = [one.hash for one in studio.clf.references.of("red panda") if one.source == PANDA]
    mend_all(studio, moved, removed, text)
    before = state(studio.clf._store), studio.embedded()["dino"], studio.requests()
    again = studio.generate("red panda", per_category=3, keep_flagged=keep_flagged)
    assert (state(studio.clf._store), studio.embedded()["dino"], studio.requests()) == before
    assert {(one.modality, one.hash) for one in again.withdrawn} == {
        ("image", moved),
        ("image", removed),
        ("text", text),
    }
    assert flags(again) == {("red panda", 0): ["withdrawn"], ("red panda", 1): ["withdrawn"], ("red panda", 2): []}
    assert stored(again) == {("red panda", 0): False, ("red panda", 1): False, ("red panda", 2): True}
    more = studio.generate("red panda", per_category=4)  # a new image is stored nevertheless
    assert stored(more) == {**stored(again), ("red panda", 3): True}
    studio.clf.add_category("red panda", texts=[PANDA], images=[first.images[1].path])
    assert len(studio.generate("red panda", per_category=4).withdrawn) == 1


@pytest.mark.parametrize("mending", ["remove", "rename", "merge"])
def test_a_category_that_is_gone_is_neither_drawn_nor_made_again(studio: Studio, mending: str) -> None:
    studio.generate("red panda", "blue whale", per_category=1)
    if mending == "remove":
        studio.clf.remove_category("red panda")
    elif mending == "rename":
        studio.clf.references.rename("red panda", "fox")
    else:
        studio.clf.references.merge("red panda", "blue whale")
    before, spent = state(studio.clf._store), studio.requests()
    plan = studio.clf.generation.plan(["red panda", "blue whale"], per_category=2, folder=studio.folder)
    assert (plan.categories, plan.retired) == (("blue whale",), ("red panda",))
    assert plan.places == (("blue whale", 1),)
    done = studio.clf.generation.run(plan)
    assert {image.record.category for image in done.images} == {"blue whale"}
    assert state(studio.clf._store).keys() == before.keys()
    assert studio.requests()["images"] == spent["images"] + 1
    studio.clf.add_category("red panda")
    assert studio.generate("red panda", per_category=2).categories[0].name == "red panda"


def test_a_category_that_goes_during_a_run_is_not_made_again(studio: Studio) -> None:
    studio.clf.add_category("red panda")
    plan = studio.clf.generation.plan(["red panda"], per_category=2, folder=studio.folder)

    def remove(results: Any) -> Any:
        yield from results
        studio.clf.remove_category("red panda")

    done = studio.clf.generation.run(plan, track=remove)
    assert (done.categories, stored(done)) == ((), {("red panda", 0): False, ("red panda", 1): False})
    assert studio.clf.categories() == []


# ---- arguments


def test_others_are_left_as_they_are(studio: Studio) -> None:
    studio.clf.add_category("blue whale", images=[tinted("blue", 1)])
    before = state(studio.clf._store)["blue whale"]
    done = studio.generate("red panda", per_category=1)
    assert state(studio.clf._store)["blue whale"] == before
    assert [category.name for category in done.categories] == ["red panda"]


def test_per_category_counts_the_images_in_the_folder(studio: Studio) -> None:
    assert len(studio.generate("red panda", per_category=1).images) == 1
    assert len(studio.generate("red panda", per_category=3).images) == 3
    assert studio.requests()["images"] == 3
    assert studio.clf.category("red panda").references["dino:image"] == 3
    assert len(studio.generate("red panda", per_category=2).images) == 3  # images on disk stay
    assert studio.requests()["images"] == 3


def test_invalid_arguments_send_nothing(studio: Studio) -> None:
    draw = studio.clf.generation.references
    for name in ("", " ", "a\nb", None, 5, "x" * 501, b"cat"):
        with pytest.raises(InvalidInputError, match="a category name "):
            draw(["red panda", name], folder=studio.folder)  # type: ignore[list-item]
    for categories in ([], None):  # nor has the store a category
        with pytest.raises(InvalidInputError, match="has no category to draw: name some"):
            draw(categories, folder=studio.folder)
    for wrong in ("red panda", 5):
        with pytest.raises(InvalidInputError, match=f"must be a list of names. Got {wrong!r}"):
            draw(wrong, folder=studio.folder)  # type: ignore[arg-type]
    for count in (0, -1, 2.5, "two", None):
        with pytest.raises(InvalidInputError, match="per_category must be a whole number from 1 up"):
            draw(["red panda"], per_category=count, folder=studio.folder)  # type: ignore[arg-type]
    assert (studio.requests(), studio.folder.exists()) == ({}, False)


def test_names_are_taken_once_and_as_they_are_stored(studio: Studio) -> None:
    done = studio.clf.generation.references(
        (n for n in [" red panda", "red panda"]), per_category=1, folder=studio.folder
    )
    assert [category.name for category in done.categories] == ["red panda"]
    assert studio.requests()["images"] == 1


# ---- confusions


def confused(studio: Studio) -> None:
    """Adds foxes and pandas of one colour, and whales of another."""
    for name, colour, seeds in (("fox", "red", (1, 2, 3)), ("panda", "red", (4, 5, 6)), ("whale", "blue", (7, 8, 9))):
        studio.clf.add_category(name, texts=[f"a {colour} animal"], images=[tinted(colour, seed) for seed in seeds])


def test_confused_categories_are_compared_and_drawn_with_common_features(studio: Studio) -> None:
    confused(studio)
    plan = studio.clf.generation.plan(per_category=1, folder=studio.folder)
    assert set(plan.measured) == {("fox", "panda"), ("panda", "fox")}
    assert plan.places[-1] == ("whale", 0)  # confused categories come first
    studio.pictures["whale"] = [picture("blue", 20)]
    assert all(stored(studio.clf.generation.run(plan)).values())
    asked = [(entry.subject, entry.categories) for entry in studio.server.entries if entry.subject == "features"]
    assert asked == [("features", ("fox", "panda"))]
    prompts = {name: prompt for (name, _), prompt in studio.prompts().items()}
    shared = {
        prompt.partition("Show the features that it shares with similar things: ")[2].partition(".")[0]
        for prompt in (prompts["fox"], prompts["panda"])
    }
    assert len(shared) == 1  # the same of both, and
    assert shared != {""}
    assert "as only a fox has" in prompts["fox"]
    assert "as only a panda has" in prompts["panda"]
    assert "Show" not in prompts["whale"]


def test_an_error_is_raised_after_the_arrived_images_are_stored(studio: Studio) -> None:
    studio.fault = lambda request: Fault.unauthorized()
    with pytest.raises(GenerationError, match="refuses the key"):
        studio.generate("red panda")
    assert studio.clf.categories() == []
    images = itertools.count()
    studio.fault = lambda request: Fault.out_of_quota() if request.path == IMAGES and next(images) >= 3 else None
    with pytest.raises(GenerationError, match="out of credit"):
        studio.generate("red panda", "blue whale", per_category=2)
    counts = [category.references.get("dino:image", 0) for category in studio.clf.categories()]
    assert sum(counts) == 3
    assert studio.clf._store.calibration()


def test_a_budget_too_small_for_a_question_leaves_the_store_empty(studio: Studio) -> None:
    done = studio.generate("red panda", budget=Budget(dollars=0))
    assert (done.out_of_budget, done.images, done.categories, done.spent) == (True, (), (), 0)
    assert (studio.requests(), studio.clf.categories()) == ({}, [])


# ---- ReferenceImage


class Bench:
    """A builder for the store of a studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.encoders = EncoderSet(studio.encoders)
        studio.clf._store.bind(self.encoders.fingerprints)
        embedder = Embedder(lambda: self.encoders, {"max_pixels": 10_000})
        self.builder = Builder(studio.clf._store, embedder, prompts={}, batch_size=8)

    def add(self, *images: Any, **options: Any) -> Any:
        (category,) = self.builder.build([CategoryInput(name="red panda", texts=[], images=images)], **options)
        return category

    def vectors(self, *images: Any) -> list[Mapping[str, Any]]:
        made = self.encoders.encode_images([self.encoders.preprocess(image) for image in images])
        for encoder in self.studio.encoders:
            encoder.images_encoded = 0
        return [{name: rows[row] for name, rows in made.items()} for row in range(len(images))]


@pytest.fixture
def bench(studio: Studio) -> Bench:
    return Bench(studio)


def test_a_reference_image_with_vectors_is_not_embedded(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture("red", 1))
    other, nothing_of_it = tinted("red", 2), tinted("blue", 3)
    (vectors,) = bench.vectors(nothing_of_it)  # taken without a comparison with the image
    given = ReferenceImage(image=path, source="generated", prompt="a red panda in snow", vectors=vectors)
    category = bench.add(given, other)
    assert bench.studio.embedded() == {"clip": (0, 1), "dino": (0, 1)}
    assert category.references == {"clip:image": 2, "dino:image": 2}
    for encoder in ("clip", "dino"):
        in_store = {
            reference.hash: reference
            for reference in bench.studio.clf._store.stored("red panda")
            if reference.encoder == encoder
        }
        kept = in_store.pop(content_hash(path))
        assert (kept.source, kept.prompt) == ("generated", "a red panda in snow")
        np.testing.assert_array_equal(kept.vector, vectors[encoder])
        assert [(reference.source, reference.prompt) for reference in in_store.values()] == [("image", None)]
        assert prompts_in(bench.studio, encoder)["red panda", content_hash(path)] == "a red panda in snow"


@pytest.mark.parametrize("replace", [False, True])
def test_a_reference_image_is_recognised_when_it_is_added_again(bench: Bench, *, replace: bool) -> None:
    data = picture("red", 1)
    (vectors,) = bench.vectors(tinted("red", 1))
    first = bench.add(ReferenceImage(image=data, source="generated", prompt="a", vectors=vectors))
    before = prompts_in(bench.studio, "clip")
    for again in (data, ReferenceImage(image=data), ReferenceImage(image=data, prompt="b", vectors=vectors)):
        category = bench.add(again, replace=replace)
        assert category.references == first.references
        assert replace or category.version == first.version
    assert bench.studio.embedded() == {"clip": (0, 0), "dino": (0, 0)}
    assert prompts_in(bench.studio, "clip") == before == {("red panda", content_hash(data)): "a"}


def test_a_reference_image_without_vectors_is_embedded(bench: Bench) -> None:
    given = ReferenceImage(image=picture("red", 1), prompt="a red panda")
    category = bench.add(given, picture("red", 2))
    assert bench.studio.embedded() == {"clip": (0, 2), "dino": (0, 2)}
    assert Counter(prompts_in(bench.studio, "dino").values()) == {"a red panda": 1, None: 1}
    assert bench.add(given, given).references == category.references == {"clip:image": 2, "dino:image": 2}


@pytest.mark.parametrize("known", [False, True])
def test_an_unreadable_reference_image_is_an_error(bench: Bench, *, known: bool) -> None:
    (vectors,) = bench.vectors(tinted("red", 1))
    with pytest.raises(ImageError, match=r"cannot read 'missing\.png'"):
        bench.add(ReferenceImage(image="missing.png", vectors=vectors if known else None))
    assert bench.studio.clf.categories() == []
