"""Feature analysis (paper, section 3.1): describes categories, groups similar ones, and compares each group.

Answers are kept in the manifest, so that each category is described and grouped once, and each group is compared once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from pydantic import ValidationError

from zsvec.generation import prompts
from zsvec.generation.manifest import AnswerRecord, Record
from zsvec.generation.prompts import Description, Descriptions, Features, GroupFeatures, Groups, Question
from zsvec.inputs.categories import LONGEST_TEXT, as_words

# Number of subjects in one question. In long answers, models become careless; a refusal concerns all subjects.
DESCRIBED_AT_ONCE = 10
GROUPED_AT_ONCE = 40
COMPARED_AT_ONCE = 6

MOST_GROUPS = 2  # maximum number of groups that the prompts of one category use
_MOST_PHRASES = 4
_MAX_FEATURE = 1000  # characters of a feature in a definition text; answers ask for short phrases

NameGroup: TypeAlias = tuple[str, ...]
Asked: TypeAlias = tuple[Question[Any], Sequence[Any]]
"""A question, and the category names or groups that the question is about."""


@dataclass(slots=True)
class Knowledge:
    """Features of categories, from the answers of the language model.

    Attributes:
        descriptions: Description of each category.
        groups: Groups of similar categories; may contain unknown names.
        features: Features of each group.
        declined: Reasons for missing answers, by step and subject.
    """

    descriptions: dict[str, Description] = field(default_factory=dict)
    groups: list[NameGroup] = field(default_factory=list)
    features: dict[NameGroup, GroupFeatures] = field(default_factory=dict)
    declined: dict[tuple[str, Any], str] = field(default_factory=dict)
    _answered: set[tuple[str, Any]] = field(default_factory=set)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Knowledge:
        """Returns the knowledge in a manifest. Subjects with only unusable answers stay `missing`."""
        knowledge = cls()
        knowledge.learn_all(records)
        knowledge.declined = {
            subject: why for subject, why in knowledge.declined.items() if not why.startswith("unusable")
        }
        return knowledge

    def learn_all(self, records: Iterable[Record]) -> None:
        """Adds the answers that were given to the current version of the prompts.

        A subject that was asked about alone is not asked about again, even if the answer is missing.
        """
        for record in records:
            if isinstance(record, AnswerRecord) and record.version == prompts.VERSION:
                self._learn(record)

    def _learn(self, record: AnswerRecord) -> None:
        about = [tuple(subject) if isinstance(subject, list) else subject for subject in record.about]
        if record.answer is not None:
            with suppress(ValidationError):  # a manifest from elsewhere may have any answer
                settled = self._taken_over(record.step, record.answer, about)
                self._answered.update((record.step, subject) for subject in settled)
        if len(about) == 1 and (record.step, about[0]) not in self._answered:
            self.declined[record.step, about[0]] = record.declined or "unusable: it was left out of the answer"

    def _taken_over(self, step: str, answer: Mapping[str, Any], about: Sequence[Any]) -> Iterable[Any]:
        """Adds an answer, and returns the subjects that the answer covers."""
        if step == "descriptions":
            categories = Descriptions.model_validate(answer).categories
            found = {one.name: one for one in categories if 0 < len(one.appearance) <= LONGEST_TEXT}
            described = {name: found[name] for name in about if name in found}
            self.descriptions.update(described)
            return described
        if step == "groups":
            self.groups += [tuple(dict.fromkeys(group)) for group in Groups.model_validate(answer).groups]
            return about
        features = Features.model_validate(answer).groups
        if len(features) != len(about):  # the features cannot be assigned to the groups
            return ()
        self.features.update(zip(about, features, strict=True))
        return about

    def missing(self, step: str, subjects: Iterable[Any]) -> list[Any]:
        """Returns the subjects that have no answer and were not yet asked about alone."""
        return [
            subject
            for subject in subjects
            if (step, subject) not in self._answered and (step, subject) not in self.declined
        ]

    def appearances(self) -> dict[str, str]:
        """Returns the appearance of each described category."""
        return {name: description.appearance for name, description in self.descriptions.items()}

    def texts(self, names: Sequence[str], every: Iterable[str]) -> dict[str, list[str]]:
        """Returns definition texts of each described category: its appearance and its distinguishing features.

        Args:
            names: Names of the categories.
            every: Names of all categories. Groups of other categories are not used.
        """
        groups = chosen_groups(names, self.groups, every)
        return {
            name: [
                self.descriptions[name].appearance,
                *(
                    prompts.definition_text(as_words(name), feature)
                    for feature in self.look(name, groups)["distinguishing"]
                    if 0 < len(feature) <= _MAX_FEATURE
                ),
            ]
            for name in names
            if name in self.descriptions
        }

    def look(self, name: str, groups: Sequence[NameGroup]) -> dict[str, Sequence[str]]:
        """Returns the keyword arguments of `prompts.draw` for a category.

        Only the first `MOST_GROUPS` entries of `groups` that contain the category are used.
        """
        description = self.descriptions.get(name)
        first = [group for group in groups if name in group][:MOST_GROUPS]
        compared = [self.features[group] for group in first if group in self.features]
        common = [phrase for features in compared for phrase in features.common]
        own = [member for features in compared for member in features.members if member.name == name]
        apart = [phrase for member in own for phrase in member.distinguishing]
        return {
            "scenes": description.scenes if description else (),
            "common": list(dict.fromkeys(common))[:_MOST_PHRASES],
            "distinguishing": list(dict.fromkeys(apart))[:_MOST_PHRASES],
        }


def analyse(
    knowledge: Knowledge,
    names: Sequence[str],
    others: Mapping[str, str],
    measured: Sequence[NameGroup],
    ask: Callable[[Sequence[Asked]], None],
) -> list[NameGroup]:
    """Asks for the features that the image prompts of some categories need.

    Args:
        knowledge: Earlier answers; `ask` adds the new ones.
        names: Names of the categories.
        others: By name, the appearance of each category that `names` may resemble. An unknown appearance is empty.
        measured: Groups of categories that the store confuses.
        ask: Asks questions and adds the answers to `knowledge`.

    Returns:
        The compared groups, the measured ones first.
    """
    every = sorted({*names, *others})
    _settle(knowledge, "descriptions", names, DESCRIBED_AT_ONCE, prompts.describe, ask)
    _settle(knowledge, "groups", names, GROUPED_AT_ONCE, lambda some: prompts.group(some, every), ask)
    groups = chosen_groups(names, [*measured, *knowledge.groups], every)
    looks = {**others, **knowledge.appearances()}
    _settle(knowledge, "features", groups, COMPARED_AT_ONCE, lambda some: prompts.compare(some, looks), ask)
    return groups


def chosen_groups(names: Sequence[str], groups: Iterable[NameGroup], every: Iterable[str]) -> list[NameGroup]:
    """Returns the first `MOST_GROUPS` groups of each category in `names`.

    Each group is first reduced to at most `prompts.LARGEST_GROUP` categories in `every`. Groups of one category and
    subsets of earlier groups are left out.
    """
    existing = set(every)
    clean: list[NameGroup] = []
    for group in groups:
        some = tuple(sorted([name for name in group if name in existing][: prompts.LARGEST_GROUP]))
        if len(some) > 1 and not any(set(some) <= set(other) for other in clean):
            clean.append(some)
    wanted = {group for name in names for group in [found for found in clean if name in found][:MOST_GROUPS]}
    return [group for group in clean if group in wanted]


def _settle(
    knowledge: Knowledge,
    step: str,
    subjects: Sequence[Any],
    at_once: int,
    question: Callable[[Sequence[Any]], Question[Any]],
    ask: Callable[[Sequence[Asked]], None],
) -> None:
    """Asks about `at_once` subjects per question, then alone about each subject that is still without an answer."""
    for size in (at_once, 1):
        missing = knowledge.missing(step, subjects)
        batches = [missing[first : first + size] for first in range(0, len(missing), size)]
        if batches:
            ask([(question(batch), batch) for batch in batches])
