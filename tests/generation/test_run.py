"""Runs against a server: requests, purchases, ends, and the folder afterwards."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ALL_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.generation.fake_openai import CHAT, IMAGES, FakeOpenAI, Fault, Request
from tests.generation.material import plan_of, settings_of, tree
from tests.generation.scripted import Reply, Scripted, Sent, scripted
from tests.support import encode, photo
from zsvec.errors import GenerationError, GenerationUnavailableError
from zsvec.generation import prompts
from zsvec.generation import run as module
from zsvec.generation.access import KEY_VARIABLE
from zsvec.generation.client import Client
from zsvec.generation.features import Knowledge
from zsvec.generation.manifest import AnswerRecord, ImageRecord, Manifest, read_manifest
from zsvec.generation.plan import Budget
from zsvec.generation.run import Drawn, Run, carry_out
from zsvec.settings.settings import ModelPrice

PANDAS = ["giant_panda", "red_panda"]


def run(
    server: FakeOpenAI,
    folder: Path,
    categories: Sequence[str],
    *,
    per_category: int = 2,
    budget: Budget | None = None,
    track: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    **options: Any,
) -> Drawn:
    settings = settings_of(server.url, **options)
    plan = plan_of(folder, categories, settings, per_category=per_category, budget=budget)
    return carry_out(plan, settings, track=track)


def on_disk(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder / "images")) for path in folder.glob("images/*/*"))


def files(*categories: str, per_category: int = 2) -> list[str]:
    return sorted(f"{name}/{index:04}.png" for name in categories for index in range(per_category))


def asked(server: FakeOpenAI, first: int = 0) -> list[tuple[str | None, tuple[str, ...]]]:
    """Returns step and categories of each question, from a request on."""
    chats = [entry for entry in server.entries if entry.path == CHAT and entry.number >= first]
    return [(entry.subject, entry.categories) for entry in sorted(chats, key=lambda entry: entry.number)]


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("zsvec")]


def sold_once(server: FakeOpenAI) -> bool:
    """Returns whether the server sold no answer and no image twice."""
    return set(server.sold().values()) == {1}


def image_cost(prompt: str) -> float:
    """Returns dollars by list price, with the server's count of tokens."""
    return (len(prompt) // 4 * 5 + 196 * 30) / 1e6


# A whole run


def test_two_hundred_categories(tmp_path: Path) -> None:
    names = [f"{colour}_thing{i:02}" for i in range(100) for colour in ("blue", "red")]
    settings = settings_of("http://unused", concurrency=8)
    with FakeOpenAI(latency=0.01) as server:
        settings = settings.model_copy(update={"base_url": server.url})
        plan = plan_of(tmp_path, names, settings)
        drawn = carry_out(plan, settings)
        entries = {entry.number: entry for entry in server.entries}
        assert sold_once(server)
        assert 1 < server.peak <= 8
    assert (drawn.error, drawn.out_of_budget, drawn.declined) == (None, False, ())

    # each category is described, and compared with the category of the same name
    assert drawn.knowledge.descriptions.keys() == set(names)
    assert drawn.knowledge.features.keys() == {(f"blue_thing{i:02}", f"red_thing{i:02}") for i in range(100)}
    steps: Counter[Any] = Counter(entry.subject for entry in entries.values() if entry.path == CHAT)
    assert steps == {"descriptions": 20, "groups": 5, "features": 17}
    assert all(steps[step] <= plan.questions[step] for step in steps)

    # each image with its full record
    assert {(record.category, record.index) for record in drawn.images} == {(n, i) for n in names for i in range(2)}
    assert on_disk(tmp_path) == files(*names)
    for record in drawn.images:
        entry = entries[int(record.response.removeprefix("req_"))]
        assert (entry.subject, entry.path) == (record.prompt, IMAGES)
        assert (record.model, record.size, record.quality) == (settings.image_model, "1024x1024", "low")
        assert record.cost == pytest.approx(image_cost(record.prompt))
        assert 0.01 <= record.seconds <= settings.deadline
        assert hashlib.sha256((tmp_path / record.file).read_bytes()).hexdigest() == record.sha256
        assert f"the category “{record.category.replace('_', ' ')}”: " in record.prompt
        assert f"as only a {record.category} has" in record.prompt
    assert len({record.sha256 for record in drawn.images}) == len({record.prompt for record in drawn.images}) == 400
    with Image.open(tmp_path / drawn.images[0].file) as image:
        assert image.size == (64, 64)

    # in the order of the steps, on disk as in the result
    records = read_manifest(tmp_path)
    kinds = [record.step if isinstance(record, AnswerRecord) else record.kind for record in records]
    assert list(dict.fromkeys(kinds)) == ["folder", "descriptions", "groups", "features", "image"]
    assert kinds == sorted(kinds, key=list(dict.fromkeys(kinds)).index)
    assert Knowledge.of(records) == drawn.knowledge
    answers = sum(record.cost or 0 for record in records if isinstance(record, AnswerRecord))
    assert 0 < answers <= (plan.cost_of_questions or 0)
    assert drawn.spent == pytest.approx(answers + sum(image_cost(record.prompt) for record in drawn.images))
    assert plan_of(tmp_path, names, settings).spent == pytest.approx(drawn.spent)


def test_prompts_have_the_answered_features(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        drawn = run(server, tmp_path, [*PANDAS, "desk"], per_category=1)
    shown = {record.category: record.prompt for record in drawn.images}
    known = drawn.knowledge
    shared = known.features["giant_panda", "red_panda"]
    for member in shared.members:
        assert known.descriptions[member.name].scenes[0] in shown[member.name]
        for phrase in (*shared.common, *member.distinguishing):
            assert phrase in shown[member.name]
    assert shown["desk"] == prompts.draw("desk", 0, scenes=known.descriptions["desk"].scenes)


def test_folders_do_not_share_purchases(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        for folder in ("a", "b"):
            run(server, tmp_path / folder, ["desk"])
        assert len(server.sold(IMAGES)) == 4


# Again, and more


def test_a_second_run_asks_and_buys_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeOpenAI() as server:
        settings = settings_of(server.url)
        plan = plan_of(tmp_path, PANDAS, settings)
        first = carry_out(plan, settings)
        requests, before = len(server.entries), tree(tmp_path)
        monkeypatch.delenv(KEY_VARIABLE)
        for again in (plan, plan_of(tmp_path, PANDAS, settings)):  # a plan that is out of date, too
            assert carry_out(again, settings) == first
        assert len(server.entries) == requests
    assert tree(tmp_path) == before


def test_a_larger_run_buys_only_the_missing_images(tmp_path: Path) -> None:
    with FakeOpenAI(groups=[["desk", "table"]]) as server:
        first = run(server, tmp_path, ["desk", "giant_panda"], per_category=1)
        requests = len(server.entries)
        more = run(server, tmp_path, ["desk", "giant_panda", "red_panda", "table"], per_category=2)
        assert asked(server, requests) == [
            ("descriptions", ("red_panda", "table")),
            ("groups", ("red_panda", "table")),
            ("features", ("giant_panda", "red_panda", "desk", "table")),
        ]
        assert server.sold(IMAGES).total() == 8
        assert set(first.images) < set(more.images)
        requests = len(server.entries)
        assert len(run(server, tmp_path, ["desk"], per_category=3).images) == 3
        assert [entry.path for entry in server.entries[requests:]] == [IMAGES]
    assert on_disk(tmp_path) == sorted([*files("desk", "giant_panda", "red_panda", "table"), "desk/0002.png"])


def test_complete_categories_are_still_compared_with_others(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        run(server, tmp_path, ["giant_panda"])
        drawn = run(server, tmp_path, PANDAS)
    shown = [record.prompt for record in drawn.images if record.category == "red_panda"]
    assert len(shown) == 2
    assert all("as only a red_panda has" in prompt for prompt in shown)
    common = drawn.knowledge.features["giant_panda", "red_panda"].common
    assert all(phrase in prompt for phrase in common for prompt in shown)


def test_answers_are_learned_in_the_order_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A run that resumes this one makes its prompts from the file.
    def last_first(pending: set[Future[Any]], **_: Any) -> tuple[list[Future[Any]], set[Future[Any]]]:
        done = list(wait(pending, return_when=ALL_COMPLETED).done)
        first = {id(record): place for place, record in enumerate(recorded)}
        return sorted(done, key=lambda future: first[id(future.result())], reverse=True), set()

    recorded: list[Any] = []
    append = Manifest.append

    def noted(self: Manifest, record: Any) -> None:
        append(self, record)
        recorded.append(record)

    monkeypatch.setattr(Manifest, "append", noted)
    monkeypatch.setattr(module, "wait", last_first)
    names = [f"{colour} thing{i:02}" for i in range(41) for colour in ("blue", "red")]
    with FakeOpenAI() as server:
        drawn = run(server, tmp_path, names, per_category=1, concurrency=8)
    known = Knowledge.of(read_manifest(tmp_path))
    assert len(known.groups) > len(set(known.groups)) == 41  # in the answers to several questions
    assert drawn.knowledge.groups == known.groups


def test_another_image_is_bought_for_one_that_was_deleted(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        former = next(iter(run(server, tmp_path, ["desk"]).images))
        for _ in range(2):
            (tmp_path / former.file).unlink()
            drawn = run(server, tmp_path, ["desk"])
            (latter,) = [record for record in drawn.images if record.index == former.index]
            assert latter.prompt == former.prompt
            assert latter.file != former.file
            assert latter.sha256 != former.sha256
            assert len(drawn.images) == 2
            former = latter
        assert server.sold(IMAGES).total() == 4
        assert len(asked(server)) == 2


def test_other_prompts_ask_again_but_buy_no_image_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeOpenAI() as server:
        run(server, tmp_path, PANDAS)
        requests = len(server.entries)
        monkeypatch.setattr(prompts, "VERSION", prompts.VERSION + 1)
        run(server, tmp_path, PANDAS)
        assert len(server.entries) == requests
        run(server, tmp_path, PANDAS, per_category=3)
        assert [step for step, _ in asked(server, requests)] == ["descriptions", "groups", "features"]
        assert server.sold(IMAGES).total() == 6


# Declined requests


def blocks(*words: str) -> Callable[[Request], Fault | None]:
    """Returns a fault for images with one of the names in the prompt."""
    return lambda request: (
        Fault.blocked() if request.path == IMAGES and any(f"“{w}”" in request.body["prompt"] for w in words) else None
    )


def test_images_that_are_declined_are_results(tmp_path: Path) -> None:
    with FakeOpenAI(fault=blocks("desk", "red panda")) as server:
        drawn = run(server, tmp_path, ["desk", *PANDAS])
        requests = len(server.entries)
        assert run(server, tmp_path, ["desk", *PANDAS]) == drawn
        assert len(server.entries) == requests
    assert (drawn.error, drawn.out_of_budget) == (None, False)
    assert on_disk(tmp_path) == files("giant_panda")
    assert sorted((record.category, record.index, record.code, record.cost) for record in drawn.declined) == [
        (name, index, "policy", 0.0) for name in ("desk", "red_panda") for index in range(2)
    ]
    assert all("rejected by the safety system" in record.reason for record in drawn.declined)
    assert all(f"“{record.category.replace('_', ' ')}”" in record.prompt for record in drawn.declined)


def test_results_are_tracked_as_they_come(tmp_path: Path) -> None:
    seen = []

    def track(results: Iterable[Any]) -> Iterator[Any]:
        for result in results:
            seen.append(result)
            yield result

    with FakeOpenAI(fault=blocks("desk")) as server:
        drawn = run(server, tmp_path, ["desk", *PANDAS], track=track)
    assert Counter(seen) == Counter([*drawn.images, *drawn.declined])


def test_an_answer_that_is_declined_for_several_is_asked_one_by_one(tmp_path: Path) -> None:
    def refuse(request: Request) -> Fault | None:
        about_desks = request.path == CHAT and "desk" in request.body["messages"][-1]["content"]
        return Fault.refusal("Not desks.") if about_desks else None

    names = ["chair", "desk", *PANDAS]
    with FakeOpenAI(fault=refuse) as server:
        drawn = run(server, tmp_path, names)
        requests = len(server.entries)
        assert len(run(server, tmp_path, names, per_category=3).images) == 12
        assert asked(server, requests) == []
    assert asked(server)[0] == ("descriptions", tuple(names))
    assert sorted(asked(server)[1:5]) == [("descriptions", (name,)) for name in names]
    assert drawn.error is None
    assert drawn.knowledge.declined["descriptions", "desk"] == "refusal: Not desks."
    assert drawn.knowledge.appearances().keys() == {"chair", *PANDAS}
    assert on_disk(tmp_path) == files(*names, per_category=3)
    plain = [record.prompt for record in drawn.images if record.category == "desk"]
    assert sorted(plain) == sorted(prompts.draw("desk", index) for index in range(2))


# Errors


@pytest.mark.parametrize("when", [0, 2, 9])
def test_an_error_ends_the_run_and_keeps_arrived_results(tmp_path: Path, when: int) -> None:
    # One request is refused at once, and concurrent requests are slow.
    def fault(request: Request) -> Fault | None:
        if request.number == when:
            return Fault.unauthorized()
        return Fault.delay(0.2) if abs(request.number - when) < 4 else None

    names = ["bear", "desk", *PANDAS]
    with FakeOpenAI(fault=fault) as server:
        drawn = run(server, tmp_path, names, per_category=6)
        assert isinstance(drawn.error, GenerationError)
        assert workers() == []
        assert all(entry.completed for entry in server.entries)
        assert len(server.entries) <= when + 2 * 4  # concurrent requests, and later ones begun before the answer
        assert len(drawn.images) == server.sold(IMAGES).total()
        assert on_disk(tmp_path) == sorted(record.file.removeprefix("images/") for record in drawn.images)
        answers = [record for record in read_manifest(tmp_path) if isinstance(record, AnswerRecord)]
        assert len(answers) == server.sold(CHAT).total()

        done = run(server, tmp_path, names, per_category=6)
        assert (done.error, len(done.images)) == (None, 24)
        assert sold_once(server)
    assert set(drawn.images) <= set(done.images)


def test_failures_until_the_deadline_end_the_run(tmp_path: Path) -> None:
    down = threading.Event()
    down.set()

    def fault(request: Request) -> Fault | None:
        is_late = request.path == IMAGES and "“red panda”" in request.body["prompt"]
        return Fault.error(500) if is_late and down.is_set() else None

    with FakeOpenAI(fault=fault) as server:
        drawn = run(server, tmp_path, PANDAS, deadline=0.3)
        assert isinstance(drawn.error, GenerationUnavailableError)
        assert {record.category for record in drawn.images} <= {"giant_panda"}
        assert len(drawn.images) == server.sold(IMAGES).total()
        down.clear()
        assert len(run(server, tmp_path, PANDAS).images) == 4


def test_temporary_failures_do_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.generation.client._BACK_OFF.multiplier", 0.01)
    faults = [Fault.error(500), Fault.cut(), Fault.rate_limited(0.01), Fault.malformed_body()]

    def fault(request: Request) -> Fault | None:
        return faults[request.number % 4] if request.attempt == 0 else None

    with FakeOpenAI(fault=fault) as server:
        drawn = run(server, tmp_path, PANDAS)
        assert drawn.error is None
        assert on_disk(tmp_path) == files(*PANDAS)
        assert len(drawn.images) == 4


def test_an_interruption_loses_nothing(tmp_path: Path) -> None:
    def track(results: Iterable[Any]) -> Iterator[Any]:
        for count, result in enumerate(results, start=1):
            yield result
            if count == 3:
                raise KeyboardInterrupt

    names = ["bear", "desk", *PANDAS]
    with FakeOpenAI(latency=0.05) as server:
        with pytest.raises(KeyboardInterrupt) as caught:
            run(server, tmp_path, names, track=track)
        assert caught.traceback  # keeps the frames of the run alive
        assert workers() == []
        sold = server.sold(IMAGES)
        assert 3 <= sold.total() < 8
        assert len(on_disk(tmp_path)) == sold.total()
        assert len([r for r in read_manifest(tmp_path) if isinstance(r, ImageRecord)]) == sold.total()

        assert len(run(server, tmp_path, names).images) == 8
        assert sold_once(server)
        assert len(server.sold(IMAGES)) == 8


# Budgets


@pytest.mark.parametrize("dollars", [0.0, 0.0005, 0.004, 0.0068, 0.0069, 0.02, 0.0314, 0.05, 0.0789, 0.1])
def test_a_budget_in_dollars_is_never_exceeded(tmp_path: Path, dollars: float) -> None:
    names = ["bear", "desk", *PANDAS]
    with FakeOpenAI(latency=0.005) as server:
        drawn = run(server, tmp_path, names, per_category=3, budget=Budget(dollars=dollars), concurrency=8)
        answers = sum(r.cost or 0 for r in read_manifest(tmp_path) if isinstance(r, AnswerRecord))
        paid = answers + sum(image_cost(entry.subject or "") for entry in server.entries if entry.path == IMAGES)
        assert drawn.spent == pytest.approx(paid)
        assert paid <= dollars
        assert drawn.error is None
        assert drawn.out_of_budget == (len(drawn.images) < 12)
        if drawn.out_of_budget and drawn.images:
            assert dollars - paid < 0.0069  # less than the price of an image

        requests = len(server.entries)
        same = run(server, tmp_path, names, per_category=3, budget=Budget(dollars=dollars), concurrency=8)
        assert (same.images, len(server.entries)) == (drawn.images, requests)

        more = run(server, tmp_path, names, per_category=3, budget=Budget(dollars=dollars + 0.02), concurrency=8)
        assert drawn.spent <= more.spent <= dollars + 0.02
        assert len(more.images) > len(drawn.images) or len(drawn.images) == 12
        assert sold_once(server)


def test_declined_images_leave_their_cost_to_the_budget(tmp_path: Path) -> None:
    with FakeOpenAI(fault=blocks("desk")) as server:
        drawn = run(server, tmp_path, ["desk", "bear"], per_category=4, budget=Budget(dollars=0.035), concurrency=1)
    assert len(drawn.declined) == 4
    assert len(drawn.images) == 4
    assert not drawn.out_of_budget


@pytest.mark.parametrize("counted", [{}, {"usage": {"input_tokens": 50, "output_tokens": 196}}])
@pytest.mark.parametrize("unusable", [0, 1, 2, 3])
def test_each_unusable_image_costs_the_price_of_an_image(tmp_path: Path, unusable: int, counted: Any) -> None:
    image = {"b64_json": base64.b64encode(encode(photo(1))).decode()}

    def respond(server: Scripted, _: Sent) -> Reply:
        return Reply({"data": [{} if len(server.seen) <= unusable else image], **counted})

    with scripted(respond) as server:
        prices = {"painter": ModelPrice(input=0.0, output=0.0, image=0.01)}
        settings = settings_of(server.url, image_model="painter", prices=prices)
        with Client(settings) as client, Manifest(tmp_path) as manifest:
            plan = plan_of(tmp_path, ["desk"], settings, per_category=1)
            (result,) = Run(plan, settings, manifest, client).draw([])
    assert isinstance(result, ImageRecord) == (unusable < 3)
    responses = min(unusable + 1, 3)
    assert (result.cost, len(server.seen)) == (pytest.approx(responses * 0.01), responses)


def test_a_budget_of_images_is_never_exceeded(tmp_path: Path) -> None:
    with FakeOpenAI() as server:
        for budget, there in ((0, 0), (3, 3), (2, 3), (5, 5), (99, 8)):
            drawn = run(server, tmp_path, ["bear", "desk", *PANDAS], budget=Budget(images=budget), concurrency=8)
            assert len(drawn.images) == server.sold(IMAGES).total() == there
