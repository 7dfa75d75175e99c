"""Feature analysis with hand-made answers, and the prompts from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from zsvec.generation import prompts
from zsvec.generation.features import Asked, Knowledge, NameGroup, analyse, chosen_groups
from zsvec.generation.manifest import AnswerRecord, DeclinedRecord, FolderRecord, Record

Reply = Mapping[str, Any] | str  # an answer, or a refusal


def record(step: str, about: Sequence[Any], reply: Reply, version: int = prompts.VERSION) -> AnswerRecord:
    """Returns a record as read from a manifest."""
    made = AnswerRecord(
        step=step,
        version=version,
        about=list(about),
        answer=None if isinstance(reply, str) else dict(reply),
        declined=reply if isinstance(reply, str) else None,
        model="writer",
        response="chatcmpl-1",
        cost=0.0,
    )
    return AnswerRecord.model_validate_json(made.model_dump_json())


class Oracle:
    """Answers questions by step, instead of a language model.

    Attributes:
        asked: Subjects of each question, by step.
        data: Data of each question, by step.
    """

    def __init__(self, known: Knowledge, **replies: Callable[[Sequence[Any]], Reply]) -> None:
        self._known = known
        self._replies = {"descriptions": described, "groups": lambda _: grouped(), "features": compared, **replies}
        self.asked: dict[str, list[list[Any]]] = {}
        self.data: dict[str, list[Mapping[str, Any]]] = {}

    def __call__(self, questions: Sequence[Asked]) -> None:
        for question, about in questions:
            self.asked.setdefault(question.step, []).append(list(about))
            self.data.setdefault(question.step, []).append(question.data)
            self._known.learn_all([record(question.step, about, self._replies[question.step](about))])


def described(names: Sequence[str]) -> Reply:
    return {"categories": [description(name) for name in names]}


def description(name: str, appearance: str | None = None) -> dict[str, Any]:
    return {"name": name, "appearance": f"what a {name} is like" if appearance is None else appearance, "scenes": ["s"]}


def grouped(*groups: Sequence[str]) -> Reply:
    return {"groups": [list(group) for group in groups]}


def compared(groups: Sequence[NameGroup]) -> Reply:
    return {"groups": [features(*group) for group in groups]}


def features(*names: str) -> dict[str, Any]:
    members = [{"name": name, "distinguishing": [f"the mark of {name}"]} for name in names]
    return {"common": [f"a trait of {'+'.join(names)}"], "members": members}


def ask_all(
    known: Knowledge,
    names: Sequence[str],
    others: Mapping[str, str] | None = None,
    measured: Sequence[NameGroup] = (),
    **replies: Callable[[Sequence[Any]], Reply],
) -> tuple[Oracle, list[NameGroup]]:
    oracle = Oracle(known, **replies)
    return oracle, analyse(known, names, others or {}, measured, oracle)


# Asking


def test_many_are_asked_about_at_once() -> None:
    names = [f"n{i:02}" for i in range(23)]
    pairs = [(names[i], names[i + 1]) for i in range(0, 22, 2)]
    oracle, groups = ask_all(Knowledge(), names, {"other": "what it is like"}, groups=lambda _: grouped(*pairs))
    assert oracle.asked == {
        "descriptions": [names[:10], names[10:20], names[20:]],
        "groups": [names],
        "features": [pairs[:6], pairs[6:]],
    }
    assert oracle.data["groups"] == [{"categories": names, "all": [*names, "other"]}]
    assert groups == pairs
    many = [f"n{i:02}" for i in range(81)]
    assert ask_all(Knowledge(), many)[0].asked["groups"] == [many[:40], many[40:80], many[80:]]


def test_answered_questions_are_not_repeated() -> None:
    known = Knowledge()
    pair = ("a", "b")
    _, groups = ask_all(known, ["a", "b", "c"], groups=lambda _: grouped(pair))
    oracle, again = ask_all(known, ["a", "b", "c"])
    assert oracle.asked == {}
    assert again == groups == [pair]
    oracle, _ = ask_all(known, ["a", "b", "c", "d"])
    assert oracle.asked == {"descriptions": [["d"]], "groups": [["d"]]}


def test_names_that_are_left_out_are_asked_about_alone_and_then_given_up() -> None:
    for left_out in ([], [description("b", " ")], [description("B")]):

        def without_b(names: Sequence[str], left_out: Sequence[Any] = left_out) -> Reply:
            return {"categories": [*(description(name) for name in names if name != "b"), *left_out]}

        known = Knowledge()
        oracle, _ = ask_all(known, ["a", "b", "c"], descriptions=without_b)
        assert oracle.asked["descriptions"] == [["a", "b", "c"], ["b"]]
        assert known.declined == {("descriptions", "b"): "unusable: it was left out of the answer"}
        assert known.descriptions.keys() == {"a", "c"}
        assert ask_all(known, ["a", "b", "c"], descriptions=without_b)[0].asked == {}
    known = Knowledge()
    oracle, _ = ask_all(known, ["b"], descriptions=lambda _: described([]))
    assert oracle.asked["descriptions"] == [["b"]]
    assert list(known.declined) == [("descriptions", "b")]


def test_one_that_is_left_out_of_many_may_be_answered_alone() -> None:
    known = Knowledge()
    oracle, _ = ask_all(known, ["a", "b"], descriptions=lambda names: described(names[:1]))
    assert oracle.asked["descriptions"] == [["a", "b"], ["b"]]
    assert known.descriptions.keys() == {"a", "b"}
    assert known.declined == {}


def test_a_declined_question_about_many_is_asked_for_each() -> None:
    def refuse_b(about: Sequence[Any]) -> Reply:
        return "refusal: not this" if "b" in about else described(about)

    known = Knowledge()
    oracle, _ = ask_all(
        known,
        ["a", "b", "c"],
        descriptions=refuse_b,
        groups=lambda about: "policy: none of these" if len(about) > 1 else grouped(("a", "c")),
        features=lambda _: "length: too long",
    )
    assert oracle.asked == {
        "descriptions": [["a", "b", "c"], ["a"], ["b"], ["c"]],
        "groups": [["a", "b", "c"], ["a"], ["b"], ["c"]],
        "features": [[("a", "c")]],
    }
    assert known.declined == {
        ("descriptions", "b"): "refusal: not this",
        ("features", ("a", "c")): "length: too long",
    }
    assert ask_all(known, ["a", "b", "c"])[0].asked == {}


def test_a_wrong_number_of_compared_groups_cannot_be_told_apart() -> None:
    pairs = [("a", "b"), ("c", "d"), ("e", "f")]

    def too_few(groups: Sequence[NameGroup]) -> Reply:
        return compared(groups[:-1]) if len(groups) > 1 or groups == [("e", "f")] else compared(groups)

    known = Knowledge()
    oracle, groups = ask_all(known, "abcdef", groups=lambda _: grouped(*pairs), features=too_few)
    assert oracle.asked["features"] == [pairs, [pairs[0]], [pairs[1]], [pairs[2]]]
    assert {group: found.common for group, found in known.features.items()} == {
        ("a", "b"): ["a trait of a+b"],
        ("c", "d"): ["a trait of c+d"],
    }
    assert list(known.declined) == [("features", ("e", "f"))]
    assert groups == pairs


def test_names_that_are_made_up_are_ignored() -> None:
    known = Knowledge()
    oracle, groups = ask_all(
        known,
        ["a", "b"],
        descriptions=lambda names: described([*names, "unicorn"]),
        groups=lambda _: grouped(("a", "unicorn", "b"), ("unicorn", "dragon"), ("a", "dragon")),
        features=lambda groups: {"groups": [features("a", "unicorn")]},
    )
    assert known.descriptions.keys() == {"a", "b"}
    assert groups == [("a", "b")]
    assert oracle.asked["features"] == [[("a", "b")]]
    assert known.look("a", groups)["distinguishing"] == ["the mark of a"]
    assert known.look("b", groups)["distinguishing"] == []
    assert known.appearances() == {"a": "what a a is like", "b": "what a b is like"}


def test_groups_are_compared_by_the_appearances_of_their_members() -> None:
    oracle, _ = ask_all(
        Knowledge(),
        ["a", "b"],
        {"old": "a text of the store", "other": "another"},
        measured=[("a", "old", "b")],
        descriptions=lambda names: described([name for name in names if name != "b"]),
    )
    assert oracle.data["features"] == [
        {
            "groups": [
                [
                    {"name": "a", "appearance": "what a a is like"},
                    {"name": "b", "appearance": ""},
                    {"name": "old", "appearance": "a text of the store"},
                ]
            ]
        }
    ]


def test_measured_groups_come_first() -> None:
    groups = [("a", "b"), ("a", "c"), ("b", "c", "d")]
    oracle, found = ask_all(
        Knowledge(), "abcd", measured=[("a", "d")], groups=lambda _: grouped(*groups, ("c", "d"), ("c", "e"))
    )
    assert found == [("a", "d"), ("a", "b"), ("a", "c"), ("b", "c", "d")]
    assert oracle.asked["features"] == [found]


def test_chosen_groups() -> None:
    cases: list[tuple[str, list[NameGroup], list[NameGroup]]] = [
        ("ab", [], []),
        ("ab", [("a",)], []),
        ("ab", [("a", "x")], []),
        ("ab", [("b", "a")], [("a", "b")]),
        ("ab", [("b", "a"), ("a", "b")], [("a", "b")]),
        ("abc", [("a", "b", "c"), ("c", "b")], [("a", "b", "c")]),  # the second says nothing new
        ("abc", [("c", "b"), ("a", "b", "c")], [("b", "c"), ("a", "b", "c")]),
        ("a", [("a", "b"), ("b", "c")], [("a", "b")]),  # the second concerns none of the names
        ("a", [("a", "b"), ("a", "c"), ("a", "d")], [("a", "b"), ("a", "c")]),  # two go into a prompt
        ("ad", [("a", "b"), ("a", "c"), ("a", "d")], [("a", "b"), ("a", "c"), ("a", "d")]),
        ("h", [tuple("hgfedcba")], [tuple("cdefgh")]),  # the first six
    ]
    for names, groups, chosen in cases:
        assert chosen_groups(list(names), groups, "abcdefgh") == chosen, (names, groups)


# Knowing


def test_answers_are_known_from_a_manifest() -> None:
    records: list[Record] = [
        FolderRecord(id="1"),
        record("descriptions", ["a", "b"], described(["a"])),
        record("groups", ["a", "b"], grouped(("a", "b", "a"))),
        record("features", [("a", "b")], compared([("a", "b")])),
        record("descriptions", ["b"], "refusal: no"),
        DeclinedRecord(category="a", index=0, prompt="", model="painter", code="policy", reason="", cost=0),
    ]
    known = Knowledge.of(records)
    assert known.appearances() == {"a": "what a a is like"}
    assert known.groups == [("a", "b")]
    assert known.features.keys() == {("a", "b")}
    assert known.declined == {("descriptions", "b"): "refusal: no"}
    assert known.missing("descriptions", ["a", "b", "c"]) == ["c"]
    assert known.missing("groups", ["a", "b", "c"]) == ["c"]
    assert known.missing("features", [("a", "b"), ("a", "c")]) == [("a", "c")]


def test_answers_to_other_prompts_are_asked_for_again() -> None:
    old = prompts.VERSION - 1
    records = [
        record("descriptions", ["a"], described(["a"]), old),
        record("descriptions", ["b"], "refusal: no", old),
        record("groups", ["a", "b"], grouped(("a", "b")), old),
        record("features", [("a", "b")], compared([("a", "b")]), old),
    ]
    known = Knowledge.of(records)
    assert known == Knowledge()
    assert ask_all(known, ["a", "b"])[0].asked == {"descriptions": [["a", "b"]], "groups": [["a", "b"]]}


def test_an_answer_of_another_form_is_asked_for_again() -> None:
    answers: dict[str, Reply] = {
        "poems": {},
        "descriptions": {"categories": 1},
        "groups": {"a": 1},
        "features": {"groups": [["a", "b"]]},
    }
    for step, answer in answers.items():
        known = Knowledge()
        known.learn_all([record(step, ["a", "b"], answer)])
        assert known == Knowledge(), step


def test_a_prompt_takes_the_features_of_two_groups() -> None:
    known = Knowledge()
    groups = [("b", "c"), ("a", "b"), ("a", "c"), ("a", "d")]
    told = {
        "groups": [
            features("b", "c"),
            {"common": ["1", "2", "1"], "members": [{"name": "a", "distinguishing": ["x", "y", "z"]}]},
            {"common": ["2", "3", "4", "5"], "members": [{"name": "a", "distinguishing": ["z", "u", "v", "w"]}]},
            features("a", "d"),
        ]
    }
    known.learn_all([record("features", groups, told)])
    known.learn_all(
        [record("descriptions", ["a"], {"categories": [{"name": "a", "appearance": "x", "scenes": ["s", "t"]}]})]
    )
    assert known.look("a", groups) == {
        "scenes": ["s", "t"],
        "common": ["1", "2", "3", "4"],
        "distinguishing": ["x", "y", "z", "u"],
    }
    assert known.look("d", groups)["distinguishing"] == ["the mark of d"]
    assert known.look("e", groups) == {"scenes": (), "common": [], "distinguishing": []}


def test_a_prompt_does_not_depend_on_other_categories() -> None:
    # The comparison of the first group was declined; the third is there because another category needs it.
    known = Knowledge()
    known.learn_all([record("features", [("a", "b")], "refusal: no")])
    known.learn_all([record("features", [("a", "c"), ("a", "d")], compared([("a", "c"), ("a", "d")]))])
    groups = [("a", "b"), ("a", "c"), ("a", "d")]
    some, more = (chosen_groups(names, groups, "abcd") for names in ("a", "ad"))
    assert some != more
    assert known.look("a", some) == known.look("a", more)
    assert known.look("a", some)["common"] == ["a trait of a+c"]


def test_texts_are_the_appearance_and_the_features_of_its_own() -> None:
    known = Knowledge()
    pairs = [("red_panda", "b"), ("red_panda", "c"), ("red_panda", "d")]
    odd = {"common": ["x"], "members": [{"name": "red_panda", "distinguishing": [" a ", "a", " ", "y" * 30_000]}]}

    def replies(groups: Sequence[NameGroup]) -> Reply:
        return {"groups": [odd if "c" in group else features(*group) for group in groups]}

    ask_all(known, ["red_panda", "lonely"], {"b": "", "c": ""}, groups=lambda _: grouped(*pairs), features=replies)
    assert known.texts(["red_panda", "lonely", "b"], ["red_panda", "lonely", "b", "c"]) == {
        "red_panda": ["what a red_panda is like", "red panda with the mark of red_panda", "red panda with a"],
        "lonely": ["what a lonely is like"],
    }


def test_an_appearance_that_is_too_long_for_a_store_is_no_answer() -> None:
    known = Knowledge()
    ask_all(known, ["a"], descriptions=lambda _: {"categories": [description("a", "x" * 20_001)]})
    assert (known.descriptions, list(known.declined)) == ({}, [("descriptions", "a")])
    ask_all(known, ["b"], descriptions=lambda _: {"categories": [description("b", f" {'x' * 20_000}{' ' * 9}")]})
    assert known.texts(["b"], ["b"]) == {"b": ["x" * 20_000]}


# Prompts


def test_a_plain_prompt() -> None:
    assert prompts.draw("grand piano", 0) == (
        "A realistic colour photograph of the category “grand piano”: in its usual surroundings, seen from the side. "
        "One photograph with it as the main subject, in natural light and colours. No text, frame or collage."
    )


def test_a_prompt_of_a_category_that_is_confused_with_others() -> None:
    prompt = prompts.draw(
        "red panda",
        3,
        scenes=["asleep on a branch", "eating bamboo"],
        common=["a ringed tail", "a white snout"],
        distinguishing=["reddish fur", "black legs"],
    )
    assert prompt == (
        "A realistic colour photograph of the category “red panda”: eating bamboo, from slightly above. "
        "Show the features that it shares with similar things: a ringed tail; a white snout. "
        "Show just as clearly what identifies it: reddish fur; black legs. "
        "One photograph with it as the main subject, in natural light and colours. No text, frame or collage."
    )


@given(st.lists(st.text("abc", min_size=1), max_size=12, unique=True))
def test_images_of_a_category_differ(scenes: list[str]) -> None:
    combinations = len(scenes or prompts.SCENES) * len(prompts.VIEWPOINTS)
    assert len({prompts.draw("desk", index, scenes=scenes) for index in range(combinations)}) == combinations


@given(st.lists(st.text("abc", min_size=1), min_size=2, max_size=8, unique=True))
def test_the_first_images_differ_in_scene_and_viewpoint(scenes: list[str]) -> None:
    shown = [prompts.draw("desk", index, scenes=scenes) for index in range(len(scenes))]
    for phrases in ([f": {scene}, " for scene in scenes], [f", {place}." for place in prompts.VIEWPOINTS]):
        seen = [phrase for prompt in shown for phrase in phrases if phrase in prompt]
        assert len(set(seen)) == len(seen) == len(shown)
