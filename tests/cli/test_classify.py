"""`zsvec classify`: answers, evidence, unreadable images and CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import zsvec
from tests.cli.support import Cli, Loading, Result, add_images, words
from tests.support import COLOURS, coloured, encode, write_photos
from zsvec.cli import output
from zsvec.types import Prediction, ThresholdProgress

pytestmark = pytest.mark.usefixtures("hash_encoders")


def answers(result: Result) -> list[tuple[str, str | None]]:
    return [(found["source"], found["label"]) for found in result.objects]


def test_json(stocked: Cli, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = stocked("classify --json", new / "red.png")
    assert (result.code, result.err) == (0, "")
    (found,) = result.objects
    with zsvec.open() as clf:
        expected = json.loads(json.dumps(clf.classify(new / "red.png").to_dict()))
    assert found == expected
    assert found["hash"]
    assert list(found) == [
        *("source", "label", "nearest", "probability", "unknown", "novelty", "novelty_basis"),
        *(
            "distance",
            "ranking",
            "candidate_sets",
            "path",
            "labels",
            "experts",
            "fusion",
            "calibration",
            "threshold_progress",
        ),
        *("incomplete", "stale_seconds", "revision", "error", "hash"),
    ]
    assert (found["source"], found["label"], found["unknown"], found["error"]) == ("new/red.png", "red", False, None)
    assert (found["calibration"], found["fusion"]) == ("current", "log_linear_gda")
    assert found["probability"] > 0.9 > 0.2 > found["novelty"] > 0
    monkeypatch.setenv("ZSVEC_CALIBRATION", "off")
    (found,) = stocked("classify --json", new / "red.png").objects
    assert (found["label"], found["calibration"], found["novelty"]) == ("red", "none", None)
    assert (found["fusion"], 0 < found["distance"] < 0.2) == ("log_linear", True)


def test_paths_folders_and_stdin_in_order(stocked: Cli, new: Path) -> None:
    red, blue = ("new/red.png", "red"), ("new/blue.png", "blue")
    result = stocked("classify --json", new / "red.png", new, f"./{new}/blue.png")
    assert answers(result) == [red, blue, red, ("./new/blue.png", "blue")]
    stdin = "new/red.png\r\n\n   \nmissing.png\nnew/blue.png"
    result = stocked("classify --json new/blue.png - new/red.png", stdin=stdin)
    assert answers(result) == [blue, red, ("missing.png", None), blue, red]


def test_text(stocked: Cli, new: Path) -> None:
    result = stocked("classify", new)
    assert (result.code, result.err) == (0, "")
    blue, red = result.out.splitlines()
    assert blue.startswith("new/blue.png  blue ")
    assert red.startswith("new/red.png  red ")
    assert "then" in red
    assert "novelty 0.0" in red


def test_an_answer_of_the_tree(stocked: Cli, new: Path) -> None:
    for colour in COLOURS:
        assert stocked(f"set {colour} --parent 'thing > colour'").code == 0
    image = new / "red.png"
    (found,) = stocked("classify --min-accuracy 0.51 --json", image).objects
    assert found["answer"] == {"label": "red", "probability": found["probability"]}
    assert [node["label"] for node in found["path"]] == ["thing", "colour", "red"]
    (found,) = stocked("classify --min-accuracy 1 --json", image).objects
    assert found["answer"] == {"label": "colour", "probability": 1.0}
    assert "some colour 100.0%, nearest red" in " ".join(stocked("classify --min-accuracy 1", image).out.split())
    header, row = csv.reader(io.StringIO(stocked("classify --min-accuracy 1 --csv", image).out))
    assert (header[-1], row[-1]) == ("answer", "some colour")
    for colour in COLOURS:
        assert stocked(f"set {colour} --parent ''").code == 0
    (found,) = stocked("classify --min-accuracy 1 --json", image).objects
    assert (found["answer"], found["path"]) == (None, [])
    assert "no answer, nearest red" in " ".join(stocked("classify --min-accuracy 1", image).out.split())
    for wrong in ("0.5", "1.5", "nan"):
        assert stocked(f"classify --min-accuracy {wrong}", image).code == 2


def test_explain(stocked: Cli, new: Path) -> None:
    result = stocked("classify --explain", new / "red.png")
    assert (result.code, result.err) == (0, "")
    lines = words(result.out)
    assert lines[1] == ["expert", "weight", "entropy", "says", "nearest", "references"]
    first = {row[0]: row[1:] for row in lines[3:] if ":" in row[0]}
    assert first.keys() == {"clip:text", "clip:image", "dino:image"}
    assert first["dino:image"][3] == "red"
    assert first["dino:image"][-2] == "red:"
    assert first["dino:image"][-1].startswith("colours/red/")
    assert sum(int(row[0].rstrip("%")) for row in first.values()) in (99, 100, 101)
    assert lines[-1][:3] == ["fused", "by", "log_linear_gda"]
    assert " ".join(lines[-1]).endswith(f"; {ThresholdProgress(9, 19)}")


def test_top_k_and_fusion(stocked: Cli, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = stocked("classify --json --top-k 2", new / "red.png").objects
    assert [len(found["ranking"]), *(len(e["ranking"]) for e in found["experts"].values())] == [2] * 4

    def weight(options: str) -> float:
        (found,) = stocked(f"classify --json {options}", new / "red.png").objects
        return float(found["experts"]["clip:text"]["weight"])

    names = ("max_confidence", "inverse_entropy", "neg_exp_entropy", "fixed", "log_linear", "log_linear_views")
    weights = {fusion: weight(f"--fusion {fusion}") for fusion in names}
    assert weights["log_linear"] == weights["log_linear_views"]  # without errors, both trust the experts alike
    assert len(set(weights.values())) == 5
    monkeypatch.setenv("ZSVEC_FUSION", "fixed")
    assert weights["fixed"] == pytest.approx(1 / 3)
    assert weight("") == pytest.approx(1 / 3)


def test_candidates(filled: Cli, colours: Path, new: Path) -> None:
    assert filled("classify --coverage 0.955 new/red.png").out.endswith("  95.5%: cannot be promised\n")
    add_images(colours, range(3, 10))
    assert filled("import", colours).code == 0
    assert filled("classify --coverage 0.955 new/red.png").out.endswith("  95.5%: red\n")
    (found,) = filled("classify --json --coverage 0.9 new/red.png").objects
    with zsvec.open() as clf:
        prediction = clf.classify(new / "red.png")
    assert found == {**json.loads(json.dumps(prediction.to_dict())), "candidates": ["red"]}
    assert prediction.candidate_sets
    above = prediction.candidate_sets.up_to + 0.001
    missing, red = filled(f"classify --json --coverage {above} missing.png new/red.png").objects
    assert missing["candidates"] is red["candidates"] is None
    for wrong in ("--coverage 0", "--coverage 1", "--coverage 95", "--coverage 0.9 --csv"):
        assert filled(f"classify {wrong} new/red.png").code == 2


def test_unknown_images(filled: Cli, colours: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photos(new, [7])
    add_images(colours, range(3, 8))
    assert filled("import", colours).code == 0
    assert [o["unknown"] for o in filled("classify --json new/7.png new/red.png").objects] == [True, False]
    for options in ("", "--coverage 0.5", "--min-accuracy 0.9"):
        said = filled(f"classify {options} new/7.png").out
        assert said.startswith("new/7.png  unknown, nearest ")
        assert "%" not in said
    line, *evidence = filled("classify --explain new/7.png").out.splitlines()
    assert "%" not in line
    assert "among known categories" in " ".join(" ".join(evidence).split())
    assert filled("classify --keep all new/7.png").code == 0
    waiting = filled("inbox").out
    assert "unknown, nearest" in " ".join(waiting.split())
    assert "%" not in waiting
    Path("boxes.csv").write_text("image,left,top,right,bottom,track\n7.png,0,0,8,8,car\n")
    track = filled("classify new --boxes boxes.csv").out
    assert track.startswith("track car  unknown, nearest ")
    assert "%" not in track
    monkeypatch.setenv("ZSVEC_CALIBRATION", "off")
    monkeypatch.setenv("ZSVEC_UNKNOWN_ABOVE", "0.2")
    assert [o["unknown"] for o in filled("classify --json new/7.png new/red.png").objects] == [False, False]
    assert "  distance 0." in filled("classify new/7.png").out


def test_unreadable_images_are_reported_and_the_rest_goes_on(stocked: Cli, new: Path) -> None:
    result = stocked("classify --json missing.png new/red.png colours/red/broken.jpg https://example.org/a.jpg")
    assert result.code == 0
    missing, red, broken, url = result.objects
    error = "cannot read 'missing.png': No such file or directory; check the path and its permissions"
    assert missing == Prediction(source="missing.png", error=error).to_dict()
    assert red["label"] == "red"
    assert broken["error"].startswith("cannot read 'colours/red/broken.jpg': it is empty")
    assert "URLs are not fetched" in url["error"]
    assert result.err == "3 of 4 images could not be read\n"
    result = stocked("classify missing.png new/red.png")
    assert result.out.splitlines()[0].startswith("missing.png: not classified, cannot read 'missing.png'")
    assert result.out.splitlines()[1].startswith("new/red.png  red ")


@pytest.mark.parametrize("options", ["", "--json"])
def test_missing_paths_are_answered_without_encoders(
    stocked: Cli, new: Path, hash_encoders: Loading, options: str
) -> None:
    alone = stocked(f"classify {options} missing.png gone.png")
    assert not hash_encoders.made
    among_others = stocked(f"classify {options} missing.png gone.png new/red.png")
    assert (alone.code, alone.err) == (1, "2 of 2 images could not be read\n")
    assert alone.out.splitlines() == among_others.out.splitlines()[:2]
    assert len(alone.out.splitlines()) == 2
    for command, code in {"add ' '": 2, "add x --text ' '": 2, "add x --image missing.png": 1}.items():
        hash_encoders.made.clear()
        assert stocked(command).code == code
        assert not hash_encoders.made


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_that_encoders_are_loading(
    stocked: Cli, new: Path, monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    monkeypatch.setattr(output.err, "_force_terminal", terminal)
    result = stocked("classify --json new/red.png")
    assert result.err == ("loading the encoders of profile base …\n" if terminal else "")
    assert [found["label"] for found in result.objects] == ["red"]
    empty = stocked("--namespace other classify new/red.png")
    assert "loading" not in empty.err


def test_no_image_at_all(stocked: Cli) -> None:
    Path("empty").mkdir()
    assert stocked("classify --json empty") == Result(1, "", "nothing was classified: there are no images in empty\n")
    assert stocked("classify - empty") == Result(1, "", "nothing was classified: there are no images in stdin, empty\n")


def test_an_unlisted_folder_is_an_error_after_earlier_answers(
    stocked: Cli, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("locked").mkdir()
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if str(path) == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    result = stocked("classify --json new/red.png locked")
    assert result.code == 2
    assert [o["label"] for o in result.objects] == ["red"]
    assert "cannot list the folder 'locked': Permission denied" in result.err


def test_csv(stocked: Cli, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (new / "broken, or so.jpg").touch()
    (new / "red.png").rename("=red.png")
    result = stocked("classify --csv =red.png", new)
    assert result.code == 0
    rows = list(csv.DictReader(io.StringIO(result.out)))
    assert [row["source"] for row in rows] == ["'=red.png", str(new / "blue.png"), str(new / "broken, or so.jpg")]
    objects = stocked("classify --json =red.png", new).objects
    for row, found in zip(rows, objects, strict=True):
        assert list(row) == [
            *("source", "label", "nearest", "probability", "unknown", "novelty", "novelty_basis", "distance", "error")
        ]
        for name in ("label", "nearest", "probability", "novelty", "novelty_basis", "distance", "error"):
            assert row[name] == ("" if found[name] is None else str(found[name]))
        assert row["unknown"] == ("true" if found["unknown"] else "false")
    assert stocked("classify --csv missing.png").out.splitlines()[1].startswith("missing.png,,,,false,,,")
    (new / "blue.png").rename(new / "\x1b[31mred.png")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    result = stocked("classify --csv", new)
    assert "\x1b" not in result.out
    assert "\\x1b[31mred.png" in result.out


def photo_with_three_colours(folder: str) -> None:
    """Writes ``a.png``, a blue, a green and a red picture side by side, and ``b.png``, a red one."""
    whole = Image.new("RGB", (24, 6))
    for number, colour in enumerate(COLOURS):
        whole.paste(coloured(colour, 100), (8 * number, 0))
    Path(folder).mkdir()
    Path(folder, "a.png").write_bytes(encode(whole))
    Path(folder, "b.png").write_bytes(encode(coloured("red", 101)))


def test_boxes(stocked: Cli) -> None:
    photo_with_three_colours("scenes")
    rows = ["b.png,0,0,8,6", "a.png,8,0,16,6", "a.png,0,0,8,6", "a.png,nan,0,8,6", "a.png,9,9,20,20", "a.png,16,0,99,6"]
    Path("found.csv").write_text("\n".join(["image,left,top,right,bottom", *rows, "../x.png,0,0,1,1", "a.png,1,2"]))
    result = stocked("classify scenes --json --boxes found.csv")
    assert result.code == 0
    assert [(o["source"], o["label"], o["box"]) for o in result.objects] == [
        ("scenes/b.png#xywh=0,0,8,6", "red", [0, 0, 8, 6]),
        ("scenes/a.png#xywh=8,0,8,6", "green", [8, 0, 16, 6]),
        ("scenes/a.png#xywh=0,0,8,6", "blue", [0, 0, 8, 6]),
        ("scenes/a.png#xyxy=nan,0,8,6", None, [None, 0, 8, 6]),
        ("scenes/a.png#xywh=9,9,11,11", None, [9, 9, 20, 20]),
        ("scenes/a.png#xywh=16,0,83,6", "red", [16, 0, 99, 6]),
    ]
    assert result.err.count("left out: found.csv, line") == 2
    assert "2 of 6 images could not be read" in result.err
    text = stocked("classify scenes --boxes found.csv")
    assert text.out.startswith("scenes/b.png#xywh=0,0,8,6  red ")
    table = csv.DictReader(io.StringIO(stocked("classify scenes --csv --boxes found.csv").out))
    assert [row["label"] for row in table] == ["red", "green", "blue", "", "", "red"]
    Path("a.txt").write_text("0 .5 .5 .3333333 1\n")
    (found,) = stocked("classify scenes/a.png --json --boxes a.txt --margin 1").objects
    assert found["source"] == "scenes/a.png#xywh=percent:33.3333,0,33.3333,100"
    with zsvec.open() as clf:
        assert found["hash"] == zsvec.content_hash(zsvec.Region("scenes/a.png", (0, 0, 24, 6)))
        assert clf.classify_regions("scenes/a.png", [(8, 0, 16, 6)], margin=1)[0].hash == found["hash"]


def test_boxes_of_tracks(stocked: Cli) -> None:
    photo_with_three_colours("scenes")
    rows = ["a.png,16,0,24,6,car 1", "a.png,8,0,16,6,", "a.png,0,0,8,6,car 2", "b.png,0,0,8,6,car 1", "b.png,9,9,9,9,x"]
    Path("found.csv").write_text("\n".join(["image,left,top,right,bottom,track", *rows]))
    box, second, first, neither = stocked("classify scenes --json --boxes found.csv").objects
    assert (box["label"], box["box"]) == ("green", [8, 0, 16, 6])
    assert [(one["track"], one["nearest"], one["frames"]) for one in (second, first)] == [
        ("car 2", "blue", 1),
        ("car 1", "red", 2),
    ]
    assert (neither["track"], neither["frames"], neither["error"] is None) == ("x", 0, False)
    with zsvec.open() as clf:
        tracker = clf.tracker()
        for image, left in (("a", 16), ("b", 0)):
            (found,) = clf.classify_regions(f"scenes/{image}.png", [(left, 0, left + 8, 6)])
            answer = tracker.update("car 1", found)
    assert (first["label"], first["decided_after"]) == (answer.label, answer.decided_after) == ("red", 2)
    assert first["probability"] == pytest.approx(answer.probability)
    text = stocked("classify scenes --boxes found.csv").out.splitlines()
    assert [line.split("  ")[0] for line in text[1:]] == ["track car 2", "track car 1", "track x"]
    assert stocked("classify scenes --csv --boxes found.csv").out.count("\n") == 6
    for option in ("--explain", "--coverage .9", "--min-accuracy .9"):
        result = stocked(f"classify scenes {option} --boxes found.csv")
        assert (result.code, result.out) == (2, "")
        assert "has the column track" in result.said
    assert stocked("classify scenes --csv --min-accuracy .9 --boxes found.csv").out.count("\n") == 6


def test_a_track_counts_as_many_categories_as_a_tracker(cli: Cli) -> None:
    for i in range(12):
        write_photos(Path("references") / f"c{i:02}", [i])
    assert cli("import references").code == 0
    photo_with_three_colours("scenes")
    Path("found.csv").write_text("image,left,top,right,bottom,track\na.png,0,0,8,6,x\nb.png,0,0,8,6,x\n")
    (found,) = cli("classify scenes --json --top-k 1 --boxes found.csv").objects
    with zsvec.open() as clf:
        tracker = clf.tracker()
        for image in ("a", "b"):
            (answer,) = tracker.classify(f"scenes/{image}.png", [(0, 0, 8, 6)], ["x"])
    assert [one["label"] for one in found["ranking"]] == [label for label, _ in answer.ranking]
    assert found["probability"] == pytest.approx(answer.probability)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("new new --boxes f.csv", "--boxes needs one DIR"),
        ("- --boxes f.csv", "--boxes needs one DIR"),
        ("new --margin .1", "--margin needs --boxes"),
        ("new --boxes missing.csv", "missing.csv is no file"),
        ("new --boxes f.xml", "f.xml must end with"),
        ("new/red.png --boxes f.csv", "must be a folder"),
        ("new --boxes f.csv", "must name the columns image, left, top, right, bottom"),
    ],
)
def test_boxes_that_cannot_be_read(stocked: Cli, new: Path, hash_encoders: Loading, arguments: str, said: str) -> None:
    Path("f.csv").write_text("path,label\n")
    result = stocked(f"classify {arguments}")
    assert (result.code, result.out) == (2, "")
    assert said in result.said
    assert not hash_encoders.made


@pytest.mark.usefixtures("patient")
def test_together(stocked: Cli, new: Path) -> None:
    (new / "broken.png").write_bytes(b"no image")
    result = stocked("classify --together --json --top-k 2 --stats", new)
    assert "images in" in result.err
    assert "1 of 3 images could not be read" in result.err
    with zsvec.open() as clf:
        paths = [found["source"] for found in result.objects]
        expected = [json.loads(json.dumps(one.to_dict())) for one in clf.classify_together(paths, top_k=2)]
    assert sorted(paths) == sorted(map(str, new.iterdir()))
    assert result.objects == expected
    assert stocked("classify --together --csv", new).out.count("\n") == 4
    assert stocked("classify --together missing.png").code == 1


def test_boxes_together(stocked: Cli) -> None:
    photo_with_three_colours("scenes")
    Path("found.csv").write_text("image,left,top,right,bottom\nb.png,0,0,8,6\na.png,8,0,16,6\n")
    found = stocked("classify scenes --together --json --boxes found.csv").objects
    assert [(o["label"], o["box"]) for o in found] == [("red", [0, 0, 8, 6]), ("green", [8, 0, 16, 6])]


def test_a_camera_has_no_end(stocked: Cli, hash_encoders: Loading) -> None:
    result = stocked("classify --together /dev/video0")
    assert (result.code, result.out) == (2, "")
    assert not hash_encoders.made
