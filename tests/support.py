"""Classifiers with fast encoders, images to classify, and contents of stores to compare."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageSequence
from typer.testing import CliRunner

import zsvec
from tests.store.support import fast_folder
from zsvec.classifier import Classifier
from zsvec.encoders import EncoderSet
from zsvec.generation.access import SWITCH_VARIABLE
from zsvec.inputs.categories import CategoryInput
from zsvec.settings.settings import Settings, load_settings
from zsvec.settings.trust import trust
from zsvec.store import Store
from zsvec.testing import HashEncoder
from zsvec.types import Category

__all__ = [
    "COLOURS",
    "REUSING",
    "Reusing",
    "classifier_over",
    "coloured",
    "coloured_set",
    "coloured_store",
    "encode",
    "fast_folder",
    "isolated",
    "open_classifier",
    "photo",
    "photos",
    "sources",
    "state",
    "trusted_settings",
    "two_encoders",
    "write_photos",
]


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but the test's own: an empty working folder and user folder, and no ``ZSVEC_`` variables."""
    for name in [name for name in os.environ if name.startswith("ZSVEC_") and name != SWITCH_VARIABLE]:
        monkeypatch.delenv(name)
    user = tmp_path / "user"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(user))  # of processes started by the test
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Settings, "toml_files", (user / "zsvec" / "config.toml", Path("zsvec.toml")))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def trusted_settings(toml: str) -> None:
    """Write and trust the ``zsvec.toml`` of the working folder."""
    file = Settings.toml_files[1]
    file.write_text(toml)
    trust(file, Settings.marks())


def photo(seed: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    """The same random picture for the same seed."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def photos(*seeds: int) -> list[Image.Image]:
    return [photo(seed) for seed in seeds]


class Reusing:
    """Sources of images that reuse or close one object."""

    def __init__(self, images: Sequence[Image.Image]) -> None:
        self._images = [image.copy() for image in images]

    def array(self) -> Iterator[Any]:
        buffer = np.empty_like(np.asarray(self._images[0]))
        for image in self._images:
            buffer[:] = np.asarray(image)
            yield buffer

    def buffer(self) -> Iterator[Any]:
        buffer = bytearray()
        for image in self._images:
            buffer[:] = encode(image, "BMP")
            yield buffer

    def view(self) -> Iterator[Any]:
        view = memoryview(bytearray(encode(self._images[0], "BMP")))
        for image in self._images:
            view[:] = encode(image, "BMP")
            yield view

    def file(self) -> Iterator[Any]:
        file = io.BytesIO()
        for image in self._images:
            file.seek(0)
            file.write(encode(image, "BMP"))
            file.seek(0)
            yield file

    def closed_file(self) -> Iterator[Any]:
        for image in self._images:
            with io.BytesIO(encode(image)) as file:
                yield file

    def image(self) -> Iterator[Any]:
        canvas = Image.new("RGB", self._images[0].size)
        for image in self._images:
            canvas.paste(image)
            yield canvas

    def pages(self) -> Iterator[Any]:
        data = encode(self._images[0], "TIFF", save_all=True, append_images=self._images[1:])
        yield from ImageSequence.Iterator(Image.open(io.BytesIO(data)))

    def closed_image(self) -> Iterator[Any]:
        for image in self._images:
            with Image.open(io.BytesIO(encode(image))) as opened:
                yield opened


REUSING = ("array", "buffer", "view", "file", "closed_file", "image", "pages", "closed_image")


def encode(image: Image.Image, format_name: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def write_photos(folder: Path, seeds: Iterable[int]) -> list[Path]:
    """``0.png``, ``1.png`` … in a folder, each the `photo` of its number."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}.png" for seed in seeds]
    for seed, path in zip(seeds, paths, strict=True):
        path.write_bytes(encode(photo(seed)))
    return paths


def two_encoders() -> tuple[HashEncoder, HashEncoder]:
    """``clip`` for texts and images, ``dino`` for images."""
    return HashEncoder("clip", dim=32), HashEncoder("dino", dim=16, modalities=("image",))


def open_classifier(folder: Path, *encoders: HashEncoder, **settings: Any) -> Classifier:
    return zsvec.open(str(folder / "store"), encoders=encoders or two_encoders(), **settings)


def classifier_over(store: Store, load: Callable[[], EncoderSet] | None = None, **settings: Any) -> Classifier:
    """A classifier over a store that is open, with `two_encoders`."""
    encoders = EncoderSet(two_encoders())
    temperatures = {"clip:text": 0.01, "clip:image": 0.05, "dino:image": 0.05}
    return Classifier(
        store,
        load_settings(**settings),
        load_encoders=load or (lambda: encoders),
        temperatures=temperatures,
        prompts={},
    )


def sources(store: Store, name: str) -> dict[str, list[str]]:
    """Where the references of a category come from, by expert, sorted: a text, or a path, with the prompt if any."""
    found: dict[str, list[str]] = {expert: [] for expert in store.category(name).references}
    for reference in store.stored_references(name):
        for expert in reference.experts:
            found[expert].append(": ".join(filter(None, (reference.source, reference.prompt))))
    return {expert: sorted(origins) for expert, origins in found.items()}


def given_images(category: CategoryInput) -> list[Any]:
    return [] if category.images is None else list(category.images)


def state(store: Store) -> dict[str, tuple[Category, Mapping[tuple[str, str, str], list[float]]]]:
    """All that a store holds: each category, and the vector of each of its references."""
    return {
        category.name: (category, {held.key: held.vector.tolist() for held in store.stored(category.name)})
        for category in store.categories()
    }


def coloured(colour: str, seed: int) -> Image.Image:
    """A picture of one colour, more or less; pictures of a colour are more like each other than like others."""
    noise = np.random.default_rng(seed).integers(-60, 61, (6, 8, 3))
    return Image.fromarray(np.clip(ImageColor.getrgb(colour) + noise, 0, 255).astype(np.uint8))


COLOURS = ("blue", "green", "red")


def coloured_set(references: int, photos: int) -> Path:
    """A folder with so many references and photos of each colour, and two photos of none."""
    folder = Path("colours")
    for part, seeds in (("references", range(references)), ("photos", range(100, 100 + photos))):
        for colour in COLOURS:
            (folder / part / colour).mkdir(parents=True)
            for seed in seeds:
                (folder / part / colour / f"{seed}.png").write_bytes(encode(coloured(colour, seed)))
    (folder / "unknown").mkdir()
    for seed in range(2):
        (folder / "unknown" / f"{seed}.png").write_bytes(encode(coloured("white", seed)))
    return folder


@contextmanager
def coloured_store(images: int, **settings: Any) -> Iterator[Classifier]:
    """A store in memory with so many images of each colour."""
    with zsvec.open(":memory:", encoders=[HashEncoder()], **settings) as classifier:
        classifier.add_categories(
            CategoryInput(name=colour, images=[coloured(colour, 1000 * i + seed) for seed in range(images)])
            for i, colour in enumerate(COLOURS)
        )
        yield classifier


def run_script(script: ModuleType, *arguments: Any) -> str:
    """Output of a script with an ``app``."""
    result = CliRunner().invoke(script.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout
