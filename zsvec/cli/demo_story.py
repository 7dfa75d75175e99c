"""The story that `zsvec demo` tells, in a minute, in a temporary folder.

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

from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.table import Table

import zsvec
from zsvec.classifier import Classifier
from zsvec.cli.output import escape, evidence_table, out
from zsvec.errors import MissingExtraError
from zsvec.inputs.categories import CategoryInput
from zsvec.inputs.images import load_image
from zsvec.types import Prediction, how_far

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
        image = load_image(Path(spec.origin).parent / _FOLDERS[self.package] / self.file)
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


class Stopwatch:
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
        table = Table("step", "seconds", box=SIMPLE_HEAD, pad_edge=False)
        for what, spent in self.seconds.items():
            table.add_row(escape(what), f"{spent:.2f}")
        table.add_row("[bold]all of it[/]", f"[bold]{sum(self.seconds.values()):.2f}[/]")
        return table


def tell(profile: str) -> None:
    """Run and print each step of the story, with the encoders of a profile."""
    watch = Stopwatch()
    with TemporaryDirectory(prefix="zsvec-demo-") as folder, zsvec.open(folder, profile=profile) as classifier:
        with watch.step(f"Load the encoders of the profile {profile}"):
            classifier.load()
        with watch.step("Ten categories: five from a sentence, five from their name and the quarters of a photograph"):
            classifier.add_categories(_categories())
            out.print(f"  in {escape(str(folder))}, collections " + ", ".join(_collections(classifier)))
        with watch.step("Classify photographs that it has not seen"):
            predictions = _classify(classifier, TESTS)
            out.print(_answers(TESTS, predictions))
        out.print(
            "  The evidence for the temple. There is no image of one, which counts neither for it nor against it.\n"
        )
        out.print(evidence_table(predictions[2]))
        with watch.step("A rocket and a retina: no category fits, and that is what it says"):
            before = _classify(classifier, (ROCKET, RETINA))
            out.print(_answers((ROCKET, RETINA), before))
        with watch.step('Add "rocket" by a sentence, "retina" by the other half of the photograph'):
            classifier.add_category("rocket", texts=["a space rocket on its launch pad"])
            classifier.add_category("retina", images=Photo(RETINA.package, RETINA.file, "left").quarters())
            out.print("  Nothing was retrained, and nothing that was stored was embedded again.")
        with watch.step("The same two photographs again"):
            after = _classify(classifier, (ROCKET, RETINA))
            out.print(_answers((ROCKET, RETINA), after))
        changed = [
            f"{'unknown' if then.unknown else then.label} → [bold green]{now.label}[/]"
            for then, now in zip(before, after, strict=True)
        ]
        out.print(f"  {', '.join(changed)}")
        out.print(watch.table())


def _categories() -> Iterator[CategoryInput]:
    for name, text in BY_TEXT.items():
        yield CategoryInput(name=name, texts=[text])
    for name, photo in BY_PHOTO.items():
        yield CategoryInput(name=name, images=photo.quarters())


def _collections(classifier: Classifier) -> list[str]:
    store = classifier.store
    return [store.collection(name) for name in (*store.encoders(), "catalog")]


def _classify(classifier: Classifier, photos: Sequence[Photo]) -> list[Prediction]:
    return classifier.classify([photo.load() for photo in photos])


def _answers(photos: Sequence[Photo], predictions: Sequence[Prediction]) -> Table:
    table = Table("photograph", "category", "", "or", "how far", "surest expert", box=SIMPLE_HEAD, pad_edge=False)
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
