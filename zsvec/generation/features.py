"""Feature analysis (paper, section 3.1): what categories look like, which are alike, and in what.

What has been answered is in the manifest and is not asked again: a category is described once, looked for
among the others once, and a group is compared once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from zsvec.generation import prompts
from zsvec.generation.manifest import AnswerRecord, Record
from zsvec.generation.prompts import Description, Descriptions, Features, GroupFeatures, Groups, Question

# Subjects of one question: long answers become careless, and a refusal concerns all that were asked about.
DESCRIBED_AT_ONCE = 10
GROUPED_AT_ONCE = 40
COMPARED_AT_ONCE = 6

MOST_GROUPS = 2  # of one category that go into its prompts
_MOST_PHRASES = 4

Group: TypeAlias = tuple[str, ...]
Asked: TypeAlias = tuple[Question[Any], Sequence[Any]]  # and what it is about: names, or groups


@dataclass(slots=True)
class Knowledge:
    """What is known of categories.

    Attributes:
        descriptions: By category.
        groups: Categories that are easily confused, as answered.
        features: By group.
        declined: By step and subject, why there is no answer.
    """

    descriptions: dict[str, Description] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    features: dict[Group, GroupFeatures] = field(default_factory=dict)
    declined: dict[tuple[str, Any], str] = field(default_factory=dict)
    _answered: set[tuple[str, Any]] = field(default_factory=set)

    @classmethod
    def of(cls, records: Iterable[Record]) -> Knowledge:
        """What the answers of a manifest say; those to other prompts than these are left out."""
        known = cls()
        known.learn_all(records)
        # What failed in an earlier run may not fail in this one.
        known.declined = {of: why for of, why in known.declined.items() if not why.startswith("unusable")}
        return known

    def learn_all(self, records: Iterable[Record]) -> None:
        """Take over the answers among some records, but for those to other prompts than these."""
        for record in records:
            if isinstance(record, AnswerRecord) and record.version == prompts.VERSION:
                self.learn(record)

    def learn(self, record: AnswerRecord) -> None:
        """Take over what an answer says of what was asked; alone in a question, a subject is settled by it."""
        about = [_subject(each) for each in record.about]
        if record.answer is not None:
            learn = {"descriptions": self._describe, "groups": self._group, "features": self._compare}[record.step]
            self._answered.update((record.step, each) for each in learn(record.answer, about))
        if len(about) == 1 and (record.step, about[0]) not in self._answered:
            self.declined[record.step, about[0]] = record.declined or "unusable: it was left out of the answer"

    def missing(self, step: str, subjects: Iterable[Any]) -> list[Any]:
        """Those that have not been asked about, or were left out of the answer to a question about several."""
        return [each for each in subjects if not {(step, each)} & (self._answered | self.declined.keys())]

    def appearances(self) -> dict[str, str]:
        """By category, what it looks like."""
        return {name: description.appearance for name, description in self.descriptions.items()}

    def look(self, name: str, groups: Sequence[Group]) -> dict[str, Sequence[str]]:
        """What the image prompts of a category are made from: keyword arguments of `prompts.draw`.

        Args:
            name: Of the category.
            groups: Categories that are easily confused, the most important first.
        """
        description = self.descriptions.get(name)
        first = [of for of in groups if name in of][:MOST_GROUPS]
        compared = [self.features[of] for of in first if of in self.features]
        common = [phrase for of in compared for phrase in of.common]
        apart = [p for of in compared for member in of.members if member.name == name for p in member.distinguishing]
        return {
            "scenes": description.scenes if description else (),
            "common": list(dict.fromkeys(common))[:_MOST_PHRASES],
            "distinguishing": list(dict.fromkeys(apart))[:_MOST_PHRASES],
        }

    def _describe(self, answer: Mapping[str, Any], about: Sequence[Any]) -> Sequence[Any]:
        found = Descriptions.model_validate(answer).categories
        self.descriptions.update({of.name: of for of in found if of.name in about and of.appearance.strip()})
        return [name for name in about if name in self.descriptions]

    def _group(self, answer: Mapping[str, Any], about: Sequence[Any]) -> Sequence[Any]:
        self.groups += [tuple(dict.fromkeys(of)) for of in Groups.model_validate(answer).groups]
        return about

    def _compare(self, answer: Mapping[str, Any], about: Sequence[Any]) -> Sequence[Any]:
        found = Features.model_validate(answer).groups
        if len(found) != len(about):  # which is of which cannot be told
            return ()
        self.features.update(zip(about, found, strict=True))
        return about


def analyse(
    known: Knowledge,
    names: Sequence[str],
    others: Mapping[str, str],
    measured: Sequence[Group],
    ask: Callable[[Sequence[Asked]], None],
) -> list[Group]:
    """Find out all that the image prompts of some categories need.

    Args:
        known: What is known already; `ask` adds to it.
        names: The categories.
        others: Further categories that they may be confused with, and what they look like.
        measured: Groups that are known to be confused.
        ask: Asks questions and has the answers learned.

    Returns:
        The groups that have been compared, the measured ones first.
    """
    every = sorted({*names, *others})
    _settle(known, "descriptions", names, DESCRIBED_AT_ONCE, prompts.describe, ask)
    _settle(known, "groups", names, GROUPED_AT_ONCE, lambda some: prompts.group(some, every), ask)
    groups = chosen_groups(names, [*measured, *known.groups], every)
    looks = {**others, **known.appearances()}
    _settle(known, "features", groups, COMPARED_AT_ONCE, lambda some: prompts.compare(some, looks), ask)
    return groups


def chosen_groups(names: Sequence[str], groups: Iterable[Group], every: Iterable[str]) -> list[Group]:
    """The groups that will be of use: the first few of each category, of categories that exist."""
    existing = set(every)
    clean: list[Group] = []
    for of in groups:
        some = tuple(sorted([name for name in of if name in existing][: prompts.LARGEST_GROUP]))
        if len(some) > 1 and not any(set(some) <= set(other) for other in clean):
            clean.append(some)
    wanted = {of for name in names for of in [group for group in clean if name in group][:MOST_GROUPS]}
    return [of for of in clean if of in wanted]


def _settle(
    known: Knowledge,
    step: str,
    subjects: Sequence[Any],
    at_once: int,
    question: Callable[[Sequence[Any]], Question[Any]],
    ask: Callable[[Sequence[Asked]], None],
) -> None:
    """Ask about several subjects at once, then about those that are still missing by themselves."""
    for size in (at_once, 1):
        missing = known.missing(step, subjects)
        batches = [missing[first : first + size] for first in range(0, len(missing), size)]
        if batches:
            ask([(question(batch), batch) for batch in batches])


def _subject(value: Any) -> Any:
    """A name, or a group as it was before it was written as JSON."""
    return tuple(value) if isinstance(value, list) else value
