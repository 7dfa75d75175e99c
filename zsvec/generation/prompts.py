"""Every prompt, and the form of every answer (paper, section 3.1).

`VERSION` is kept with every answer and image. Raise it when a prompt changes: questions are then asked again,
images that were bought stay.
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
"""A list of an answer whose check ends at the first error: one error takes a kilobyte, and an answer has millions."""


class _Answer(BaseModel):
    """All fields are required and no others allowed, as strict structured outputs demand."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Description(_Answer):
    """What a category looks like, and situations to show it in."""

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
    """What tells one category of a group from the others."""

    name: str
    distinguishing: Items[str]


class GroupFeatures(_Answer):
    """What the categories of a group have in common, and what tells them apart."""

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
        instructions: What to do.
        data: What to do it with; JSON.
        form: The form of the answer.
    """

    step: str
    instructions: str
    data: Mapping[str, Any]
    form: type[Form]


def describe(names: Sequence[str]) -> Question[Descriptions]:
    """What do these categories look like?"""
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
    """Which of these categories are easily confused with which of all?"""
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
    """What do the categories of each group have in common, and what tells them apart?"""
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
# For a category that has not been described.
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
    """The prompt of an image of a category; of another index it shows another pose, scene or viewpoint.

    Args:
        name: Of the category, as words.
        index: Of the image within its category.
        scenes: Situations to choose from.
        common: Features that the category shares with those it is confused with; empty if it resembles none.
        distinguishing: Features that tell the category from them.
    """
    places = scenes or SCENES
    turn, position = divmod(index, len(places))
    step = turn if len(places) % 2 == 0 else 0  # so that each scene is seen from all the eight viewpoints
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
