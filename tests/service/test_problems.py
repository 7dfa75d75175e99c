"""Problems: a stable code for programs, an address that describes it, and nothing about the machine of the service."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import zsvec
from tests.service.support import KEYS, READ, WRITE, asked, bearer, files, images_of, path_to, red
from tests.support import COLOURS, coloured, encode
from zsvec import errors
from zsvec.classifier import Classifier
from zsvec.cli.docs import page
from zsvec.service import problems
from zsvec.service.problems import CODES, TYPES, Problem, problem_of
from zsvec.testing import HashEncoder


def code(answer: Any) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["error"])


def test_each_type_is_an_address_that_the_documentation_has() -> None:
    topic, _, kind = TYPES.rpartition("/")[2].partition(".")
    assert kind == "md"
    anchors = re.findall("^## (.+)$", page(topic), re.MULTILINE)
    assert set(CODES) == set(anchors)
    assert all(re.fullmatch("[a-z_]+", anchor) for anchor in anchors)  # GitHub makes the same anchor


def test_each_error_of_zsvec_has_a_code_of_its_status() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.ZSVecError):
            found = problem_of(kind("a message"))
            assert CODES[found.error][0] == found.status
    codes = {problem_of(kind("x")).error for kind in (errors.ConflictError, errors.VersionConflictError)}
    assert len(codes) == 2


def test_each_status_has_a_usual_code() -> None:
    for status in {status for status, _ in CODES.values()} - {403}:
        assert CODES[Problem(status, "x").error][0] == status


def test_programs_can_tell_problems_apart(client: TestClient, classifier: Classifier) -> None:
    classifier.add_category("single", texts=[], images=[red(40)])
    [one] = images_of(classifier, "single")
    asks = {
        "category_not_found": client.get(path_to("none")),
        "unknown_path": client.get("/v1/none"),
        "reference_not_found": client.get(path_to("red", "references", "0" * 64)),
        "copy_not_found": client.get(f"/v1/inbox/{'0' * 64}/image"),
        "method_not_allowed": client.post(path_to("red")),
        "name_taken": client.patch(path_to("red"), json={"name": "blue"}),
        "not_possible": client.post("/v1/undo", json={"change": "ffffffff"}),
        "version_conflict": client.put(path_to("red"), json={}, headers={"If-None-Match": "*"}),
        "unsupported_media_type": client.post("/v1/classify", content=b"x"),
        "bad_request": client.post("/v1/undo", content=b"{", headers={"Content-Type": "application/json"}),
        "invalid_input": client.post("/v1/undo", json={"category": ""}),
        "invalid_image": client.post("/v1/correct?category=red", files=files(b"no image")),
        "invalid_cursor": client.get("/v1/categories?cursor=forged"),
        "unknown_parameter": client.get("/v1/categories?page=2"),
        "too_large": client.post("/v1/undo", json={"category": "," * 100_001}),
        "too_many_images": client.post("/v1/classify", files=files(*[b"x"] * 65)),
        "last_reference": client.delete(path_to("single", "references", one)),
        "untrusted_host": client.get("/v1/info", headers={"Host": "example.org"}),
        "cross_origin": client.get("/v1/info", headers={"Origin": "http://example.org"}),
    }
    assert {name: code(found) for name, found in asks.items()} == {name: name for name in asks}


def test_programs_can_tell_problems_of_keys_apart(classifier: Classifier) -> None:
    with asked(classifier, keys=KEYS) as client:
        assert code(client.get("/v1/info")) == "key_needed"
        assert code(client.get("/v1/info", headers=bearer("wrong" * 5))) == "key_invalid"
        assert code(client.delete(path_to("red"), headers=bearer(READ))) == "key_read_only"
        classifier.add_category("by another", texts=["text"])
        assert code(client.post("/v1/undo", json={}, headers=bearer(WRITE))) == "change_id_needed"


def test_no_detail_names_a_path_of_the_server(tmp_path: Path) -> None:
    folder = tmp_path / "the place"
    with zsvec.open(str(folder), encoders=[HashEncoder()]) as classifier:
        for colour in COLOURS:
            classifier.add_category(colour, images=[encode(coloured(colour, seed)) for seed in range(2)])
        with asked(classifier) as client:

            def every() -> list[Any]:
                return [
                    client.get(path_to("none")),
                    client.delete(path_to("none")),
                    client.patch(path_to("red"), json={"name": "none", "merge": True}),
                    client.patch(path_to("red"), json={"name": "blue"}),
                    client.post("/v1/undo", json={"change": "ffffffff"}),
                    client.post("/v1/undo", json={"category": "none"}),
                    client.put(path_to("red"), json={"texts": ["x"]}, headers={"If-Match": '"99"'}),
                    client.get("/v1/history?category=none"),
                    client.get("/v1/audit"),
                    client.get("/v1/categories"),
                    client.post("/v1/classify", files=files(red())),
                    client.post(path_to("x", "references"), json={"texts": ["x"]}),
                ]

            answers = every()
            shutil.rmtree(folder)
            answers += every()
            with suppress(errors.StoreUnavailableError):
                classifier.close()
            answers += every()
    assert {answer.status_code for answer in answers} >= {404, 409, 412, 503}
    for answer in answers:
        assert str(tmp_path) not in answer.text
        assert "the place" not in answer.text


def test_no_detail_names_a_host_or_a_password() -> None:
    for error in (
        errors.StoreUnavailableError("http://user:secret@db.internal:6333 does not answer"),
        errors.WeightsUnavailableError("/home/ann/.cache/model is missing"),
        errors.EncoderMismatchError("/home/ann/graph.onnx is another"),
    ):
        said = bytes(problems.answer(problem_of(error)).body).decode()
        assert not {"secret", "db.internal", "/home"} & {
            word for word in ("secret", "db.internal", "/home") if word in said
        }


@pytest.mark.parametrize(
    "location", ["/var/lib/zsvec (namespace ns)", "http://db:6333 (namespace ns)", "C:\\zsvec (namespace ns)"]
)
def test_the_location_of_the_store_is_left_out(location: str) -> None:
    place = location.partition(" (")[0]
    for text in (f"no category in {location}: look", f"no collection in {place}: look"):
        assert place not in bytes(problems.answer(Problem(409, text), location).body).decode().replace("\\\\", "\\")
