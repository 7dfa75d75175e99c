"""A classifier with a service that draws pictures chosen by a test."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

import zsvec
from tests.generation.colour_encoder import COLOURS, coloured_encoders
from tests.generation.fake_openai import CHAT, IMAGES, FakeOpenAI, Fault, Request
from tests.store.support import fast_folder
from tests.support import encode, photo
from zsvec.generation.facet import Generated
from zsvec.generation.manifest import images, read_manifest
from zsvec.store.backends.base import Where
from zsvec.testing import HashEncoder


def tinted(colour: str, seed: int) -> Image.Image:
    """A picture with half of one colour; only an encoder of colours finds two of them alike."""
    return Image.blend(photo(seed, (8, 8)), Image.new("RGB", (8, 8), colour), 0.5)


def picture(colour: str, seed: int) -> bytes:
    """A PNG of `tinted`."""
    return encode(tinted(colour, seed))


class Service:
    """A fake service with pictures chosen by a test.

    Attributes:
        server: Draws the next of the pictures of the category in the prompt; without any, a picture of the colour in
            the name, or red.
        pictures: Pictures to draw, by category as words.
        fault: Chooses the fault of a request.
    """

    def __init__(self, appearances: Mapping[str, str]) -> None:
        self.pictures: dict[str, list[bytes]] = {}
        self.fault: Callable[[Request], Fault | None] = lambda request: None
        self._seeds = itertools.count(1000)
        self.server = FakeOpenAI(appearances=appearances, draw=self._draw, fault=lambda request: self.fault(request))

    def _draw(self, body: dict[str, Any]) -> bytes:
        name = name_in(body["prompt"])
        if self.pictures.get(name):
            return self.pictures[name].pop(0)
        return picture(next((colour for colour in COLOURS if colour in name.split()), "red"), next(self._seeds))

    def requests(self) -> Counter[str]:
        """Returns the number of requests of each kind."""
        kinds = {IMAGES: "images", CHAT: "questions"}
        return Counter(kinds[entry.path] for entry in self.server.entries)


class Studio(Service):
    """A classifier and its service.

    Attributes:
        clf: Sends one request at a time, so that the images of a category are drawn in order.
        encoders: Of the classifier.
        folder: Folder of the purchases.
    """

    def __init__(
        self, folder: Path, appearances: Mapping[str, str], encoders: tuple[HashEncoder, ...], place: Mapping[str, str]
    ) -> None:
        super().__init__(appearances)
        self.folder = folder / "generated"
        self.encoders = encoders
        settings: dict[str, Any] = {"store": str(folder / "store"), **place}
        generation = {"base_url": self.server.url, "concurrency": 1}
        self.clf = zsvec.open(encoders=encoders, generation=generation, **settings)

    def generate(self, *names: str, **options: Any) -> Generated:
        return self.clf.generation.references(names or None, folder=self.folder, **options)

    def prompts(self) -> dict[tuple[str, int], str]:
        """Returns the prompt of each image in the folder, by category and index."""
        bought = images(read_manifest(self.folder), self.folder)
        return {place: record.prompt for place, record in bought.items()}

    def embedded(self) -> dict[str, tuple[int, int]]:
        """Returns numbers of texts and images that each encoder has embedded."""
        return {encoder.name: (encoder.texts_encoded, encoder.images_encoded) for encoder in self.encoders}

    def payloads(self, encoder: str) -> list[Mapping[str, Any]]:
        """Returns the payload of every reference of the categories in an encoder's collection."""
        store = self.clf._store
        write_ids = {write_id for category in store.categories() for write_id in category.write_ids}
        pages = store._backend.scroll(store.collection(encoder), Where())
        return [payload for page in pages for payload in page.payloads if payload["gen"] in write_ids]


def name_in(prompt: str) -> str:
    """Returns the category in a prompt."""
    found = re.search("“(.+?)”", prompt)
    assert found, prompt
    return found[1]


@contextmanager
def studio_of(*encoders: HashEncoder, appearances: Mapping[str, str] | None = None, **place: str) -> Iterator[Studio]:
    """A studio with its key in the environment; by default with `coloured_encoders`, and a store in a folder."""
    with fast_folder() as folder:
        studio = Studio(folder, appearances or {}, encoders or coloured_encoders(), place)
        with studio.server, studio.clf:
            yield studio
