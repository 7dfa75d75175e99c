"""The DALL-E images of the paper, drawn again by a fake: accuracy of the store, and flags of the gate."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import zsvec
from tests.encoders.conftest import needs_offline_weights
from tests.generation.fake_openai import IMAGES, FakeOpenAI, folder_artist
from tests.support import fast_folder, isolated  # noqa: F401
from zsvec.encoders import EncoderSet
from zsvec.evaluation import evaluate, labelled_images

DATA = Path(os.environ.get("ZSVEC_DATA") or Path(__file__).parents[3] / "shared" / "data") / "tinyimagenet-dalle"
# Top-1 of a store with the DALL-E prompts as texts and the 191 images without a flag.
MEASURED = {"conse:text": 0.919, "conse:image": 0.832, "efficientnet:image": 0.538, "fusion": 0.934}
FLAGGED = {"cardigan", "go-kart", "gondola", "ice_cream", "ice_lolly", "plate"}


@pytest.mark.skipif(not DATA.is_dir(), reason=f"there is no {DATA}: set ZSVEC_DATA to the folder of the research data")
def test_the_images_of_the_paper(load_once: Callable[..., EncoderSet], monkeypatch: pytest.MonkeyPatch) -> None:
    needs_offline_weights()
    monkeypatch.setattr("zsvec.encoders.load_encoders", load_once)
    with (DATA / "classes.csv").open(encoding="utf-8") as file:
        prompts = {row["category"]: row["dalle_prompt"] for row in csv.DictReader(file)}
    artist = folder_artist(DATA / "references")
    with (
        fast_folder() as folder,
        FakeOpenAI(appearances=prompts, draw=artist) as server,
        zsvec.open(
            folder / "store", profile="offline", device="cpu", dtype="float32", generation={"base_url": server.url}
        ) as clf,
    ):
        done = clf.generation.references(prompts, per_category=1, folder=folder / "generated")

        assert len(done.images) == len(prompts) == 197
        assert server.sold(IMAGES).total() == 197
        for image in done.images:
            (original,) = (DATA / "references" / image.record.category).iterdir()
            assert image.path.read_bytes() == original.read_bytes()

        assert {image.record.category for image in done.flagged} == FLAGGED
        assert all(flag.startswith("far: ") for image in done.flagged for flag in image.flags)
        # The paper's gondola (a boat) shows a cable car.
        (gondola,) = (image for image in done.images if image.record.category == "gondola")
        boat, cabin = clf.encoders["conse"].encode_texts(["gondola", "cable car"]) @ gondola.vectors["conse"]
        assert boat < cabin

        assert [image.stored for image in done.images] == [not image.flags for image in done.images]
        for category in clf.categories():
            images = 0 if category.name in FLAGGED else 1
            counts = {"conse:text": 2, "conse:image": images, "efficientnet:image": images}
            assert category.references == {expert: count for expert, count in counts.items() if count}

        found = evaluate(clf, *zip(*labelled_images(DATA / "photos"), strict=True))
        top1 = {"fusion": found.accuracy.top1, **{expert: accuracy.top1 for expert, accuracy in found.experts.items()}}
        assert top1 == {expert: pytest.approx(value, abs=0.02) for expert, value in MEASURED.items()}
