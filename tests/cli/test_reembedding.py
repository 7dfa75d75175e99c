"""`zsvec reembed`, and what other commands do with a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.support import Cli, Loading
from tests.support import encode, photo


@pytest.fixture(autouse=True)
def loading(hash_encoders: Loading) -> Loading:
    return hash_encoders


def test_another_profile_is_tried_compared_and_taken(filled: Cli, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    result = filled("reembed --profile offline")
    assert (result.code, result.out) == (0, "")
    assert "to embed: 9 images from original files, 0 from small copies; 0 with neither; 0 done before" in result.said
    assert "zsvec reembed --profile offline --switch" in result.said
    [compared] = filled("evaluate --against zsvec.1 --json").objects
    assert (compared["namespace"], compared["against"], compared["images"]) == ("zsvec", "zsvec.1", 9)
    assert "zsvec.1" in filled("evaluate --against zsvec.1").out
    assert filled("info --json").objects[0]["namespace"] == "zsvec"
    result = filled("reembed --profile offline --switch --json")
    assert (result.code, result.out) == (0, "")
    assert "0 images from original files" in result.said
    info = filled("info --json").objects[0]
    assert (info["namespace"], info["profile"]) == ("zsvec.1", "offline")
    assert [found["label"] for found in filled("classify --json", new).objects] == ["blue", "red"]
    assert [found["what"] for found in filled("history --json").objects] == ["reembed"]
    result = filled("undo")
    assert (result.code, filled("info --json").objects[0]["namespace"]) == (0, "zsvec")
    assert "undone: reembed of the store" in result.said


def test_the_state_before_a_switch_is_deleted(filled: Cli) -> None:
    assert filled("reembed --profile offline --switch").code == 0
    said = filled("gc --grace 0").said
    assert "final: reembed of the store" in said
    assert "the state before it is deleted" in said
    assert "nothing else to delete" in said
    assert filled("undo").code == 2
    assert filled("info --json").objects[0]["namespace"] == "zsvec.1"


def test_left_out_images_are_named(cli: Cli, colours: Path) -> None:
    assert cli("import --keep-images none", colours).code == 0
    (colours / "red" / "0.png").unlink()
    result = cli("reembed --profile offline --json")
    assert (result.code, len(result.objects)) == (0, 3)
    assert "8 images from original files, 0 from small copies; 1 with neither" in result.said
    assert "red: colours/red/0.png" in result.said
    Path("new.png").write_bytes(encode(photo(1)))
    assert cli("classify --keep all new.png").code == 0
    Path("new.png").unlink()
    result = cli("reembed --profile offline --switch")
    assert result.code == 0
    assert "1 image of the inbox left out" in result.said
    assert "new.png" in result.said


def test_copies_are_deleted(filled: Cli) -> None:
    filled("reembed --profile offline")
    assert filled("reembed --drop").code == 2
    assert "deleted: zsvec.1" in filled("reembed --drop --yes").said
    assert filled("evaluate --against zsvec.1").code == 2
    assert "deleted: nothing" in filled("reembed --drop --yes").said


@pytest.mark.parametrize(
    "command",
    [
        "reembed",
        "reembed --profile base",
        "reembed --profile nowhere",
        "reembed --drop --switch",
        "evaluate",
        "evaluate colours --against zsvec.1",
        "evaluate --against zsvec",
        "evaluate --against other",
    ],
)
def test_wrong_usage(filled: Cli, command: str) -> None:
    assert filled(command).code == 2
