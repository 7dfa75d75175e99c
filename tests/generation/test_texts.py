"""Definition texts alone: the language model is asked, no image is bought, and texts of users stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import zsvec
from tests.generation.colour_encoder import coloured_encoders
from tests.generation.fake_openai import CHAT, FEATURES, Fault, Request, _some
from tests.generation.material import plan_of, settings_of
from tests.generation.studio import Studio, picture, studio_of, tinted
from tests.support import isolated, state  # noqa: F401
from zsvec.errors import GenerationError, InvalidInputError
from zsvec.generation.facet import Generated
from zsvec.generation.plan import Budget, StoredCategory
from zsvec.method.calibrate.confusions import Confusions
from zsvec.testing import HashEncoder

PANDA, WHALE = "a small reddish mammal", "a huge mammal of the sea"
APPEARANCES = {"red panda": PANDA, "giant panda": "a black and white bear", "blue whale": WHALE}
NAMES = tuple(APPEARANCES)


@pytest.fixture
def studio() -> Iterator[Studio]:
    with studio_of(appearances=APPEARANCES) as opened:
        yield opened


def features(name: str) -> list[str]:
    """Returns the texts for the features that the fake service names for a category of a group."""
    return [f"{name} with {one} as only a {name} has" for one in _some(FEATURES, name + APPEARANCES[name], 2)]


def texts(studio: Studio) -> dict[str, tuple[str, ...]]:
    return {category.name: category.texts for category in studio.clf.categories()}


def to(step: str, fault: Fault, about: str = "") -> Callable[[Request], Fault | None]:
    """Returns faults for the questions of a step that name a category."""

    def choose(request: Request) -> Fault | None:
        assert request.path == CHAT  # no image is asked for
        asked = request.body["response_format"]["json_schema"]["name"]
        return fault if asked == step and about in request.body["messages"][-1]["content"] else None

    return choose


def test_appearances_and_distinguishing_features_become_texts(studio: Studio) -> None:
    done = studio.generate(*NAMES, texts_only=True)
    assert texts(studio) == {
        "blue whale": ("blue whale", WHALE),  # resembles no other
        "giant panda": ("giant panda", APPEARANCES["giant panda"], *features("giant panda")),
        "red panda": ("red panda", PANDA, *features("red panda")),
    }
    assert {name: (name, *some) for name, some in done.texts.items()} == texts(studio)
    assert studio.requests() == {"questions": 3}
    assert (done.images, done.declined, done.undescribed, done.out_of_budget) == ((), (), {}, False)
    assert studio.clf.category("red panda").references == {"clip:text": 4}
    assert studio.clf.classify(tinted("red", 7)).nearest == "red panda"


def test_texts_and_images_of_a_user_stay_and_one_undo_takes_all_back(studio: Studio) -> None:
    studio.clf.add_category("red panda", texts=["lives in trees"], images=[tinted("red", 1)], metadata={"by": "zoo"})
    before, changes = state(studio.clf._store), len(list(studio.clf.history))
    studio.generate(*NAMES, texts_only=True)
    panda = studio.clf.category("red panda")
    assert panda.texts == ("lives in trees", PANDA, *features("red panda"))
    assert (panda.metadata, panda.references["dino:image"]) == ({"by": "zoo"}, 1)
    assert len(list(studio.clf.history)) == changes + 1
    undone = studio.clf.history.undo()
    assert (undone.what, set(undone.categories)) == ("generate", set(NAMES))
    assert state(studio.clf._store).keys() == before.keys() == {"red panda"}
    assert studio.clf.category("red panda").texts == ("lives in trees",)


def test_a_second_run_pays_and_stores_nothing(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    first = studio.generate(*NAMES, texts_only=True)
    monkeypatch.delenv("OPENAI_API_KEY")
    before = state(studio.clf._store), studio.requests(), studio.embedded()
    plan = studio.clf.generation.plan(NAMES, folder=studio.folder, texts_only=True)
    assert (plan.cost, sum(plan.questions.values())) == (0, 0)
    second = studio.clf.generation.run(plan)
    assert (state(studio.clf._store), studio.requests(), studio.embedded()) == before
    assert (second.texts, second.spent) == (first.texts, first.spent)
    with zsvec.open(":memory:", encoders=coloured_encoders(), generation={"base_url": studio.server.url}) as clf:
        clf.generation.references(NAMES, folder=studio.folder, texts_only=True)
        assert {category.name: category.texts for category in clf.categories()} == texts(studio)


def test_confusions_of_the_store_do_not_make_a_second_run_pay(tmp_path: Path) -> None:
    stored = {name: StoredCategory("text", 1) for name in "ab"}
    plans = [
        plan_of(tmp_path, "ab", stored=stored, confusions=Confusions({"a": 0.5}, partners), texts_only=True)
        for partners in ({}, {"a": ("b",)})
    ]
    assert plans[0].questions == plans[1].questions


def test_answers_of_a_run_for_images_are_reused_and_its_flagged_images_stay_out(studio: Studio) -> None:
    studio.pictures["red panda"] = [picture("blue", 1)]  # far from the category
    studio.generate("red panda", "giant panda", per_category=1)
    before, asked = studio.clf.category("red panda").references, studio.requests()
    done = studio.generate("red panda", "giant panda", texts_only=True)
    assert (done.images, studio.requests()) == ((), asked)
    assert studio.clf.category("red panda").references == {**before, "clip:text": before["clip:text"] + 2}


def test_a_removed_text_is_not_stored_again(studio: Studio) -> None:
    studio.generate("red panda", texts_only=True)
    [digest] = [one.hash for one in studio.clf.references.of("red panda") if one.source == PANDA]
    studio.clf.references.remove("red panda", [digest])
    done = studio.generate("red panda", texts_only=True)
    assert [one.source for one in done.withdrawn] == [PANDA]
    assert texts(studio) == {"red panda": ("red panda",)}


# ---- answers of no use


@pytest.mark.parametrize(
    ("fault", "code"),
    [(Fault.refusal(), "refusal"), (Fault.length(), "length"), (Fault.malformed_content(), "unusable")],
    ids=["refused", "cut", "malformed"],
)
def test_a_category_without_a_description_is_not_made(studio: Studio, fault: Fault, code: str) -> None:
    studio.fault = to("descriptions", fault, "blue whale")
    done = studio.generate(*NAMES, texts_only=True)
    assert texts(studio).keys() == {"red panda", "giant panda"}  # which were asked about alone
    assert {name: why.partition(":")[0] for name, why in done.undescribed.items()} == {"blue whale": code}


@pytest.mark.parametrize("step", ["groups", "features"])
def test_without_features_the_appearance_is_the_text(studio: Studio, step: str) -> None:
    studio.fault = to(step, Fault.refusal())
    studio.generate("red panda", "giant panda", texts_only=True)
    assert texts(studio)["red panda"] == ("red panda", PANDA)


def test_an_answer_that_breaks_off_is_paid_once(studio: Studio) -> None:
    studio.fault = lambda request: Fault.cut() if request.attempt == 0 else None
    studio.generate("red panda", texts_only=True)
    assert set(studio.server.sold(CHAT).values()) == {1}
    assert texts(studio) == {"red panda": ("red panda", PANDA)}


def test_an_error_is_raised_after_the_answers_before_are_stored(studio: Studio) -> None:
    studio.fault = to("features", Fault.out_of_quota())
    with pytest.raises(GenerationError) as raised:
        studio.generate("red panda", "giant panda", texts_only=True)
    assert texts(studio)["red panda"] == ("red panda", PANDA)
    assert isinstance(raised.value.generated, Generated)
    assert raised.value.generated.texts["red panda"] == [PANDA]
    studio.fault = lambda request: None
    studio.generate("red panda", "giant panda", texts_only=True)
    assert texts(studio)["red panda"] == ("red panda", PANDA, *features("red panda"))
    with studio_of() as other:
        other.fault = to("descriptions", Fault.unauthorized())
        with pytest.raises(GenerationError) as raised:
            other.generate("red panda", texts_only=True)
        assert (raised.value.generated, other.clf.categories()) == (None, [])


# ---- budgets


def test_a_budget_covers_the_first_categories(studio: Studio) -> None:
    studio.clf.add_category("red panda", images=[tinted("red", 1)])  # others need a text more
    dollars = studio.clf.generation.plan(["blue whale"], folder=studio.folder, texts_only=True).cost
    assert dollars
    budget = Budget(images=0, dollars=dollars)  # the budget in images does not count
    plan = studio.clf.generation.plan(["red panda", "blue whale"], folder=studio.folder, budget=budget, texts_only=True)
    assert (plan.described, plan.places, plan.excluded) == (("blue whale",), (), 1)
    assert plan.cost == pytest.approx(dollars, rel=0.1)
    done = studio.clf.generation.run(plan)
    assert (list(done.texts), done.out_of_budget) == (["blue whale"], True)
    assert 0 < done.spent <= dollars
    asked = studio.requests()
    again = studio.generate("red panda", "blue whale", budget=Budget(dollars=0), texts_only=True)
    assert (list(again.texts), again.out_of_budget, studio.requests()) == (["blue whale"], True, asked)


def test_only_the_language_model_needs_a_price(tmp_path: Path) -> None:
    settings = settings_of(image_model="my-own")
    plan = plan_of(tmp_path, ["cat"], settings, budget=Budget(dollars=1), texts_only=True)
    assert plan.described == ("cat",)
    assert plan.cost == plan.cost_of_questions
    with pytest.raises(InvalidInputError, match="my-own"):
        plan_of(tmp_path, ["cat"], settings, budget=Budget(dollars=1))


def test_a_store_without_an_encoder_of_texts() -> None:
    with studio_of(HashEncoder("dino", modalities=("image",))) as studio:
        with pytest.raises(InvalidInputError):
            studio.generate("red panda", texts_only=True)
        assert (studio.requests(), studio.folder.exists()) == ({}, False)
