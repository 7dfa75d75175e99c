"""The command that shows what zsvec does: a story of a minute, in a temporary folder.

The photographs come with scikit-image and scikit-learn, which say whose they are and how they are licensed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import typer
from rich.table import Table

import zsvec
from zsvec.cli.app import app
from zsvec.cli.output import escape, evidence_table, new_table, out
from zsvec.errors import MissingExtraError
from zsvec.types import Prediction, how_far

if TYPE_CHECKING:
    from PIL import Image

_FOLDERS = {"skimage": "data", "sklearn": "datasets/images"}


@dataclass(frozen=True)
class Photo:
    """A photograph of an installed package, or a half of it: the other half can be a reference."""

    package: str
    file: str
    half: str = ""

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{Path(self.file).stem.replace('_', ' ')}{self.half and f', {self.half} half'}"

    def load(self) -> Image.Image:
        """Its pixels, RGB.

        Raises:
            MissingExtraError: The package is not installed.
        """
        spec = find_spec(self.package)
        if spec is None or spec.origin is None:
            raise MissingExtraError('the photographs of the demo are needed: pip install "zsvec[offline]"')
        image = zsvec.load_image(Path(spec.origin).parent / _FOLDERS[self.package] / self.file)
        left, right = {"left": (0, image.width // 2), "right": (image.width // 2, image.width)}.get(
            self.half, (0, image.width)
        )
        return image.crop((left, 0, right, image.height))

    def quarters(self) -> list[Image.Image]:
        """Four references from one photograph."""
        image = self.load()
        x, y = image.width // 2, image.height // 2
        return [image.crop((left, top, left + x, top + y)) for left in (0, x) for top in (0, y)]


BY_TEXT = {
    "cat": "a domestic cat",
    "dog": "a dog",
    "coffee": "a cup of coffee",
    "temple": "a Chinese temple or palace with a curved roof",
    "flower": "a flower in bloom",
}
BY_PHOTO = {
    "motorcycle": Photo("skimage", "motorcycle_left.png"),
    "coins": Photo("skimage", "coins.png", "left"),
    "brick wall": Photo("skimage", "brick.png", "left"),
    "lawn": Photo("skimage", "grass.png", "left"),
    "gravel": Photo("skimage", "gravel.png", "left"),
}
TESTS = (
    Photo("skimage", "chelsea.png"),
    Photo("skimage", "coffee.png"),
    Photo("sklearn", "china.jpg"),
    Photo("sklearn", "flower.jpg"),
    Photo("skimage", "motorcycle_right.png"),
    Photo("skimage", "coins.png", "right"),
    Photo("skimage", "grass.png", "right"),
)
ROCKET = Photo("skimage", "rocket.jpg")
RETINA = Photo("skimage", "retina.jpg", "right")


class _Stopwatch:
    """Names each step as it begins, and keeps how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Announce a step and time it."""
        out.print(f"\n[bold cyan]›[/] [bold]{escape(what)}[/]")
        start = time.perf_counter()
        yield
        self.seconds[what] = time.perf_counter() - start

    def table(self) -> Table:
        """What took how long."""
        steps = {**self.seconds, "all of it": sum(self.seconds.values())}
        return new_table("step", "seconds", rows=((what, f"{spent:.2f}") for what, spent in steps.items()))


@app.command()
def demo(context: typer.Context) -> None:
    """Show zsvec in a minute: classify photographs, add a category live, see the answer change.

    Works offline in a temporary folder, with the encoders of the profile offline, or of --profile.
    """
    profile = context.obj.profile or "offline"
    watch = _Stopwatch()
    with TemporaryDirectory(prefix="zsvec-demo-") as folder, zsvec.open(folder, profile=profile) as classifier:
        with watch.step(f"Load the encoders of the profile {profile}"):
            encoders = list(classifier.encoders.fingerprints)
        with watch.step("Ten categories: five from a sentence, five from their name and the quarters of a photograph"):
            classifier.add_categories(
                [
                    *(zsvec.CategoryInput(name=name, texts=[text]) for name, text in BY_TEXT.items()),
                    *(zsvec.CategoryInput(name=name, images=photo.quarters()) for name, photo in BY_PHOTO.items()),
                ]
            )
            out.print(f"  in {escape(str(folder))}, a collection for each encoder: " + ", ".join(encoders))
        with watch.step("Classify photographs that it has not seen"):
            predictions = classifier.classify([photo.load() for photo in TESTS])
            out.print(_answers(TESTS, predictions))
        out.print(
            "  The evidence for the temple. There is no image of one, which counts neither for it nor against it.\n"
        )
        out.print(evidence_table(predictions[2]))
        strange = [ROCKET.load(), RETINA.load()]
        with watch.step("A rocket and a retina: no category fits, and that is what it says"):
            before = classifier.classify(strange)
            out.print(_answers((ROCKET, RETINA), before))
        with watch.step('Add "rocket" by a sentence, "retina" by the other half of the photograph'):
            classifier.add_category("rocket", texts=["a space rocket on its launch pad"])
            classifier.add_category("retina", images=Photo(RETINA.package, RETINA.file, "left").quarters())
            out.print("  Nothing was retrained, and nothing that was stored was embedded again.")
        with watch.step("The same two photographs again"):
            after = classifier.classify(strange)
            out.print(_answers((ROCKET, RETINA), after))
        changed = [
            f"{'unknown' if then.unknown else then.label} → [bold green]{now.label}[/]"
            for then, now in zip(before, after, strict=True)
        ]
        out.print(f"  {', '.join(changed)}")
        out.print(watch.table())


def _answers(photos: Sequence[Photo], predictions: Sequence[Prediction]) -> Table:
    table = new_table("photograph", "category", "", "or", "how far", "surest expert")
    for photo, answer in zip(photos, predictions, strict=True):
        sure = {name: dict(expert.ranking).get(str(answer.nearest), 0.0) for name, expert in answer.experts.items()}
        surest = max(sure, key=lambda name: sure[name])
        table.add_row(
            escape(photo.name),
            "[bold yellow]unknown[/]" if answer.unknown else f"[bold green]{escape(str(answer.label))}[/]",
            "" if answer.unknown else f"{answer.probability:.0%}",
            ", ".join(f"{escape(label)} {p:.0%}" for label, p in answer.ranking[0 if answer.unknown else 1 : 3]),
            how_far(answer),
            "" if answer.unknown else f"{surest} {sure[surest]:.0%}",
        )
    return table
