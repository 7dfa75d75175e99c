"""`zsvec calibrate` and `zsvec audit`."""

from __future__ import annotations

import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import zsvec
from tests.cli.support import Cli, Loading, add_images, words
from tests.support import COLOURS, coloured, encode
from zsvec.cli import output
from zsvec.store import open_store
from zsvec.types import ThresholdProgress

pytestmark = pytest.mark.usefixtures("hash_encoders")

CURRENT = "the calibration was already current: nothing has changed\n"


def mislabel(colours: Path, copies: int) -> None:
    """Add so many pictures of each other colour to each colour, beside nine more right ones."""
    add_images(colours, range(3, 12))
    for number, (colour, other) in enumerate([*itertools.permutations(COLOURS, 2)] * copies):
        (colours / colour / f"{other} {number}.png").write_bytes(encode(coloured(other, 20 + number)))


def test_calibrate_json(filled: Cli, hash_encoders: Loading) -> None:
    before = hash_encoders.embedded()
    result = filled("calibrate --json")
    assert (result.code, result.err) == (0, "")
    assert hash_encoders.embedded() == before
    (found,) = result.objects
    with zsvec.open() as clf:
        assert found == json.loads(json.dumps(clf.calibrate().to_dict()))
    assert list(found) == [
        *("images", "false_unknown_rate", "threshold", "threshold_progress", "experts", "before", "after"),
        *("scale", "labelled_before", "labelled_after", "suspects"),
    ]
    assert (found["images"], found["false_unknown_rate"], found["threshold"], found["suspects"]) == (9, 0.05, {}, [])
    for expert in found["experts"].values():
        assert list(expert) == ["temperature", "spread", "images", "accuracy", "wrong"]
    assert list(found["before"]) == ["top1", "cross_entropy", "ece"]
    assert found["before"] == found["after"]  # the import has calibrated the store


def test_calibrate_learns_the_threshold(filled: Cli, colours: Path) -> None:
    add_images(colours, range(3, 8))
    assert filled("import", colours).code == 0
    thresholds = {}
    for fraction in ("0.05", "0.5"):
        (found,) = filled("calibrate --json --false-unknown-rate", fraction).objects
        assert (found["images"], found["false_unknown_rate"]) == (24, float(fraction))
        thresholds[fraction] = found["threshold"]["clip:image+clip:text+dino:image"]
    assert thresholds["0.05"] < thresholds["0.5"]
    unknown = [o["unknown"] for o in filled("classify --json", colours).objects if o["error"] is None]
    assert 0.2 < sum(unknown) / len(unknown) < 0.8
    said = filled("calibrate --false-unknown-rate 0.125").out.splitlines()[-1]
    assert said.endswith("an image is unknown if it is farther from every category than 87.5% of these images")


def test_label_errors(filled: Cli, colours: Path) -> None:
    mislabel(colours, copies=2)
    assert filled("import", colours).code == 0
    (found,) = filled("calibrate --json").objects
    suspects = found["suspects"]
    assert len(suspects) == 12
    assert list(suspects[0]) == ["category", "hash", "source", "probability", "instead", "copied"]
    for suspect in suspects:
        assert Path(suspect["source"]).name.startswith(suspect["instead"])
        assert 0.5 < suspect["probability"] <= 1
    title = "12 reference images probably under a wrong category:"
    lines = filled("calibrate").out.splitlines()
    assert title in lines
    assert len([line for line in lines if line.strip().endswith(tuple(COLOURS)) and "%" in line]) == 10
    assert lines[-1] == "and 2 more: --json names all"
    lines = filled("audit").out.splitlines()
    assert lines[0] == title
    assert "and 2 more: --json and --html name all" in lines
    assert lines[-1] == "48 reference images, 48 of them judged by the others"


def test_calibrate_tables(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (expected,) = filled("calibrate --json").objects
    result = filled("calibrate")
    assert (result.code, result.err) == (0, CURRENT)
    lines = words(result.out)
    assert lines[0] == ["expert", "temperature", "images", "accuracy"]
    assert lines[2:5] == [
        [name, f"{expert['temperature']:.3f}", "9", f"{expert['accuracy']:.1%}"]
        for name, expert in expected["experts"].items()
    ]
    assert lines[5] == ["fusion", "top-1", "cross-entropy", "calibration", "error"]
    assert [row[:2] for row in lines[7:9]] == [["before", "100.0%"], ["after", "100.0%"]]
    assert [row[3] for row in lines[7:9]] == ["nats"] * 2
    assert " ".join(lines[9]) == f"learned from 9 reference images; no threshold yet: {ThresholdProgress(9, 19)}"
    assert len(lines) == 10
    monkeypatch.setattr(output.out, "width", 30)
    narrow = filled("calibrate").out
    assert "…" not in narrow
    assert max(len(line) for line in narrow.splitlines()[:-1]) <= 30


def test_calibrate_with_one_reference_a_category(cli: Cli, new: Path) -> None:
    for colour in ("red", "blue"):
        assert cli("add", colour, "--image", new / f"{colour}.png").code == 0
    (found,) = cli("calibrate --json").objects
    assert (found["images"], found["threshold"], found["before"], found["after"]) == (2, {}, None, None)
    assert found["experts"]["dino:image"]["accuracy"] is None
    result = cli("calibrate")
    few = (
        "log_linear_views runs: log_linear_gda takes images of most categories, of one at least 3 and of another 2 "
        "that are not one scene"
    )
    assert (result.code, result.err) == (0, f"{few}\n{CURRENT}")
    assert result.out.count("– (one reference a category)") == 2
    assert "cross-entropy" not in result.out


def test_calibrate_forgets_the_scale_of_labelled_images(filled: Cli) -> None:
    with zsvec.open() as clf:
        scale = clf.calibrate(labelled=[(coloured("blue", seed), "red") for seed in range(9)]).calibration.scale
    assert scale < 0.9
    result = filled("calibrate")
    assert result.err == (
        f"the scale {scale:.2f} learned from labelled images was reset to 1: learn it again by "
        "clf.calibrate(labelled=…)\n"
    )
    assert filled("calibrate").err == CURRENT


def test_calibrate_makes_a_stale_store_current(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("zsvec.ingest.recalibration._CHEAP", 0)
        assert filled("add white --image colours/red/0.png").code == 0

    def states() -> list[str]:
        commands = ("info --json", "classify --json colours/red/0.png")
        return [filled(command).objects[0]["calibration"] for command in commands]

    assert states() == ["stale", "stale"]
    result = filled("calibrate")
    assert (result.code, result.err) == (0, "")
    assert filled("calibrate").err == CURRENT
    assert filled("calibrate --false-unknown-rate 0.2").err == ""
    assert filled("calibrate").err == CURRENT
    assert states() == ["current", "current"]


@pytest.mark.parametrize("content", [["init"], ["add cat", "add dog"], ["add red --image new/red.png"]])
def test_a_store_that_cannot_be_calibrated(cli: Cli, new: Path, content: list[str]) -> None:
    for command in content:
        assert cli(command).code == 0
    for options in ("", "--json"):
        result = cli(f"calibrate {options}")
        assert (result.code, result.out) == (1, "")
        assert result.err == (
            f"zsvec: {os.environ['ZSVEC_STORE']} (namespace zsvec) cannot be calibrated: "
            "that takes two categories and a reference image\n"
        )
    assert Path(os.environ["ZSVEC_STORE"]).exists() == bool(content)


@pytest.fixture
def doubtful(filled: Cli, colours: Path) -> Cli:
    """A store with six images under a wrong category, and a copy of an image in another category."""
    mislabel(colours, copies=1)
    (colours / "red" / "copy of blue.png").write_bytes((colours / "blue" / "0.png").read_bytes())
    assert filled("import", colours).code == 0
    return filled


def test_audit_json(doubtful: Cli, hash_encoders: Loading) -> None:
    before, embedded = doubtful("list --json").objects, hash_encoders.embedded()
    result = doubtful("audit --json")
    assert (result.code, result.err) == (0, "")
    with zsvec.open() as clf:
        assert result.objects == json.loads(json.dumps(list(clf.references.audit().lines())))
    summary, *findings = result.objects
    assert (summary["finding"], summary["images"], summary["judged"], summary["labels"]) == ("summary", 43, 43, 7)
    assert summary["labels"] == sum(one["finding"] == "label" for one in findings)
    assert (doubtful("list --json").objects, hash_encoders.embedded()) == (before, embedded)


def test_hashes_of_the_audit_are_whole_at_80_columns_and_can_be_moved(
    doubtful: Cli, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coloured("green", 0).save(colours / "green" / "copy.png", compress_level=0)
    assert doubtful("import", colours).code == 0
    monkeypatch.setattr(output.out, "width", 80)
    for command, kinds in {"audit": ("label", "duplicates", "outlier", "confusion"), "calibrate": ("label",)}.items():
        out = doubtful(command).out
        assert command != "audit" or max(len(line) for line in out.splitlines()) <= 80
        first = {row[0] for row in words(out)}
        for one in doubtful("audit --json").objects[1:]:
            if one["finding"] in kinds:
                images = one.get("images", [one])
                assert {image["hash"][:12] for image in images if "hash" in image} <= first
    (label, *_) = label_errors(doubtful)
    moved = doubtful(f"move {label['category']} {label['instead']} {label['hash'][:12]} --json")
    assert [found["category"] for found in moved.objects] == [label["instead"]]


def label_errors(cli: Cli) -> list[dict[str, Any]]:
    return [one for one in cli("audit --json").objects if one["finding"] == "label"]


def test_audit_fix(doubtful: Cli, colours: Path, monkeypatch: pytest.MonkeyPatch, hash_encoders: Loading) -> None:
    coloured("green", 0).save(colours / "green" / "copy.png", compress_level=0)
    assert doubtful("import", colours).code == 0
    for options, says in {"--fix": "--fix asks at a terminal", "--fix --json": "--fix must be alone"}.items():
        result = doubtful(f"audit {options}")
        assert (result.code, result.out) == (2, "")
        assert says in result.err
    found = label_errors(doubtful)
    embedded = hash_encoders.embedded()
    monkeypatch.setattr("zsvec.cli.quality.is_terminal", lambda: True)
    result = doubtful("audit --fix", stdin="m\nnonsense\nR\nk\ns\n")
    assert (result.code, result.out.strip()) == (0, "")  # click prints the space of its prompt on stdout
    first, second, third, *_ = found
    assert f"is under '{first['category']}', and probably '{first['instead']}'" in result.err.replace("\n", " ")
    questions = re.findall(r"(\d+) of (\d+): ", result.err)
    assert [number for number, _ in questions] == ["1", "2", "3", "4"]
    assert re.search(r"done: \w+ has \d+ images and 1 text$", result.err, re.MULTILINE)
    with open_store(os.environ["ZSVEC_STORE"], namespace="zsvec") as store:

        def names_of(one: dict[str, Any]) -> set[str]:
            return {c.name for c in store.categories() if one["hash"] in {digest for *_, digest in store.keys(c.name)}}

        assert names_of(first) == {first["instead"]}
        assert names_of(second) == ({second["instead"]} if second["copied"] else set())
        assert third["category"] in names_of(third)
    keep = "k\n" * len(label_errors(doubtful))
    result = doubtful("audit --fix", stdin=f"{keep}r\n")
    number = keep.count("k") + 1
    assert f"{number} of {number}: " in result.err
    assert "of 'green' looks like" in result.err
    assert result.err.splitlines()[-1] == "there is nothing more to ask"
    shown = doubtful("show green").out
    assert ("green/0.png" in shown) != ("green/copy.png" in shown)
    assert hash_encoders.embedded() == embedded
    assert label_errors(doubtful) == []
    assert f"{keep.count('k') + 1} kept findings not shown" in doubtful("audit").out
    assert doubtful("audit --fix", stdin="").code == 0  # nothing to ask
    assert doubtful("audit --fix --kept", stdin="").code == 1  # no answer


def test_audit_names_fix_at_a_terminal_if_there_is_something_to_ask(
    doubtful: Cli, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    coloured("green", 0).save(colours / "green" / "copy.png", compress_level=0)
    assert doubtful("import", colours).code == 0
    assert doubtful("audit").err == ""  # no terminal could ask
    monkeypatch.setattr("zsvec.cli.quality.is_terminal", lambda: True)
    questions = len(label_errors(doubtful)) + 1  # and one group of copies
    assert doubtful("audit").err == f"to decide {questions} findings one by one, run `zsvec audit --fix`\n"
    assert doubtful("audit --json").err == ""
    doubtful("audit --fix", stdin="k\n" * questions)
    assert doubtful("audit").err == ""
    assert "`zsvec audit --fix --kept`" in doubtful("audit --kept").err


def test_audit_without_a_calibration(cli: Cli) -> None:
    assert cli("add red --text red").code == 0
    result = cli("audit")
    assert (result.code, result.out) == (0, "0 reference images, 0 of them judged by the others; nothing is doubtful\n")
    assert "run `zsvec calibrate`" in result.err
    assert cli("audit --json").objects[0]["calibrated"] is False


def test_audit_page(filled: Cli) -> None:
    result = filled("audit --html audit.html")
    assert (result.code, result.err) == (0, "page: audit.html\n")
    assert result.out.splitlines()[-1].startswith("9 reference images, 9 of them judged by the others")
    assert "9 reference images" in Path("audit.html").read_text(encoding="utf-8")
    assert filled("audit --json --html audit.html").objects[0]["images"] == 9
    result = filled("audit --html missing/audit.html")
    assert (result.code, result.out.splitlines()[-1][:18]) == (2, "9 reference images")
    assert "missing/audit.html' cannot be written" in result.err
