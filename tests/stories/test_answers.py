"""New users classify: first value, unknown images, streams, many references, evaluation, and a colleague's browser."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.metrics import accuracy_score

import zsvec
from tests.cli.support import Cli, Loading, finish, start
from tests.service.support import PART, page_of, visitor
from tests.stories.conftest import SUBJECTS
from tests.support import coloured
from zsvec.evaluation import evaluate, labelled_images
from zsvec.testing import HashEncoder


def test_first_value(shop: Cli) -> None:
    answers = shop("classify --json new").objects
    assert len(answers) == 4 * len(SUBJECTS)
    assert sum(answer["nearest"] == Path(answer["source"]).parent.name for answer in answers) >= 0.9 * len(answers)
    photo = sorted(Path("new/sunflower").iterdir())[0]
    assert shop("classify", photo).out.startswith(f"{photo}  sunflower ")
    assert "photos/sunflower/" in shop("classify --explain", photo).out  # the evidence
    facts = shop("info").out
    assert all(word in facts for word in ("offline", "4 categories, 24 images and 4 texts", "sha256:"))
    assert not re.search("[0-9a-f]{13}", facts)  # hashes are for `--json`
    with zsvec.open(os.environ["ZSVEC_STORE"]) as clf:  # the profile is the one of the store
        answer = clf.classify(photo)
        assert (answer.label, answer.unknown, answer.calibration) == ("sunflower", False, "current")
        assert answer.experts["efficientnet:image"].neighbors[0].category == "sunflower"


def test_unknown_images(shop: Cli) -> None:
    with zsvec.open(os.environ["ZSVEC_STORE"]) as clf:
        strangers = clf.classify(sorted(Path("strange").iterdir()))
        assert sum(answer.unknown for answer in strangers) >= 6
        assert all(answer.label is None and answer.nearest in SUBJECTS for answer in strangers if answer.unknown)
        known = clf.classify(sorted(Path("new").glob("*/*")))
        assert sum(answer.unknown for answer in known) <= 3
        before = clf.classify(sorted(Path("starfish").iterdir()))
        assert sum(answer.unknown for answer in before) >= 6
        clf.add_category("starfish", texts=["a starfish"])
        after = clf.classify(sorted(Path("starfish").iterdir()))
        assert sum(answer.label == "starfish" for answer in after) >= 6
    assert shop("calibrate --false-unknown-rate 0.2").code == 0
    refused = [answer["unknown"] for answer in shop("classify --json strange").objects]
    assert sum(refused) >= sum(answer.unknown for answer in strangers)


def test_a_stream_uses_categories_that_another_process_adds(cli: Cli, on_server: bool, hash_encoders: Loading) -> None:
    coloured("white", 1).save("white.png")
    with zsvec.open() as clf, ThreadPoolExecutor(1) as colleague:
        for colour in ("red", "blue"):
            clf.add_category(colour, images=[coloured(colour, seed) for seed in range(3)])

        def add() -> None:
            if on_server:
                assert finish(start("add", "white", "--image", "white.png"))[0] == 0
            else:  # a folder serves one process
                clf.add_category("white", images=["white.png"])

        def camera() -> Iterator[Image.Image]:
            while True:
                yield coloured("white", 2)

        with clf.classify_stream(camera(), batch_size=2, max_wait_ms=5) as stream:
            assert next(stream).nearest != "white"
            adding = colleague.submit(add)
            for answer in stream:
                if adding.done() and answer.nearest == "white":
                    break
                assert stream.stats.images < 100_000
            adding.result()
        assert stream.stats.failed == 0


def test_20_000_references() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, 64)).astype(np.float32)
    with zsvec.open(":memory:", encoders=[HashEncoder("mine", modalities=("image",))]) as clf:
        clf.add_categories(
            zsvec.CategoryInput(
                name=f"category {i}",
                texts=[],
                vectors={"mine:image": centre + 0.5 * rng.normal(size=(1000, 64)).astype(np.float32)},
            )
            for i, centre in enumerate(centres)
        )
        assert sum(category.images for category in clf.categories()) == 20_000
        answers = clf.classify_vectors({"mine": centres + 0.5 * rng.normal(size=centres.shape)})
        assert [answer.nearest for answer in answers] == [f"category {i}" for i in range(20)]
        assert clf.calibrate().calibration.images >= 1_000
        (stranger,) = clf.classify_vectors({"mine": -centres[:1]})
        assert stranger.unknown
        clf.remove_category("category 0")
        assert clf.classify_vectors({"mine": centres[:1]})[0].nearest != "category 0"


def test_evaluation(shop: Cli) -> None:
    (told,) = shop("evaluate new --unknown strange --json").objects
    assert (told["n"], told["top1"] >= 0.9, told["auroc"] >= 0.9) == (16, True, True)
    assert shop("evaluate new --csv scores.csv").code == 0
    assert Path("scores.csv").read_text().count("sunflower") >= 1
    with zsvec.open(os.environ["ZSVEC_STORE"]) as clf:
        result = evaluate(clf, *zip(*labelled_images(Path("new")), strict=True))
    assert result.accuracy.top1 == told["top1"] == accuracy_score(result.truth, result.answers)


def test_a_colleague_without_python(shop: Cli) -> None:
    """Opens the page that `zsvec serve` shows, drops a photograph there and corrects the answer."""
    photo = sorted(Path("starfish").iterdir())[0]
    sent = [("images", (photo.name, photo.read_bytes()))]
    with zsvec.open(os.environ["ZSVEC_STORE"]) as clf, visitor(clf) as browser:
        assert "Classify" in page_of(browser.get("/")).text
        page = page_of(browser.post("/classify", files=sent, headers=PART))
        assert "This looks like none of your categories" in page.text
        pictures = [str(found["src"]) for found in page.all("img")]
        assert {browser.get(address).headers["content-type"] for address in pictures} == {"image/jpeg"}
        assert browser.post("/correct", data={"category": "starfish"}, files=sent, headers=PART).status_code == 200
        page = page_of(browser.post("/classify", files=sent, headers=PART))
        assert "starfish" in page.text
        assert "starfish" in page_of(browser.get("/categories")).text
    assert [one["category"] for one in shop("list --json").objects] == sorted([*SUBJECTS, "starfish"])
