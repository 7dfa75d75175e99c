"""`zsvec attach`, `zsvec attached` and `zsvec detach`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models

from tests.cli.support import Cli
from tests.store.support import LocalDeployment
from tests.support import coloured
from zsvec.store import Store
from zsvec.testing import HashEncoder

pytestmark = [
    pytest.mark.usefixtures("hash_encoders"),
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
]

ATTACH = "attach shop --label product.colour --expert dino:image"


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalDeployment]:
    """A server with the collection of a shop, in place of the folder of the store."""
    opened = LocalDeployment()

    def open_store(_: str, *, namespace: str, **__: Any) -> Store:
        return Store(opened.backend(), namespace)

    monkeypatch.setattr("zsvec.settings.settings.open_store", open_store)
    space = models.VectorParams(size=64, distance=models.Distance.COSINE)
    opened.client.create_collection("shop", vectors_config=space)
    encoder = HashEncoder("dino", modalities=("image",))
    for i in range(8):
        colour = "red" if i % 2 else "purple"
        picture = coloured(colour, i)
        picture.save(tmp_path / f"{i}.png")
        (vector,) = encoder.embed([picture], "image")
        payload = {"product": {"colour": colour}, "file": str(tmp_path / f"{i}.png"), "size": i, "sold": i > 3}
        opened.client.upsert("shop", [models.PointStruct(id=i, vector=vector.tolist(), payload=payload)], wait=True)
    yield opened
    opened.close()


def test_attach_list_and_detach(deployment: LocalDeployment, cli: Cli, tmp_path: Path) -> None:
    cli("add blue --image", tmp_path / "0.png")
    (attached,) = cli(f"{ATTACH} --source file --json").objects
    assert {name: attached[name] for name in ("collection", "points", "categories", "compared", "problem")} == {
        "collection": "shop",
        "points": 8,
        "categories": 2,
        "compared": 8,
        "problem": None,
    }
    listed = {found["category"]: found for found in cli("list --json").objects}
    assert {name: found.get("attached") for name, found in listed.items()} == {
        "blue": None,
        "purple": {"dino:image": 4},
        "red": {"dino:image": 4},
    }
    assert listed["red"]["updated"] is None
    assert "4 (4 attached)" in cli("list").out
    assert cli("show red --json").objects[0]["references"] == {"dino:image": 4}
    (prediction,) = cli("classify --json", tmp_path / "1.png").objects
    assert prediction["nearest"] == "red"
    assert prediction["experts"]["dino:image"]["neighbors"][0]["hash"] == "shop#1"
    assert cli("info --json").objects[0]["attached"][0]["points"] == 8
    assert cli("detach shop").code == 0
    assert [found["category"] for found in cli("list --json").objects] == ["blue"]
    assert cli("attached --json").objects == []


def test_a_gone_collection_is_named(deployment: LocalDeployment, cli: Cli, tmp_path: Path) -> None:
    cli("add blue --image", tmp_path / "0.png")
    assert cli(ATTACH).code == 0
    deployment.client.delete_collection("shop")
    (found,) = cli("attached --json").objects
    assert (found["points"], found["problem"] is None) == (0, False)
    result = cli("classify", tmp_path / "1.png")
    assert result.code == 0
    assert "shop could not be read" in result.said
    assert "shop" in cli("info").out
    assert [one["ok"] for one in cli("doctor --json").objects if one["what"] == "attached"] == [False]


@pytest.mark.parametrize(
    ("where", "points"), [("size=3", 1), ("sold=true", 4), ("product.colour=red", 4), ('product.colour="red"', 4)]
)
def test_conditions(deployment: LocalDeployment, cli: Cli, where: str, points: int) -> None:
    (found,) = cli(f"{ATTACH} --json --where", where).objects
    assert found["points"] == points


def test_own_images_of_another_encoder_are_noted(deployment: LocalDeployment, cli: Cli, tmp_path: Path) -> None:
    cli("add blue --image", tmp_path / "0.png")
    own = [expert for expert in cli("show blue --json").objects[0]["references"] if expert.endswith(":image")]
    assert ("less accurate" in cli(ATTACH).said) == (len(own) > 1)
    assert cli("remove red --yes").code == 2


def test_a_copy(deployment: LocalDeployment, cli: Cli) -> None:
    result = cli(f"{ATTACH} --copy --json")
    assert {found["category"]: found["references"] for found in result.objects} == {
        "purple": {"dino:image": 4},
        "red": {"dino:image": 4},
    }
    assert cli("attached --json").objects == []
    assert [one["source"] for one in cli("show red --json").objects[0]["stored"]] == [f"shop#{i}" for i in (1, 3, 5, 7)]


def test_a_copy_tells_how_many_points_are_new(deployment: LocalDeployment, cli: Cli) -> None:
    assert "8 points" in cli(f"{ATTACH} --copy").said
    payload = {"product": {"colour": "red"}}
    deployment.client.upsert("shop", [models.PointStruct(id=90, vector=[1.0] * 64, payload=payload)], wait=True)
    said = cli(f"{ATTACH} --copy").said
    assert "1 point " in said
    assert "twice" not in said
    assert "0 points" in cli(f"{ATTACH} --copy").said
    cli(ATTACH)
    assert "count twice: `zsvec detach shop`" in cli(f"{ATTACH} --copy").said
    assert "5 points of attached" in cli("show red").said
    cli("detach shop")
    assert "of attached" not in cli("show red").said


def test_names_that_are_nearly_right(deployment: LocalDeployment, cli: Cli) -> None:
    cli(ATTACH)
    for command, name in {
        ATTACH.replace("dino:image", "dino:images"): "dino:image",
        "detach shops": "shop",
        "detach shop --expert dino:imag": "dino:image",
    }.items():
        result = cli(command)
        assert result.code == 2
        assert f"did you mean {name!r}?" in result.said
    assert "did you mean" not in cli("detach qqqqqq").said
    assert "did you mean" not in cli("detach shop --expert x").said


@pytest.mark.parametrize(
    "wrong", ["--where size", "--where =3", "--refresh 0", "--vector clip", "--where size=1.5", "--where size=99"]
)
def test_wrong_usage(deployment: LocalDeployment, cli: Cli, wrong: str) -> None:
    assert cli(f"{ATTACH} {wrong}").code == 2
    assert cli("attached --json").objects == []


def test_a_folder_has_no_other_collections(filled: Cli) -> None:
    assert filled(ATTACH).code == 2
    assert filled("attached").code == 0
    assert filled("detach shop").code == 2


def test_the_audit_shows_whole_names_of_points_and_does_not_fix_them(
    deployment: LocalDeployment, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployment.client.set_payload("shop", {"product": {"colour": "purple"}}, points=[1], wait=True)
    deployment.client.update_vectors("shop", [models.PointVectors(id=7, vector=_vector(deployment, 5))], wait=True)
    cli(ATTACH)
    assert "shop#7" in cli("audit").out
    monkeypatch.setattr("zsvec.cli.quality.is_terminal", lambda: True)
    result = cli("audit --fix")
    assert (result.code, result.err.splitlines()[-1]) == (0, "there is nothing more to ask")


def _vector(deployment: LocalDeployment, point: int) -> list[float]:
    (found,) = deployment.client.retrieve("shop", [point], with_vectors=True)
    vector: list[float] = found.vector
    return vector
