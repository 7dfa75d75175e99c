"""New users bring what they have: vectors, notebooks, lists of labels, encoders, and machines without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from torchvision.datasets import ImageFolder

import zsvec
from tests.cli.support import Cli, Loading
from tests.cli.test_encoders import settings
from tests.support import COLOURS, coloured
from zsvec.encoders import BatchEncoder
from zsvec.errors import EncoderMismatchError, InvalidInputError
from zsvec.inputs.coco import from_coco
from zsvec.inputs.tables import from_csv, from_dataset, from_frame
from zsvec.testing import HashEncoder
from zsvec.types import Fingerprint

__all__ = ["settings"]


def test_vectors_that_exist_already() -> None:
    """From another database, with names of products and a payload."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 64))
    with zsvec.open(":memory:", encoders=[HashEncoder("shop", modalities=("image",))]) as clf:
        for name, centre in zip("abc", centres, strict=True):
            vectors = centre + 0.3 * rng.normal(size=(8, 64))
            products = [f"product {name}{i}" for i in range(8)]
            category = clf.add_category(
                name, texts=[], vectors={"shop:image": vectors}, sources=products, metadata={"shelf": name.upper()}
            )
            assert (dict(category.references), category.metadata) == ({"shop:image": 8}, {"shelf": name.upper()})
        (answer,) = clf.classify_vectors({"shop": centres[1:2]})
        assert answer.label == "b"
        assert answer.experts["shop:image"].neighbors[0].source.startswith("product b")
        clf.references.move(clf.references.of("b")[0].hash, source="b", target="c")
        assert [category.images for category in clf.categories()] == [8, 7, 9]
        for wrong in (np.ones((1, 63)), np.full((1, 64), np.nan), np.zeros((1, 64))):
            with pytest.raises(InvalidInputError):
                clf.classify_vectors({"shop": wrong})
        with pytest.raises(InvalidInputError):
            clf.add_category("a", vectors={"clip:image": centres})


def test_a_notebook() -> None:
    scope: dict[str, Any] = {}
    exec("from zsvec import *", scope)
    assert "open" not in scope
    batch = np.stack([np.asarray(coloured("red", seed)) for seed in range(4)])  # (N, H, W, C)
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as clf:
        clf.add_category("red", images=torch.from_numpy(batch).permute(0, 3, 1, 2) / 255)
        clf.add_category("blue", images=(coloured("blue", seed) for seed in range(4)))
        category, answers = clf.categories()[0], clf.classify(batch)
        assert [answer.label for answer in answers] == ["red"] * 4
        assert clf.classify(torch.from_numpy(batch[0]).permute(2, 0, 1)).label == "red"
        coloured("blue", 9).save("blue.png")
        (answer,) = clf.classify(pd.Series(["blue.png"]))
        assert (answer.source, answer.label) == ("blue.png", "blue")
    for shown in (category, answer):
        assert len(repr(shown)) < 120
        assert "\n" not in repr(shown)
        assert shown._repr_html_().startswith("<table")
    assert pd.DataFrame([answer.to_dict()])["label"].tolist() == ["blue"]


def test_data_sources(cli: Cli, hash_encoders: Loading, colours: Path) -> None:
    """A folder, lists of labels and data sets give the same categories."""
    (colours / "red" / "broken.jpg").unlink()
    photos = sorted(colours.glob("*/*.png"))
    rows = [(str(photo), photo.parent.name) for photo in photos]
    Path("list.csv").write_text(
        "file;class\n" + "".join(f"{path.replace('/', chr(92))};{name}\n" for path, name in rows)
    )
    coco = {
        "images": [{"id": i, "file_name": path, "width": 8, "height": 6} for i, (path, _) in enumerate(rows)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(COLOURS)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": COLOURS.index(name), "bbox": [0, 0, 8, 6]}
            for i, (_, name) in enumerate(rows)
        ],
    }
    Path("coco.json").write_text(json.dumps(coco))
    commands = ("import colours", "import list.csv --path-column file --label-column class", "import coco.json")
    found = []
    for number, command in enumerate(commands):
        assert cli(f"--store ./command{number} {command}").code == 0
        found.append(cli(f"--store ./command{number} list --json").objects)
    frame = pd.DataFrame(rows, columns=["file", "class"])
    sources = {
        "folder": zsvec.read_categories(colours),
        "csv": from_csv("list.csv", path="file", label="class"),
        "frame": from_frame(frame, path="file", label="class"),
        "coco": from_coco("coco.json"),
        "torchvision": from_dataset(ImageFolder(str(colours))),
    }
    for name, categories in sources.items():
        with zsvec.open(f"./{name}") as clf:
            clf.add_categories(categories)
        found.append(cli(f"--store ./{name} list --json").objects)
    for listed in found:
        assert [(one["category"], one["references"]["clip:image"]) for one in listed] == [(name, 3) for name in COLOURS]


class Brightness(BatchEncoder):
    """An encoder of one's own."""

    def __init__(self, revision: str = "1") -> None:
        fingerprint = Fingerprint(model="brightness", revision=revision, dim=3, preprocessing="mean of RGB")
        super().__init__("brightness", fingerprint, modalities=("image",))

    def embed(self, batch: Any, modality: Any) -> Any:
        return np.stack([np.asarray(image).reshape(-1, 3).mean(axis=0) + 1 for image in batch])


def test_own_encoders(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    store = os.environ["ZSVEC_STORE"]
    with zsvec.open(store, encoders=[Brightness()]) as clf:
        for colour in COLOURS:
            clf.add_category(colour, texts=[], images=[coloured(colour, seed) for seed in range(4)])
        assert clf.classify(coloured("green", 9)).label == "green"
    assert [one["references"] for one in cli("list --json").objects] == [{"brightness:image": 4}] * 3
    for command in ("rename green lime", "undo", "audit", "info", "calibrate"):  # commands that run no encoder
        assert cli(command).code == 0
    coloured("red", 9).save("red.png")
    result = cli("classify red.png")
    assert result.code == 1
    assert "brightness" in result.said
    Path("mine.py").write_text("from tests.stories.test_sources import Brightness as Mine")
    (answer,) = cli("--encoders mine:Mine classify --json red.png").objects
    assert answer["label"] == "red"
    Path("zsvec.toml").write_text('encoders = "mine:Mine"')
    assert cli("classify red.png").code == 2  # the file might be of a stranger
    assert cli("trust").code == 0
    assert cli("classify red.png").code == 0
    with pytest.raises(EncoderMismatchError, match="brightness"):
        zsvec.open(store, encoders=[Brightness("2")]).classify(coloured("red", 9))


WITHOUT_TORCH = """
import sys
sys.modules |= dict.fromkeys(("torch", "timm", "transformers", "sentence_transformers"))  # cannot be imported
from zsvec.cli import main
main()
"""


@pytest.mark.usefixtures("settings")
def test_fast_start(cli: Cli, colours: Path) -> None:
    """Encoders are exported once, on the first use, or to a folder for another machine; then no command needs torch."""
    assert cli("--profile tiny import --yes colours").code == 0
    assert cli("--profile tiny encoders export ./to").code == 0
    answers = []
    for profile in ("tiny", "./to"):
        command = ["--profile", profile, "classify", "--json", "colours/blue"]
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH, *command],
            env={**os.environ, "ZSVEC_RUNTIME": "onnx"},  # even if torch is faster for so small an encoder
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        answers.append([json.loads(line)["nearest"] for line in done.stdout.splitlines()])
    assert answers == [["blue"] * 3] * 2
