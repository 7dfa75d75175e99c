"""`zsvec copy`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.support import IMPORTED, Cli, without_time
from tests.store.support import EdgeDeployment
from zsvec.store.backends.base import Where

pytestmark = pytest.mark.usefixtures("hash_encoders")


def test_a_store_is_copied_and_works(filled: Cli, new: Path, tmp_path: Path) -> None:
    store, target = os.environ["ZSVEC_STORE"], tmp_path / "copy"
    result = filled("copy --json", store, target)
    assert (result.code, [without_time(found) for found in result.objects]) == (0, IMPORTED)
    assert "copied 3 categories, 9 images and 3 texts, 0.0 MB" in result.said
    ours, theirs = (filled(f"--store {place} classify --json", new).objects for place in (store, target))
    assert [found["label"] for found in theirs] == [found["label"] for found in ours] == ["blue", "red"]
    for key in ("probability", "novelty", "distance"):
        assert [found[key] for found in theirs] == pytest.approx([found[key] for found in ours], abs=1e-6)
    result = filled("copy", store, target)
    assert (result.code, result.out) == (0, "")
    assert "copied 0 categories, 0 images and 0 texts, 0.0 MB (3 there before)" in result.said


def test_a_repeated_import_respects_removals_in_the_copy(filled: Cli, colours: Path, tmp_path: Path) -> None:
    filled("remove red")
    assert filled("copy", os.environ["ZSVEC_STORE"], tmp_path / "copy").code == 0
    result = filled(f"--store {tmp_path}/copy import", colours)
    assert "left out, because they or their categories were moved, renamed or removed" in result.said
    assert len(filled(f"--store {tmp_path}/copy list --json").objects) == 2


def test_a_category_that_differs_is_named(filled: Cli, tmp_path: Path) -> None:
    store, target = os.environ["ZSVEC_STORE"], tmp_path / "copy"
    filled("copy", store, target)
    filled("add red --text 'the colour of blood'")
    result = filled("copy", store, target)
    assert (result.code, result.out) == (1, "")
    assert "because they differ in TARGET; --replace replaces them: red" in result.said
    assert filled("copy --replace", store, target).code == 0
    assert filled("copy", store, target).code == 0


def test_categories_that_only_the_target_has_are_named_by_replace(filled: Cli, tmp_path: Path) -> None:
    store, target = os.environ["ZSVEC_STORE"], tmp_path / "copy"
    filled("copy", store, target)
    assert "only in TARGET" not in filled("copy --replace", store, target).said
    filled("remove red")
    filled(f"--store {target} add violet --text v")
    result = filled("copy --replace", store, target)
    assert (result.code, result.out) == (0, "")
    assert "only in TARGET, and left there: red, violet " in result.said
    assert len(filled(f"--store {target} list --json").objects) == 4
    for name in range(20):
        filled(f"--store {target} add n{name:02} --text t")
    assert " n19 and 2 more" in filled("copy --replace", store, target).said


def test_a_damaged_category_is_named_and_the_others_are_copied(filled: Cli, tmp_path: Path) -> None:
    store, target = os.environ["ZSVEC_STORE"], tmp_path / "copy"
    deployment = EdgeDeployment(Path(store))
    backend = deployment.backend()
    [page] = backend.scroll("zsvec__dino", Where(match={"category": "green"}))
    backend.drop("zsvec__dino", [page.ids[0]])
    deployment.close()
    result = filled("copy", store, target)
    assert (result.code, result.out) == (1, "")
    assert "left out: 'green': 6 of its 7 references can be used" in result.said
    assert [found["category"] for found in filled(f"--store {target} list --json").objects] == ["blue", "red"]


def test_wrong_usage(filled: Cli, tmp_path: Path) -> None:
    store = os.environ["ZSVEC_STORE"]
    assert filled("copy", store).code == 2
    assert filled("copy", store, store).code == 2
    assert filled("copy", store, ":memory:").code == 2
    assert filled("copy", tmp_path / "nowhere", tmp_path / "copy").code == 1
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "copy").exists()


def test_the_command_loads_no_encoders_and_no_client_of_a_server(filled: Cli, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom zsvec.cli import main\ntry:\n    main()\nfinally:\n"
        "    print(*{'torch', 'scipy', 'sklearn', 'qdrant_client'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "copy", os.environ["ZSVEC_STORE"], str(tmp_path / "copy")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "\n"
