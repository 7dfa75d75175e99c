"""The script of the standing conditions: what it asks, what it counts, and what it prints."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.support import COLOURS, coloured_set, isolated, run_script, two_encoders  # noqa: F401
from zsvec.encoders import EncoderSet

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    import conditions

    monkeypatch.setattr(conditions, "load_encoders", lambda *_, **__: EncoderSet(two_encoders()))
    return conditions


@pytest.fixture
def folder() -> Path:
    return coloured_set(6, 6)


def titles(images: Any, *counts: int, seed: int = 0) -> dict[str, tuple[Any, list[np.ndarray]]]:
    from standing.trials import trials

    return {
        title: (trial, list(batches))
        for trial in trials(images, counts, seed)
        for title, batches in trial.batches.items()
    }


@pytest.mark.usefixtures("script")
def test_a_set_is_embedded_with_bursts(folder: Path) -> None:
    from standing.sets import embed

    images = embed(folder, EncoderSet(two_encoders()), {"clip": "a photo of {name}"})
    assert (images.name, images.most) == ("colours", 6)
    assert {name: len(numbers) for name, numbers in images.pool.items()} == dict.fromkeys(COLOURS, 12)
    assert list(images.unknown) == [36, 37]
    made = [number for numbers in images.bursts.values() for number in numbers]
    assert sorted([*made, *images.copies.values()]) == list(range(38, 38 + 36 * 5))
    assert {name: vectors.shape for name, vectors in images.vectors.items()} == {"clip": (218, 32), "dino": (218, 16)}
    (clip,) = images.texts.values()
    np.testing.assert_array_equal(clip[0], two_encoders()[0].encode_texts(["a photo of blue"])[0])
    # The first of a burst is the image in a mirror.
    image = Image.open(folder / "references" / "blue" / "0.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    mirrored = two_encoders()[1].encode_images([image])[0]
    np.testing.assert_allclose(images.vectors["dino"][images.bursts[0][0]], mirrored, atol=1e-6)
    # The copy is nearly the image.
    assert 0.9 < images.vectors["dino"][images.copies[0]] @ images.vectors["dino"][0] < 1


@pytest.mark.usefixtures("script")
def test_what_is_asked(folder: Path) -> None:
    from standing.sets import embed

    images = embed(folder, EncoderSet(two_encoders()), {})
    found = titles(images, 1, 6, 40)
    assert list(found) == [
        *(
            f"{count}{kind}"
            for count in ("1 reference", "6 references")
            for kind in (
                *("", ", batches of 64", ", skewed batches of 64", ", batches of 256", ", skewed batches of 256"),
                *(", a quarter of 64 unknown", ", a quarter of 256 unknown"),
            )
        ),
        *(f"{rate}% unknown asked for" for rate in (1, 2, 5, 10)),
        *("1 to 6 references", "3 or 6 references"),
        *("20% wrong labels", "50% wrong labels", "20% in another category too", "bursts of 5"),
    ]
    for trial, batches in found.values():
        asked = np.concatenate(batches).tolist()
        originals = {number for number, _ in trial.rows if number < 36}
        assert not originals & set(asked)
        assert all(len(set(batch.tolist())) == len(batch) for batch in batches)
    assert sorted(np.concatenate(found["6 references"][1]).tolist()) == sorted(
        set(range(38)) - {number for number, _ in found["6 references"][0].rows}
    )
    assert Counter(name for _, name in found["3 or 6 references"][0].rows) in [
        Counter({name: 6 if name == most else 3 for name in COLOURS}) for most in COLOURS
    ]
    uneven = found["1 to 6 references"][0]
    counts = Counter(name for _, name in uneven.rows)
    assert uneven.few == {name for name, count in counts.items() if count <= 3}
    assert [found[f"{rate}% unknown asked for"][0].rate for rate in (1, 2, 5, 10)] == [0.01, 0.02, 0.05, 0.1]
    wrong = [name != found["50% wrong labels"][0].truth[number] for number, name in found["50% wrong labels"][0].rows]
    assert 3 <= sum(wrong) <= 15
    twins = Counter(number for number, _ in found["20% in another category too"][0].rows)
    assert set(twins.values()) == {1, 2}
    assert len(set(found["20% in another category too"][0].rows)) == sum(twins.values())
    assert len(found["bursts of 5"][0].rows) == 5 * 18
    assert len(found["6 references, skewed batches of 64"][1]) == 10

    again, other = titles(images, 1, 6, 40), titles(images, 1, 6, 40, seed=1)
    for title, (trial, batches) in found.items():
        assert again[title][0].rows == trial.rows
        assert all(np.array_equal(a, b) for a, b in zip(again[title][1], batches, strict=True))
    assert other["6 references"][0].rows != found["6 references"][0].rows


@pytest.mark.usefixtures("script")
def test_without_images_of_no_category_some_categories_are_left_out(folder: Path) -> None:
    from standing.sets import embed

    for path in (folder / "unknown").iterdir():
        path.unlink()
    (folder / "unknown").rmdir()
    trial, batches = titles(embed(folder, EncoderSet(two_encoders()), {}), 3)["3 references, a quarter of 64 unknown"]
    (outside,) = set(COLOURS) - {name for _, name in trial.rows}
    assert set(trial.truth.values()) == set(COLOURS) - {outside}
    asked = [trial.truth.get(number) for number in np.concatenate(batches).tolist()]
    assert Counter(map(str, asked)) == {"None": 6, **{name: 6 for name in COLOURS if name != outside}}


@pytest.mark.usefixtures("script")
def test_figures_by_hand() -> None:
    from standing.measure import Compared, Condition

    found = Compared.of([1.0, 2.0, 6.0], [0.0, 2.0, 1.0])
    assert (found.mean, found.gain) == (3.0, 2.0)
    # Deviations from the mean of -2, -1 and 3: a variance of 14 / 2; of the gains 1, 0 and 5 likewise.
    assert found.error == pytest.approx(np.sqrt(7 / 3))
    assert found.gain_error == pytest.approx(np.sqrt(7 / 3))
    one = Compared.of([1.0, float("nan")], [0.5, float("nan")])
    assert one.to_dict() == {"mean": 1.0, "error": None, "gain": 0.5, "gain_error": None}

    condition = Condition()
    for name, by_draw in {"fused": (80, 90), "text": (50, 60), "prototype": (70, 81), "gda": (99,)}.items():
        condition.by_name[name] = [{"top1": float(top1)} for top1 in by_draw]
    assert condition.best_single(["fused"]) == "prototype"  # the other one was not there in every draw
    assert condition.compared("fused", "prototype")["top1"].gain == 9.5


def test_conditions(script: ModuleType, folder: Path) -> None:
    options = ("--references", 3, "--draws", 2, "--strategy", "transductive", "--json")
    lines = [json.loads(line) for line in run_script(script, folder, *options).splitlines()]
    assert len(lines) == 2 * (7 + 4 + 2 + 4)
    assert [line["strategy"] for line in lines] == ["log_linear_views", "transductive"] * 17
    for line in lines:
        assert (line["set"], line["draws"]) == ("colours", 2)
        for key in ("top1", "nll", "brier", "ece", "floor", "unknown"):
            assert list(line[key]) == ["mean", "error", "gain", "gain_error"]
        assert ("auroc" in line) == ("batches" not in line["condition"])
        assert line["top1"]["mean"] <= 100
        if line["strategy"] == "log_linear_views":
            assert line["top1"]["gain"] == line["nll"]["gain_error"] == 0
        assert line["best_single"].split()[0] in {"clip:image", "dino:image", "clip:text"}
        assert line["below_best_single"] in (True, False)
    by_title = {line["condition"]: line for line in lines}
    assert by_title["3 references"]["top1"]["mean"] == 100
    assert by_title["3 references"]["best_single"] == "clip:image top_mean"  # the first of those that are always right
    assert by_title["3 references"]["over_best_single"] == {"gain": 0, "error": 0}
    assert "few" in by_title["3 or 6 references"]


def test_conditions_for_people(script: ModuleType, folder: Path) -> None:
    out = run_script(script, folder, "--references", 1, "--draws", 1, "--strategy", "log_linear_gda")
    assert "colours, 1 draws; ± is a standard error, Δ the gain over log_linear_views" in out
    assert "1 reference, skewed batches of 64" in out
    assert "nan" not in out
    result = CliRunner().invoke(script.app, [str(folder), "--strategy", "loglinear"])
    assert result.exit_code == 2
    assert "no strategy: loglinear" in result.output
