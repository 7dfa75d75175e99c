"""New users look after a store: mending, undo and forgetting, the inbox, backups, and references that cost money."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import zsvec
from tests.cli.support import Cli
from tests.store.support import ServerDeployment
from tests.stories.conftest import SUBJECTS
from zsvec.inputs.images import content_hash


def images(cli: Cli) -> dict[str, int]:
    """The number of images of each category."""
    return {one["category"]: one["references"].get("efficientnet:image", 0) for one in cli("list --json").objects}


def test_mend_undo_and_forget(real: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    wrong = Path("photos/dalmatian/wrong.jpg")
    sorted(Path("photos/sunflower").iterdir())[0].rename(wrong)
    assert real("--profile offline import photos").code == 0
    findings = real("audit --json").objects
    assert not [one for one in findings if one["finding"] == "duplicates"]  # no picture is there twice
    (finding,) = [one for one in findings if one["finding"] == "label"]
    assert (finding["category"], finding["source"], finding["instead"]) == ("dalmatian", str(wrong), "sunflower")
    assert real(f"move dalmatian sunflower {finding['hash'][:12]}").code == 0
    mended = images(real)
    assert mended == dict.fromkeys(SUBJECTS, 6)
    assert "now in sunflower" in real("import photos").err  # mending lasts
    assert images(real) == mended

    assert real("rename sunflower helianthus").code == 0
    assert real("remove bonsai --yes").code == 0
    for undone in ("remove", "rename", "move"):
        assert real("undo").err.startswith(f"undone: {undone} of ")
    assert images(real) == mended | {"dalmatian": 7, "sunflower": 5}
    redo = real("history --json").objects[0]["id"]  # the last undo
    assert real(f"undo {redo}").code == 0
    assert images(real) == mended

    assert real("forget --yes", wrong).code == 0
    assert images(real) == mended | {"sunflower": 5}
    assert real("history").out.count("final") == 1
    assert real("undo").code != 0  # a forget is final
    assert real("classify --json", wrong).objects[0]["label"] == "sunflower"
    assert content_hash(wrong) not in str(real("show sunflower --json").objects)


def test_inbox(shop: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    assert shop("classify --keep uncertain starfish new").code == 0
    waiting = shop("inbox --json").objects
    assert len(waiting) >= 6
    group, *_ = shop("inbox groups --json").objects
    sources = [one["source"] for one in group["images"]]
    assert sum("starfish" in source for source in sources) >= 5
    assert shop("inbox label --group 1 starfish").code == 0
    assert images(shop)["starfish"] == len(sources)
    assert len(shop("inbox --json").objects) == len(waiting) - len(sources)
    answers = shop("classify --json starfish").objects
    assert sum(answer["label"] == "starfish" for answer in answers) >= 6
    assert shop("undo").code == 0
    assert "starfish" not in images(shop)
    assert len(shop("inbox --json").objects) == len(waiting)
    photo = sorted(Path("strange").iterdir())[0]
    assert shop("correct", photo, "clutter").code == 0
    assert images(shop)["clutter"] == 1


def test_backup_and_a_copy_on_a_server(shop: Cli, request: pytest.FixtureRequest) -> None:
    store, before = os.environ["ZSVEC_STORE"], images(shop)
    answers = [(one["label"], one["unknown"]) for one in shop("classify --json new").objects]
    assert shop("copy", store, "backup").code == 0
    assert shop("remove sunflower --yes").code == 0
    assert shop("copy backup", store).code == 0
    assert images(shop) == before
    shutil.rmtree(store)
    assert shop("list").code == 1
    targets = [("backup", "zsvec")]
    if shutil.which("qdrant"):
        server: ServerDeployment = request.getfixturevalue("server")
        assert shop("copy backup", server.url, "--target-namespace", server.namespace).code == 0
        targets.append((server.url, server.namespace))
    for place, namespace in targets:
        found = shop(f"--store {place} --namespace {namespace} classify --json new").objects
        assert [(one["label"], one["unknown"]) for one in found] == answers


def test_generation_without_a_key(real: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (plan,) = real("--profile offline generate 'red panda' raccoon --dry-run --json").objects
    assert (plan["images"], plan["spent"]) == (8, 0)
    assert 0 < plan["cost"] < 1
    result = real("--profile offline generate 'red panda'")
    assert result.code == 1
    assert "OPENAI_API_KEY" in result.said
    assert "Traceback" not in result.err
    assert real("list --json").out == ""
    assert not list(Path("zsvec-generated").rglob("*.png"))
    with zsvec.open("other", profile="offline") as clf:
        assert clf.generation.plan(["red panda"], budget=zsvec.Budget(dollars=0)).cost == 0
