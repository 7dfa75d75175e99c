"""`zsvec info`, `doctor`, `gc` and `images drop`, and all commands on a server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zsvec
from tests import endless
from tests.cli.support import IMPORTED, Cli, Result, without_time, words
from tests.store.support import ServerDeployment
from zsvec import __version__
from zsvec.cli import doctor
from zsvec.cli.output import stream_table
from zsvec.curation import search_index
from zsvec.store import writing
from zsvec.store.backends.base import InProcess
from zsvec.streams.flow import StreamStats

pytestmark = pytest.mark.usefixtures("hash_encoders")

NOTHING = "nothing to delete\n"


def test_info(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = filled("info --json").objects
    assert found.pop("qdrant-edge")
    encoder = "zsvec.testing.HashEncoder@1 (64-d, 8 px)"
    assert found == {
        "store": os.environ["ZSVEC_STORE"],
        "namespace": "zsvec",
        "categories": 3,
        "unreadable": [],
        "labels": "one",
        "references": {"clip:text": 3, "clip:image": 9, "dino:image": 9},
        "profile": "base",
        "encoders": {"clip": encoder, "dino": encoder},
        "calibration": "current",
        "threshold_progress": {"images": 9, "needed": 19, "one_scene": 0, "copied": 0},
        "measured": {
            "all together": "no export yet (`zsvec encoders export`)",
            "clip by torch": "not measured yet",
            "dino by torch": "not measured yet",
        },
    }
    out = filled("info").out
    facts = {row[0]: " ".join(row[1:]) for row in words(out)}
    assert facts["store"].startswith(f"{os.environ['ZSVEC_STORE']}, namespace zsvec, Qdrant Edge ")
    assert facts["contents"] == "3 categories, 9 images and 3 texts"
    assert "labels" not in facts
    assert (facts["profile"], facts["calibration"]) == ("base", "current")
    assert facts["threshold"].startswith("9 of 19 images until ")
    assert not set("{}[]'") & set(out)
    assert not {"unreadable", "clip:image:"} & set(facts)
    assert filled("--namespace other init").code == 0
    result = filled("--namespace other info")
    assert (result.code, result.err) == (0, "")
    facts = {row[0]: " ".join(row[1:]) for row in words(result.out)}
    assert (facts["contents"], "namespace other" in facts["store"]) == ("0 categories, 0 images and 0 texts", True)
    assert facts["calibration"].startswith("none: run `zsvec calibrate`")


def test_info_has_a_cascade(filled: Cli) -> None:
    with zsvec.open() as clf:
        rules = {"clip": {"settled": 0.75}, "dino": {"settled": 0.5}}
        clf._store.keep_calibration({**(clf._store.calibration() or {}), "cascade": rules})
    (found,) = filled("info --json").objects
    assert found["cascade"] == {"clip": 0.75, "dino": 0.5}
    assert "clip: settles 75% of the references alone" in filled("info").out


def test_statistics_count_settled_images() -> None:
    caption = str(stream_table(StreamStats(images=9000, settled={"clip": 8000})).caption)
    assert "8,000 by clip alone" in caption
    assert "cascade" not in str(stream_table(StreamStats(images=9000)).caption)
    assert "no cascade: slow" in str(stream_table(StreamStats(no_cascade="slow")).caption)


def test_info_tells_why_there_is_no_cascade(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = filled("info --json").objects
    assert "no_cascade" not in found
    monkeypatch.setenv("ZSVEC_CASCADE", "auto")
    (found,) = filled("info --json").objects
    assert "99 scenes" in found["no_cascade"]
    assert "99 scenes" in filled("info").out


def test_encoders_of_one_model_have_no_cascade(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with zsvec.open() as clf:
        rules = {"conse": {"settled": 0.75}, "efficientnet": {"settled": 0.5}}
        clf._store.keep_calibration({**(clf._store.calibration() or {}), "cascade": rules})
    monkeypatch.setenv("ZSVEC_CASCADE", "auto")
    (found,) = filled("--profile offline info --json").objects
    assert "cascade" not in found
    assert "one image model" in found["no_cascade"]


@pytest.fixture
def ward(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """No hub in reach, and a device that needs no torch. Returns a function that sets the missing weights."""

    def missing(weights: dict[str, str]) -> None:
        monkeypatch.setattr(doctor, "missing_weights", lambda specs: weights)

    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(doctor, "describe_device", lambda device, dtype, **_: f"{device}, {dtype}")
    missing({})
    return missing


def by_name(result: Result) -> dict[str, dict[str, Any]]:
    """The findings by their names."""
    return {finding["what"]: finding for finding in result.objects}


def test_doctor_finds_nothing(stocked: Cli, ward: Callable[..., None]) -> None:
    result = stocked("doctor --json")
    assert (result.code, result.err) == (0, "")
    assert [list(found) for found in result.objects] == [["what", "ok", "detail", "advice"]] * 7
    found = by_name(result)
    assert list(found) == ["packages", "settings", "device", "hub", "weights", "generation", "store"]
    assert all(o["ok"] and not o["advice"] for o in found.values())
    assert f"zsvec {__version__}" in found["packages"]["detail"]
    assert found["device"]["detail"] == "auto, auto"
    assert found["hub"]["detail"] == "http://127.0.0.1:9 cannot be reached (ConnectError); not needed"
    assert found["store"]["detail"].endswith("3 categories, 9 images and 3 texts, calibration: current")
    result = stocked("doctor")
    assert (result.code, result.err) == (0, "")
    assert [line.split()[:2] for line in result.out.splitlines()] == [["ok", name] for name in found]


def test_doctor_finds_a_stale_calibration(
    filled: Cli, ward: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSVEC_CALIBRATION", "off")
    assert filled("remove red").code == 0
    result = filled("doctor --json")
    assert result.code == 0
    found = by_name(result)["store"]
    assert found["ok"]
    assert found["detail"].endswith("2 categories, 6 images and 2 texts, calibration: stale")
    assert "run `zsvec calibrate`" in found["advice"]


def test_doctor_finds_missing_weights_and_other_encoders(stocked: Cli, ward: Callable[..., None]) -> None:
    ward({"clip": "some/model"})
    result = stocked("doctor --json")
    assert result.code == 1
    found = by_name(result)
    assert [name for name, o in found.items() if not o["ok"]] == ["hub", "weights"]
    assert "clip: some/model" in found["weights"]["detail"]
    assert "--profile offline" in found["weights"]["advice"]
    result = stocked("doctor")
    assert result.code == 1
    assert "--profile offline" in result.out
    ward({})
    result = stocked("--profile offline doctor --json")
    store = by_name(result)["store"]
    assert (result.code, store["ok"]) == (1, False)
    assert "encoders clip, dino, and conse, efficientnet are in use" in store["detail"]
    assert "(profile 'base')" in store["detail"]


def test_the_profile_of_a_store_is_named(cli: Cli, ward: Callable[..., None], colours: Path) -> None:
    assert cli("--profile offline import", colours).code == 0
    named = "choose the profile it was made with (profile 'offline')"
    result = cli("--profile base classify colours")
    assert (result.code, result.out) == (1, "")
    assert named in result.err
    assert named in by_name(cli("--profile base doctor --json"))["store"]["detail"]
    assert by_name(cli("doctor --json"))["settings"]["detail"].startswith("profile offline, ")
    assert by_name(cli("doctor --json"))["store"]["ok"]


def test_doctor_of_an_invalid_hub_and_invalid_settings(
    cli: Cli, ward: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("nonsense", "http://[bad", "ftp://hub"):
        monkeypatch.setenv("HF_ENDPOINT", url)
        assert f"{url} cannot be reached" in by_name(cli("doctor --json"))["hub"]["detail"]
    result = cli("--profile nonsense doctor --json")
    assert result.code == 1
    assert [(o["what"], o["ok"]) for o in result.objects] == [("packages", True), ("settings", False)]
    assert "'nonsense'" in result.objects[1]["detail"]


@pytest.mark.parametrize("drip", endless.DRIPS)
def test_doctor_does_not_wait_for_a_dripping_hub(drip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that drips its head passes each timeout between two bytes. The body is not requested."""
    monkeypatch.setattr(doctor, "_HUB_TIMEOUT_S", 4)
    with endless.serving(endless.DRIPS[drip]) as server:
        begun = time.monotonic()
        problem = doctor.hub_error(server.url)
        assert time.monotonic() - begun < 60
    assert (problem is None) == (drip in ("body", "chunks"))


def test_doctor_of_a_missing_store(cli: Cli, ward: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("doctor --json nowhere", "--store nowhere doctor --json"):
        result = cli(command)
        found = by_name(result)["store"]
        assert (result.code, found["ok"]) == (1, False)
        missing = f"the missing folder {Path('nowhere').absolute()} (namespace zsvec)"
        assert found["detail"] == f"there is no store in {missing} yet"
        assert found["advice"] == "`zsvec import` and `zsvec add` make it"
    monkeypatch.delenv("ZSVEC_STORE")
    result = cli("doctor --json")  # a new installation is as it should be
    found = by_name(result)["store"]
    assert (result.code, found["ok"]) == (0, True)
    assert found["detail"].startswith("there is no store in the missing folder ")
    assert not Path("nowhere").exists()


@pytest.mark.usefixtures("ward")
def test_a_folder_cannot_be_optimised(filled: Cli) -> None:
    result = filled("optimize")
    assert (result.code, result.out) == (2, "")
    assert "zsvec copy" in result.said
    assert len(result.err.splitlines()) == 1  # the error alone: nothing has begun
    for wrong in ("optimize --measure --exact", "optimize --figure search.png", "optimize --exact --ef 64"):
        assert filled(wrong).code == 2
    assert filled("optimize --oversampling 0").code == 2
    assert not Path("search.png").exists()


def test_without_an_index_nothing_is_measured(filled: Cli) -> None:
    result = filled("optimize --measure --figure search.png")
    assert (result.code, result.out) == (1, "")
    assert "zsvec optimize" in result.said
    assert len(result.err.splitlines()) == 1
    assert not Path("search.png").exists()


@pytest.mark.parametrize(
    ("options", "graph_from", "notes"),
    [
        ("", 9, 0),
        ("--ef 512", 9, 0),
        ("--ef 511", 9, 1),  # a query takes 2 * 256 candidates
        ("--ef 512", 10, 1),
        ("--ef 511", 10, 2),
        ("--oversampling 1.001 --ef 257", 9, 0),
        ("--oversampling 1.001 --ef 256", 9, 1),
    ],
)
def test_a_graph_that_does_not_pay_is_noted(
    filled: Cli, options: str, graph_from: int, notes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InProcess, "optimize", lambda *_: iter([0.0, 1.0]))
    monkeypatch.setattr(search_index, "GRAPH_FROM", graph_from)
    monkeypatch.setenv("ZSVEC_INDEX", "qdrant")
    result = filled(f"optimize {options}")
    assert (result.code, result.out) == (0, "")
    begun, _, *more = result.err.splitlines()
    assert begun == "building the index …"
    assert len(more) == notes


def test_a_store_on_a_server_is_optimised(
    cli: Cli, server: ServerDeployment, colours: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSVEC_STORE", server.url)
    monkeypatch.setenv("ZSVEC_NAMESPACE", server.namespace)
    monkeypatch.setenv("ZSVEC_INDEX_BUDGET", "5")
    assert cli("optimize").code == 1  # no store yet
    assert cli("import", colours).code == 0
    facts = {row[0]: " ".join(row[1:]) for row in words(cli("info").out)}
    assert facts["search"] == "exact, in Qdrant; log_linear runs"
    assert cli("optimize --json").objects == [{"exact": False, "oversampling": 2.0, "ef": None}]
    assert "as before" in cli("optimize").said
    facts = {row[0]: " ".join(row[1:]) for row in words(cli("info").out)}
    assert facts["search"].startswith("int8 scan, oversampling 2, in Qdrant; recall unknown")
    (found,) = cli("optimize --measure --json --figure search.png").objects
    assert (found["images"], found["k"]) == (9, 256)
    assert {(row["recall"], row["same_label"]) for row in found["rows"]} == {(1.0, 1.0)}
    assert Path("search.png").read_bytes().startswith(b"\x89PNG")
    rows = words(cli("optimize --measure").out)
    assert [row[0] for row in rows if row and row[0] in ("exact", "int8")] == ["exact", "int8", "int8", "int8"]
    facts = {row[0]: " ".join(row[1:]) for row in words(cli("info").out)}
    assert "; recall@256 100.00%, same label 100.00%, measured 20" in facts["search"]
    assert facts["search"].endswith("; log_linear runs")
    assert cli("calibrate --json").objects[0]["images"] == 9
    assert cli("optimize --exact").code == 0
    assert cli("optimize --exact").said.endswith("as before: exact")
    assert "approximate" not in cli("info --json").objects[0]["search"]


def test_a_store_on_a_server(
    cli: Cli, server: ServerDeployment, colours: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZSVEC_STORE", server.url)
    monkeypatch.setenv("ZSVEC_NAMESPACE", server.namespace)
    assert cli("list --json").code == 1  # nothing has been written yet
    assert [without_time(found) for found in cli("import --json", colours).objects] == IMPORTED
    assert [without_time(found) for found in cli("list --json").objects] == IMPORTED
    assert cli("add cat --text 'a feline'").code == 0
    labels = {o["source"]: o["label"] for o in cli("classify --json", new).objects}
    assert labels == {"new/blue.png": "blue", "new/red.png": "red"}
    assert cli("remove cat").code == 0
    (found,) = cli("info --json").objects
    assert (found["store"], found["namespace"]) == (server.url, server.namespace)
    assert (found["categories"], found["calibration"]) == (3, "current")
    assert found["qdrant"].count(".") == 2
    out = cli("info").out
    assert f"{server.url}, namespace {server.namespace}, Qdrant {found['qdrant']}" in out
    assert f"{server.namespace}__catalog: replicas 1, shards 1" in out
    *nodes, store = cli(f"doctor {server.url} --json").objects[6:]
    # removed references can be restored by an undo, and are no garbage
    assert [found["what"] for found in nodes] == [f"node {server.url}", "rights", "limits", "copies", "catalog"]
    assert all(found["ok"] for found in nodes)
    assert (store["what"], store["ok"]) == ("store", True)
    assert "3 categories, 9 images and 3 texts" in store["detail"]
    assert cli("gc") == Result(0, "", NOTHING)


def test_gc(filled: Cli, ward: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise SystemExit(9)

    assert filled("gc") == Result(0, "", NOTHING)
    image = "--image colours/red/0.png"
    for given, said in {"--text 'a pet' --text 'a cat'": "2 texts", image: "1 image and 1 text"}.items():
        with monkeypatch.context() as patched:
            patched.setattr(writing, "commit", killed)
            assert filled(f"add cat {given}").code == 9
        assert len(filled("list --json").objects) == 3
        assert by_name(filled("doctor --json"))["garbage"]["detail"] == f"leftovers of {said} that no category uses"
        assert filled("gc") == Result(0, "", f"leftovers of {said} deleted; no category has changed\n")
        assert filled("gc") == Result(0, "", NOTHING)


def test_gc_names_final_changes(filled: Cli) -> None:
    filled("remove red")
    assert filled("gc").err == NOTHING
    *final, deleted = filled("gc --grace 0").err.splitlines()
    names = [line.split(" (")[0] for line in final]
    assert names == ["final: remove of 'red'", "final: import of 'blue', 'green', 'red'"]
    assert deleted.startswith("leftovers of 3 images and 1 text deleted")
    assert filled("history").err == "there are no changes to undo\n"
    assert filled("undo").code == 2


def test_images_drop(filled: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("zsvec.cli.app.is_terminal", lambda: True)
        assert filled("images drop", stdin="n\n").code == 1
        assert filled("show red --sheet a.html").err == "the contact sheet is a.html\n"
        assert filled("images drop", stdin="y\n").code == 0
    done = "all small copies of images are deleted, and none are kept any more\n"
    assert filled("images drop --yes") == Result(0, "", done)
    assert filled("images drop").code == 2
    assert "of 3 images the store has no copy" in filled("show red --sheet a.html").err
    assert [found["references"]["clip:image"] for found in filled("list --json").objects] == [3, 3, 3]
