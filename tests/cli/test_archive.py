"""`zsvec export`, and `zsvec import` of an archive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cli.support import IMPORTED, Cli, Loading, without_time
from tests.store.support import EdgeDeployment
from tests.store.test_archive import forge
from tests.support import write_photos
from zsvec.store.backends.base import Where

pytestmark = pytest.mark.usefixtures("hash_encoders")


@pytest.fixture
def exported(filled: Cli, tmp_path: Path) -> Path:
    file = tmp_path / "colours.zsvec"
    assert filled("export", file).code == 0
    return file


def test_a_store_is_exported_and_imported(filled: Cli, new: Path, tmp_path: Path, hash_encoders: Loading) -> None:
    file, target = tmp_path / "colours.zsvec", tmp_path / "target"
    hash_encoders.made.clear()
    result = filled("export --json", file)
    assert (result.code, [without_time(found) for found in result.objects]) == (0, IMPORTED)
    assert "exported 3 categories, 9 images and 3 texts" in result.said
    result = filled(f"--store {target} import --json", file)
    assert (result.code, [without_time(found) for found in result.objects]) == (0, IMPORTED)
    assert "imported 3 categories, 9 images and 3 texts, 0.0 MB" in result.said
    assert hash_encoders.made == []
    ours, theirs = (
        filled(f"--store {place} classify --json", new).objects for place in (os.environ["ZSVEC_STORE"], target)
    )
    assert [found["label"] for found in theirs] == [found["label"] for found in ours] == ["blue", "red"]
    for key in ("probability", "novelty", "distance"):
        assert [found[key] for found in theirs] == pytest.approx([found[key] for found in ours], abs=1e-6)
    result = filled(f"--store {target} import", file)
    assert (result.code, result.out) == (0, "")
    assert "(3 there before)" in result.said


def test_an_archive_of_any_name_is_imported(filled: Cli, exported: Path, tmp_path: Path) -> None:
    other = exported.rename(tmp_path / "backup.json")
    assert filled(f"--store {tmp_path}/target import", other).code == 0


def test_some_categories(filled: Cli, exported: Path, tmp_path: Path) -> None:
    some = tmp_path / "some.zsvec"
    assert [one["category"] for one in filled("export --json --categories red --categories blue", some).objects] == [
        "blue",
        "red",
    ]
    result = filled(f"--store {tmp_path}/target import --json --categories green", exported)
    assert [one["category"] for one in result.objects] == ["green"]
    assert "zsvec calibrate" in result.said
    result = filled("export --categories redd", some)
    assert (result.code, result.out) == (2, "")
    assert "'red'" in result.said
    result = filled("import --categories grene", exported)
    assert (result.code, result.out) == (2, "")
    assert "'green'" in result.said
    result = filled(f"--store {exported} list")
    assert (result.code, result.out) == (2, "")
    assert "zsvec import" in result.said


def test_an_export_says_the_size_of_the_file(filled: Cli, tmp_path: Path) -> None:
    definitions = tmp_path / "definitions.json"
    definitions.write_text(json.dumps({"red": [f"{number:06} {os.urandom(200).hex()}" for number in range(2000)]}))
    assert filled("import colours --definitions", definitions).code == 0
    result = filled("export", tmp_path / "a.zsvec")
    assert f", {(tmp_path / 'a.zsvec').stat().st_size / 1e6:.1f} MB" in result.said


def damage(file: Path, entry: str) -> None:
    """Flips a bit of an entry."""
    with zipfile.ZipFile(file) as zipped:
        found = zipped.getinfo(entry)
    content = bytearray(file.read_bytes())
    content[found.header_offset + len(found.FileHeader()) + found.compress_size // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_calibration_is_left_out(filled: Cli, exported: Path, tmp_path: Path) -> None:
    damage(exported, "calibration.json")
    result = filled(f"--store {tmp_path}/target import", exported)
    assert (result.code, result.out) == (0, "")
    assert "imported 3 categories" in result.said
    assert "run `zsvec calibrate`" in result.said
    assert filled(f"--store {tmp_path}/target info --json").objects[0]["calibration"] == "none"


def test_without_a_damaged_category_the_store_must_be_calibrated(filled: Cli, exported: Path, tmp_path: Path) -> None:
    damage(exported, "categories/000002-green/dino-000001.safetensors")
    result = filled(f"--store {tmp_path}/target import", exported)
    assert (result.code, result.out) == (1, "")
    assert "left out: 'green': categories/000002-green/dino-000001" in result.said
    assert "run `zsvec calibrate`" in result.said


def test_a_damaged_inbox_loses_no_category(filled: Cli, tmp_path: Path) -> None:
    write_photos(Path("new"), [1, 2])
    assert filled("classify --keep all new").code == 0
    file = tmp_path / "a.zsvec"
    assert filled("export", file).code == 0
    damage(file, "inbox/waiting-000001.safetensors")
    result = filled(f"--store {tmp_path}/target import", file)
    assert (result.code, result.out) == (1, "")
    assert "3 categories imported" in result.said
    assert len(filled(f"--store {tmp_path}/target list --json").objects) == 3


def test_a_given_profile_must_have_the_encoders_of_the_archive(filled: Cli, exported: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    for profile, code in {"offline": 1, "nonsense": 2}.items():
        assert filled(f"--store {target} --profile {profile} import", exported).code == code
        assert not target.exists()
    assert filled(f"--store {target} --profile base import", exported).code == 0
    assert filled(f"--store {target} --profile offline import", exported).code == 0  # as the store, which is not new


def test_a_category_that_differs_is_named(filled: Cli, exported: Path) -> None:
    filled("add red --text 'the colour of blood'")
    result = filled("import", exported)
    assert (result.code, result.out) == (1, "")
    assert "because they differ in the store; --replace replaces them: red" in result.said
    assert filled("import --replace", exported).code == 0
    assert filled("import", exported).code == 0


def test_a_damaged_category_is_named_and_the_others_are_exported(filled: Cli, tmp_path: Path) -> None:
    deployment = EdgeDeployment(Path(os.environ["ZSVEC_STORE"]))
    backend = deployment.backend()
    [page] = backend.scroll("zsvec__dino", Where(match={"category": "green"}))
    backend.drop("zsvec__dino", [page.ids[0]])
    deployment.close()
    result = filled("export", tmp_path / "a.zsvec")
    assert (result.code, result.out) == (1, "")
    assert "left out: 'green': 6 of its 7 references can be used" in result.said
    assert "the archive has no calibration" in result.said
    assert filled(f"--store {tmp_path}/target import", tmp_path / "a.zsvec").code == 0


def test_a_long_forged_name_is_shortened(filled: Cli, exported: Path, tmp_path: Path) -> None:
    forge(exported, {"categories.jsonl": lambda content: content.replace(b'"red"', b'"' + b"x" * 10**6 + b'"')})
    result = filled(f"--store {tmp_path}/target import", exported)
    assert result.code == 1
    assert "left out: 'xxx" in result.said
    assert len(result.said) < 1000


def test_wrong_usage(filled: Cli, exported: Path, colours: Path, tmp_path: Path) -> None:
    assert filled("export").code == 2
    assert filled("export", colours / "red" / "0.png").code == 2
    assert filled(f"--store {tmp_path}/nowhere export", tmp_path / "no.zsvec").code == 1
    assert filled("import --categories red", colours).code == 2
    for option in ("--tree", "--boxes", "--again", "--labels many", "--yes", "--definitions x.json"):
        assert filled(f"import {option}", exported).code == 2
    exported.write_bytes(exported.read_bytes()[:-1])
    assert filled("import", exported).code == 2
    result = filled("import", exported.rename(tmp_path / "a.zip"))
    assert (result.code, result.out) == (2, "")
    assert "damaged archive" in result.said
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "no.zsvec").exists()


def test_the_commands_load_no_encoders_and_no_client_of_a_server(filled: Cli, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom zsvec.cli import main\ntry:\n    main()\nfinally:\n"
        "    print(*{'torch', 'scipy', 'sklearn', 'qdrant_client'} & set(sys.modules))"
    )
    for arguments in (["export", tmp_path / "a"], ["--store", tmp_path / "target", "import", tmp_path / "a"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True
        )
        assert done.stdout == "\n"
