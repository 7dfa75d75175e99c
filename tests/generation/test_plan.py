"""Plans: order, number and cost of purchases, and measured confusions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.generation.material import buy, plan_of, settings_of, tree
from tests.support import coloured, fast_folder, isolated, open_classifier  # noqa: F401
from zsvec.errors import InvalidInputError
from zsvec.generation.access import KEY_VARIABLE
from zsvec.generation.manifest import AnswerRecord, DeclinedRecord, Manifest
from zsvec.generation.plan import Budget, StoredCategory
from zsvec.method.calibrate.confusions import Confusions, confusions
from zsvec.method.calibrate.leave_one_out import LeftOut
from zsvec.method.calibration import LogLinear
from zsvec.settings.settings import GenerationSettings, ModelPrice
from zsvec.testing import HashEncoder

IMAGE_MODEL = GenerationSettings().image_model
PRICES = {"writer": ModelPrice(input=1, output=2), "painter": ModelPrice(image=0.01)}


def answer(step: str, about: list[Any], answer: dict[str, Any], cost: float = 0.0) -> AnswerRecord:
    return AnswerRecord(step=step, version=1, about=about, answer=answer, model="writer", response="r", cost=cost)


def declined(category: str, index: int, code: str = "policy", model: str = IMAGE_MODEL) -> DeclinedRecord:
    return DeclinedRecord(category=category, index=index, prompt="", code=code, reason="no", model=model, cost=0.0)


# Order


def test_images_are_bought_where_they_help_most(tmp_path: Path) -> None:
    stored = {name: StoredCategory("text", images) for name, images in (("confused", 2), ("lonely", 1), ("fine", 0))}
    measured = Confusions(lost={"confused": 0.6, "lonely": 0.9, "fine": 0.0})
    plan = plan_of(
        tmp_path, ["confused", "fine", "lonely", "new"], per_category=3, stored=stored, confusions=measured
    )  # lost ÷ (1 + images that there are + index)
    assert plan.places == (
        ("new", 0),  # 1 ÷ 1
        ("new", 1),  # 1 ÷ 2
        ("lonely", 0),  # 0.9 ÷ 2 = 0.45
        ("new", 2),  # 1 ÷ 3
        ("lonely", 1),  # 0.9 ÷ 3 = 0.3
        ("lonely", 2),  # 0.9 ÷ 4 = 0.225
        ("confused", 0),  # 0.6 ÷ 3 = 0.2
        ("confused", 1),  # 0.15
        ("confused", 2),  # 0.12
        ("fine", 0),
        ("fine", 1),
        ("fine", 2),
    )


def test_categories_take_turns_where_nothing_is_known(tmp_path: Path) -> None:
    assert plan_of(tmp_path, ["b", "a"]).places == (("b", 0), ("a", 0), ("b", 1), ("a", 1))


def test_measured_groups_are_of_the_categories(tmp_path: Path) -> None:
    measured = Confusions(lost={}, partners={"a": ("b", "c"), "b": ("a",), "c": ()})
    stored = {name: StoredCategory(f"text of {name}", 1) for name in "abc"}
    plan = plan_of(tmp_path, ["a", "c", "new"], stored=stored, confusions=measured)
    assert plan.measured == (("a", "b", "c"),)
    assert plan.others == {"b": "text of b"}


# Earlier purchases


def test_images_on_disk_or_declined_are_not_bought(tmp_path: Path) -> None:
    with Manifest(tmp_path) as manifest:
        buy(manifest, "a", 0, cost=0.5)
        buy(manifest, "a", 7, cost=0.5)
        deleted = buy(manifest, "b", 1, cost=0.5)
        manifest.append(declined("a", 1))
        buy(manifest, "c", 0, cost=0.5)
    (tmp_path / deleted.file).unlink()
    plan = plan_of(tmp_path, ["a", "b"])
    assert plan.places == (("b", 0), ("b", 1))
    assert (plan.there, plan.spent) == (2, 1.5)
    assert plan_of(tmp_path, ["c"], per_category=1).places == ()


def test_a_budget_of_images_counts_those_that_are_there(tmp_path: Path) -> None:
    with Manifest(tmp_path) as manifest:
        buy(manifest, "a", 0)
        buy(manifest, "c", 0)
    for images, bought in ((None, 5), (9, 5), (6, 5), (4, 3), (2, 1), (1, 0), (0, 0)):
        plan = plan_of(tmp_path, ["a", "b"], per_category=3, budget=Budget(images=images))
        assert plan.places == (("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2))[:bought]
        assert plan.there == 1


# Money


def test_costs(tmp_path: Path) -> None:
    settings = settings_of(language_model="writer", image_model="painter", prices=PRICES)
    names = [f"n{i:02}" for i in range(25)]
    plan = plan_of(tmp_path, names, settings)
    # 25 names, 10 and 40 of them in a question; 25 groups, that is two for each name that it shares with another.
    assert plan.questions == {"descriptions": 3, "groups": 1, "features": 5}
    read = 9 * 250 + 25 * 6 + 25 * 6 + 25 * 3 * 60  # instructions, names to describe, all names, looks of the groups
    written = 25 * 300 + 25 * 60 + 25 * 300
    assert plan.cost_of_questions == pytest.approx((read * 1 + written * 2) / 1e6)
    assert plan.cost_of_image == 0.01
    assert plan.cost == pytest.approx((read * 1 + written * 2) / 1e6 + 50 * 0.01)
    assert plan.spent == 0


def test_answered_questions_cost_nothing(tmp_path: Path) -> None:
    settings = settings_of(language_model="writer", image_model="painter", prices=PRICES)
    looks = [{"name": name, "appearance": "x", "scenes": []} for name in "abc"]
    traits = {"common": [], "members": []}
    with Manifest(tmp_path) as manifest:
        manifest.append(answer("descriptions", ["a", "b", "c"], {"categories": looks}, cost=0.25))
        manifest.append(answer("groups", ["a", "b", "c"], {"groups": [["a", "b"], ["b", "c"]]}))
        manifest.append(answer("features", [["a", "b"]], {"groups": [traits]}))
    plan = plan_of(tmp_path, ["a", "b", "c"], settings)
    assert plan.questions == {"descriptions": 0, "groups": 0, "features": 1}
    assert plan.cost_of_questions == pytest.approx((250 + 3 * 60 + 2 * 300) / 1e6)
    assert plan.spent == 0.25
    assert plan_of(tmp_path, ["a"], settings).questions["features"] == 0
    with Manifest(tmp_path) as manifest:
        for place in plan.places:
            buy(manifest, *place, cost=1.0)
    done = plan_of(tmp_path, ["a", "b", "c"], settings)
    assert done.questions == {"descriptions": 0, "groups": 0, "features": 0}
    assert (done.places, done.cost, done.spent) == ((), 0.0, 6.25)


def test_measured_groups_are_compared_and_cost(tmp_path: Path) -> None:
    stored = {name: StoredCategory("text", 1) for name in ("a", "b", "c")}
    measured = Confusions(partners={"a": ("b",), "b": ("a", "c"), "c": ("b",)})
    questions = plan_of(tmp_path, ["a"], stored=stored, confusions=measured).questions
    assert questions == {"descriptions": 1, "groups": 1, "features": 1}
    many = Confusions(partners=dict.fromkeys(map(str, range(13)), ("a", "b", "c")))
    stored |= {str(i): StoredCategory("text", 1) for i in range(13)}
    # 13 groups that are measured, and one for each name at most, 6 in a question.
    assert plan_of(tmp_path, list(map(str, range(13))), stored=stored, confusions=many).questions["features"] == 5


@pytest.mark.parametrize("unknown", ["writer", "painter"])
def test_a_budget_in_dollars_needs_prices(tmp_path: Path, unknown: str) -> None:
    settings = settings_of(
        language_model="writer",
        image_model="painter",
        prices={name: price for name, price in PRICES.items() if name != unknown},
    )
    with pytest.raises(InvalidInputError, match=rf"no price is known for '{unknown}'.*generation\.prices"):
        plan_of(tmp_path, ["a"], settings, budget=Budget(dollars=1))
    plan = plan_of(tmp_path, ["a"], settings, budget=Budget(images=1))
    assert plan.cost is None
    assert len(plan.places) == 1


def test_invalid_budgets() -> None:
    budgets: list[dict[str, Any]] = [{"images": -1}, {"images": 2.5}, {"images": "4"}, {"dollars": -0.01}]
    for budget in (*budgets, {"dollars": math.inf}, {"dollars": math.nan}, {"dollars": "2"}):
        with pytest.raises(InvalidInputError, match="number from 0 up"):
            Budget(**budget)


# No side effects


@pytest.mark.usefixtures("isolated")
def test_a_plan_changes_nothing_and_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with fast_folder() as parent:
        with Manifest(parent / "generated") as manifest:
            buy(manifest, "red", 0)
        with open_classifier(parent) as classifier:
            for name in ("red", "blue"):
                classifier.add_category(name, images=[coloured(name, seed) for seed in range(2)])
            encoders: list[Any] = list(classifier.encoders)
            before, encoded = tree(parent), [encoder.images_encoded for encoder in encoders]
            plan = classifier.generation.plan(folder=parent / "generated")
            assert len(plan.places) == 7
            fresh = classifier.generation.plan(["new"], folder=parent / "nowhere")
            assert len(fresh.places) == 4
            assert [encoder.images_encoded for encoder in encoders] == encoded
            assert tree(parent) == before
            assert not (parent / "nowhere").exists()


# Confusions


def sample(*images: tuple[str, dict[str, float]], categories: str = "abc") -> LeftOut:
    """Left-out images with the probabilities of one expert; NaN for uncovered categories."""
    rows = [[math.log(given.get(name, 1e-9)) if given else math.nan for name in categories] for _, given in images]
    labels = np.array([categories.index(own) for own, _ in images])
    for row, (own, given) in zip(rows, images, strict=True):
        if own not in given:
            row[categories.index(own)] = math.nan
    return LeftOut(
        tuple(categories), labels, np.ones((1, 3), bool), {"clip:image": {"top_mean": np.array(rows, np.float32)}}
    )


POOL = LogLinear({"clip:image": {"top_mean": 1.0}}, neutral={"clip:image": math.log(0.2)})


def test_confusions_are_mean_probabilities() -> None:
    found = confusions(
        sample(
            ("a", {"a": 0.9, "b": 0.1}),
            ("a", {"a": 0.5, "b": 0.1, "c": 0.4}),
            ("b", {"a": 0.01, "b": 0.98, "c": 0.01}),
            ("c", {"b": 0.3, "c": 0.7}),
        ),
        POOL,
    )
    assert found.lost == pytest.approx({"a": 0.3, "b": 0.02, "c": 0.3}, abs=1e-6)
    assert found.partners == {"a": ("c", "b"), "b": (), "c": ("b",)}


def test_the_only_image_of_a_category_says_nothing_of_the_others() -> None:
    images = [
        ("a", {"b": 0.3, "c": 0.5}),
        ("b", {"a": 0.6, "b": 0.4}),
        ("c", {"a": 0.1, "b": 0.1, "c": 0.8}),
    ]
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        found = confusions(sample(*(images[i] for i in order)), POOL)
        assert found.lost == pytest.approx({"a": 1.0, "b": 0.6, "c": 0.2}, abs=1e-6)
        assert found.partners == {"a": ("c", "b"), "b": ("a",), "c": ("a", "b")}


def test_the_only_image_of_a_category_is_found_by_its_text() -> None:
    by_text = np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1]], np.float32))
    by_image = np.log(np.array([[np.nan, 0.2, 0.4], [0.1, 0.8, 0.1]], np.float32))
    views = {"clip:text": {"top_mean": by_text}, "dino:image": {"top_mean": by_image}}
    pool = LogLinear({expert: {"top_mean": 1.0} for expert in views}, neutral={"dino:image": math.log(0.4)})
    found = confusions(LeftOut(("a", "b", "c"), np.array([0, 1]), np.ones((2, 3), bool), views), pool)
    # 0.5 · 0.4 against 0.3 · 0.2 and 0.2 · 0.4; 0.8 · 0.8 against 0.1 · 0.1 twice
    assert found.lost == pytest.approx({"a": 0.14 / 0.34, "b": 0.02 / 0.66}, abs=1e-6)
    assert found.partners == {"a": ("c", "b"), "b": ()}


@pytest.mark.usefixtures("isolated")
def test_a_store_of_single_images_is_planned_for_evenly() -> None:
    with fast_folder() as parent, open_classifier(parent, HashEncoder("dino", modalities=("image",))) as classifier:
        for name in ("blue", "green", "red"):
            classifier.add_category(name, images=[coloured(name, 0)])
        plan = classifier.generation.plan(["red", "new", "blue"], per_category=2)
        assert plan.places == (("new", 0), ("red", 0), ("new", 1), ("blue", 0), ("red", 1), ("blue", 1))


def test_categories_the_budget_cannot_cover_are_not_described_either(tmp_path: Path) -> None:
    settings = settings_of(language_model="writer", image_model="painter", prices=PRICES)
    names = [f"category {i:03}" for i in range(200)]
    poor = plan_of(tmp_path, names, settings, per_category=2, budget=Budget(dollars=0.1))
    asked = {name for name, _ in poor.places}
    assert 0 < poor.affordable < 10
    assert len(asked) == poor.affordable  # one of each category comes first
    assert poor.questions["descriptions"] == 1
    assert poor.cost is not None
    assert poor.cost <= 0.1
    assert poor.beyond_budget == 400 - poor.affordable
    none = plan_of(tmp_path, names, settings, per_category=2, budget=Budget(dollars=0.0))
    assert (none.places, sum(none.questions.values()), none.excluded) == ((), 0, 400)


def test_declined_images_are_requested_again_from_another_model_and_after_a_failure(tmp_path: Path) -> None:
    with Manifest(tmp_path) as manifest:
        for record in (declined("a", 0), declined("b", 0, model="another"), declined("c", 0, code="unusable")):
            manifest.append(record)
    plan = plan_of(tmp_path, ["a", "b", "c"], per_category=1)
    assert plan.places == (("b", 0), ("c", 0))


def test_a_budget_of_so_many_cents_buys_so_many_images_of_a_cent(tmp_path: Path) -> None:
    prices = {"writer": ModelPrice(), "painter": ModelPrice(image=0.01)}
    settings = settings_of(language_model="writer", image_model="painter", prices=prices)
    for cents in (1, 3, 6, 7, 10):
        plan = plan_of(tmp_path, ["a"], settings, per_category=20, budget=Budget(dollars=cents / 100))
        assert plan.affordable == cents
