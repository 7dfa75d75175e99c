"""The command that demonstrates zsvec in a minute, in a temporary folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import typer
from rich.table import Table

import zsvec
from zsvec.cli.app import app
from zsvec.cli.output import escape, evidence_table, new_table, out
from zsvec.examples import photo
from zsvec.types import Prediction, how_far

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Photo:
    """A photograph of `zsvec.examples`, or the left or right half of the photograph."""

    file: str
    half: str = ""

    @property
    def name(self) -> str:
        """The name that tables show."""
        return f"{self.file}{self.half and f', {self.half} half'}"

    def load(self) -> Image.Image:
        """Returns the image in RGB."""
        image = zsvec.load_image(photo(self.file))
        middle = image.width // 2
        halves = {"left": (0, 0, middle, image.height), "right": (middle, 0, image.width, image.height)}
        return image.crop(halves[self.half]) if self.half else image

    def quarters(self) -> list[Image.Image]:
        """Returns the four quarters of the image, which become references."""
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
    "coins": Photo("coins", "left"),
    "brick wall": Photo("brick", "left"),
    "lawn": Photo("grass", "left"),
    "gravel": Photo("gravel", "left"),
    "stars": Photo("stars", "left"),
}
TESTS = (Photo("cat"), Photo("coffee"), Photo("grass", "right"), Photo("gravel", "right"), Photo("stars", "right"))
ROCKET, RETINA = Photo("rocket"), Photo("retina", "right")


@contextmanager
def _step(title: str) -> Iterator[None]:
    """Prints the title of a step, and then the seconds that the step took."""
    out.print(f"\n[bold cyan]›[/] [bold]{escape(title)}[/]")
    start = time.perf_counter()
    yield
    out.print(f"  [dim]{time.perf_counter() - start:.2f} s[/]")


@app.command()
def demo(context: typer.Context) -> None:
    """Show zsvec in a minute: classify photographs, add a category live, and see the prediction change.

    Uses a temporary folder, and the encoders of the profile `offline` unless you give --profile or --encoders.
    """
    own, profile = context.obj.encoders, context.obj.profile
    if own is None and profile is None:
        profile = "offline"
    with (
        TemporaryDirectory(prefix="zsvec-demo-") as folder,
        zsvec.open(folder, profile=profile, encoders=own) as classifier,
    ):
        with _step(f"Load the encoders {own or f'of the profile {profile}'}"):
            encoders = list(classifier.encoders.fingerprints)
        with _step("Ten categories: five from a sentence, five from their name and the quarters of a photograph"):
            classifier.add_categories(
                [
                    *(zsvec.CategoryInput(name=name, texts=[text]) for name, text in BY_TEXT.items()),
                    *(zsvec.CategoryInput(name=name, images=shown.quarters()) for name, shown in BY_PHOTO.items()),
                ]
            )
            out.print(f"  in {escape(str(folder))}, a collection for each encoder: " + ", ".join(encoders))
        with _step("Classify new photographs"):
            predictions = classifier.classify([one.load() for one in TESTS])
            out.print(_answers(TESTS, predictions))
        out.print("  The evidence for coffee. Without images of coffee, image experts are neutral on the category.\n")
        out.print(evidence_table(predictions[1]))
        strange = [ROCKET.load(), RETINA.load()]
        with _step("A rocket and a retina: no category fits, so both are unknown"):
            before = classifier.classify(strange)
            out.print(_answers((ROCKET, RETINA), before))
        with _step('Add "rocket" by a sentence, "retina" by the other half of the photograph'):
            classifier.add_category("rocket", texts=["a space rocket on its launch pad"])
            classifier.add_category("retina", images=Photo(RETINA.file, "left").quarters())
            out.print("  Nothing was retrained, and no stored reference was embedded again.")
        with _step("The same two photographs again"):
            after = classifier.classify(strange)
            out.print(_answers((ROCKET, RETINA), after))
        changed = [
            f"{'unknown' if then.unknown else then.label} → [bold green]{now.label}[/]"
            for then, now in zip(before, after, strict=True)
        ]
        out.print(f"  {', '.join(changed)}")


def _answers(photos: Sequence[Photo], predictions: Sequence[Prediction]) -> Table:
    table = new_table("photograph", "category", "", "next", "novelty")
    for one, answer in zip(photos, predictions, strict=True):
        table.add_row(
            escape(one.name),
            "[bold yellow]unknown[/]" if answer.unknown else f"[bold green]{escape(str(answer.label))}[/]",
            "" if answer.unknown else f"{answer.probability:.0%}",
            escape(f"nearest {answer.nearest}")
            if answer.unknown
            else ", ".join(f"{escape(label)} {p:.0%}" for label, p in answer.ranking[1:3]),
            how_far(answer),
        )
    return table
