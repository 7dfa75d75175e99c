"""Prompts of the language and image models, and schemas of the answers (paper, section 3.1).

Every answer and image is recorded with `VERSION`. Increase `VERSION` when you change a prompt: questions are asked
again, but images are not bought again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast

VERSION = 1

LARGEST_GROUP = 6

_T = TypeVar("_T")
Items = Annotated[list[_T], FailFast()]
"""A list whose validation stops at the first error: an answer may cause millions of errors of a kilobyte each."""


class _Answer(BaseModel):
    """Base of strict structured outputs: all fields are required, and other fields are forbidden."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Description(_Answer):
    """Appearance of a category, and scenes of its images."""

    name: str
    appearance: str
    scenes: Items[str]


class Descriptions(_Answer):
    """Answer to `describe`."""

    categories: Items[Description]


class Groups(_Answer):
    """Answer to `group`."""

    groups: Items[Items[str]]


class Member(_Answer):
    """Features that distinguish one category of a group."""

    name: str
    distinguishing: Items[str]


class GroupFeatures(_Answer):
    """Common and distinguishing features of a group."""

    common: Items[str]
    members: Items[Member]


class Features(_Answer):
    """Answer to `compare`, in the order of the groups."""

    groups: Items[GroupFeatures]


Form = TypeVar("Form", bound=_Answer)


@dataclass(frozen=True, slots=True)
class Question(Generic[Form]):
    """One request to the language model.

    Attributes:
        step: Name of the step of the analysis.
        instructions: System message.
        data: User message, as JSON.
        form: Pydantic model of the answer.
    """

    step: str
    instructions: str
    data: Mapping[str, Any]
    form: type[Form]


def describe(names: Sequence[str]) -> Question[Descriptions]:
    """Returns a question for appearance and scenes of categories."""
    return Question(
        "descriptions",
        "You describe categories of images to an image classifier. For each of the given categories, with its name "
        "exactly as given: `appearance`, one or two sentences on what is visible in a photograph of it (shape, parts, "
        "proportions, colours, texture), without its uses or history; and `scenes`, six short phrases, each a "
        "realistic pose, state or activity with a place, as different from each other as photographs of it are, such "
        "as `asleep on a sofa` or `half dismantled on a workbench`. If a name has several senses, take the one that "
        "fits the other categories.",
        {"categories": list(names)},
        Descriptions,
    )


def group(names: Sequence[str], every: Sequence[str]) -> Question[Groups]:
    """Returns a question for groups of similar categories out of `every`, each with at least one of `names`."""
    return Question(
        "groups",
        "You find categories of images that are easily confused because they look alike: in shape, parts, colours "
        "or texture, whatever they are. For the categories in `categories`, give groups of two to "
        f"{LARGEST_GROUP} names out of `all`, each with at least one of `categories` in it, whose photographs a "
        "careless viewer would mix up. Use the names exactly as given. Leave out categories that resemble no other; "
        "no groups at all is a good answer.",
        {"categories": list(names), "all": list(every)},
        Groups,
    )


def compare(groups: Sequence[Sequence[str]], appearances: Mapping[str, str]) -> Question[Features]:
    """Returns a question for common and distinguishing features of each group."""
    return Question(
        "features",
        "You compare categories of images that are easily confused. For each of the given groups, in their order: "
        "`common`, two to four short phrases naming features visible in photographs that all its categories share; "
        "and in `members`, for each category with its name exactly as given, `distinguishing`: two or three short "
        "phrases naming visible features by which it is told from the other categories of the group.",
        {
            "groups": [
                [{"name": name, "appearance": appearances.get(name, "")} for name in members] for members in groups
            ]
        },
        Features,
    )


def definition_text(name: str, feature: str) -> str:
    """Returns a definition text for a visible feature of a category (Menon and Vondrick, 2023, arXiv:2210.07183)."""
    return f"{name} with {feature}"


VIEWPOINTS = (
    "seen from the side",
    "close up",
    "from the front at eye level",
    "at a distance in its surroundings",
    "from slightly above",
    "at an angle, partly covered by something else",
    "from below",
    "from behind",
)
# Used for a category without a description.
SCENES = (
    "in its usual surroundings",
    "on a plain background in daylight",
    "outdoors under an overcast sky",
    "indoors in artificial light",
    "in use or in motion",
    "among other things",
)


def draw(
    name: str, index: int, *, scenes: Sequence[str] = (), common: Sequence[str] = (), distinguishing: Sequence[str] = ()
) -> str:
    """Returns the prompt of an image; scene and viewpoint depend on the index.

    Args:
        name: Name of the category, as words.
        index: Index of the image within the category.
        scenes: Scenes to choose from; if empty, `SCENES`.
        common: Features that the category shares with similar ones; empty without similar categories.
        distinguishing: Features that distinguish the category from similar ones.
    """
    places = scenes or SCENES
    turn, position = divmod(index, len(places))
    step = turn if len(places) % 2 == 0 else 0  # so that each scene gets all eight viewpoints
    scene, viewpoint = places[position], VIEWPOINTS[(index + step) % len(VIEWPOINTS)]
    alike = (
        f" Show the features that it shares with similar things: {'; '.join(common)}."
        if common
        else ""  # a category that resembles no other is drawn without details (paper, section 3.1)
    )
    apart = f" Show just as clearly what identifies it: {'; '.join(distinguishing)}." if distinguishing else ""
    return (
        f"A realistic colour photograph of the category “{name}”: {scene}, {viewpoint}.{alike}{apart} "
        "One photograph with it as the main subject, in natural light and colours. No text, frame or collage."
    )
