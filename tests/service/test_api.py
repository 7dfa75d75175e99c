"""The API: every route with valid and invalid requests, and equality with the JSON of the command line."""

from __future__ import annotations

import base64
import codecs
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

import zsvec
from tests.cli.support import Result, add_images, cli, hash_encoders  # noqa: F401
from tests.service.support import KEYS, WRITE, asked, bearer, files, images_of, listed, names, path_to, problem, red
from tests.support import COLOURS, coloured, encode, photo, state
from zsvec.classifier import Classifier
from zsvec.errors import ConflictError, InvalidInputError
from zsvec.inputs.categories import NAME_PATTERN, CategoryInput, checked_name
from zsvec.inputs.images import Region, content_hash
from zsvec.testing import HashEncoder

pytestmark = pytest.mark.usefixtures("hash_encoders")

CATEGORIES = "/v1/categories"
EMPTY_HASH = "0" * 64


def sent(content: bytes, kind: str = "application/json") -> dict[str, Any]:
    return {"content": content, "headers": {"Content-Type": kind}}


def as_json(*images: bytes) -> dict[str, Any]:
    return {"json": {"images": [base64.b64encode(image).decode() for image in images]}}


def rounded(value: Any) -> Any:
    """JSON with rounded numbers, because batches differ."""
    return json.loads(json.dumps(value), parse_float=lambda digits: round(float(digits), 4))


# Classifying


def test_an_image_is_classified_however_it_is_sent(client: TestClient) -> None:
    picture = red(77)
    for how in (
        {"files": files(picture)},
        sent(picture, "image/png"),
        sent(picture, "application/octet-stream"),
        sent(picture, "image/x-anything; q=1"),
        as_json(picture),
        {"json": {"images": [{"data": base64.b64encode(picture).decode(), "name": "photo.png"}]}},
    ):
        [answer] = client.post("/v1/classify", **how).raise_for_status().json()
        assert (answer["label"], answer["error"], answer["experts"]) == ("red", None, {})
        assert answer["source"] in ("photo.png", "upload")


def test_answers_are_those_of_the_classifier_in_order(client: TestClient, classifier: Classifier) -> None:
    pictures = [encode(coloured(colour, 50)) for colour in reversed(COLOURS)]
    answers = client.post("/v1/classify?explain=true&top_k=2", files=files(*pictures)).json()
    for answer, picture in zip(answers, pictures, strict=True):
        assert rounded(answer) == rounded(classifier.classify(picture, top_k=2).to_dict()) | {"source": "photo.png"}
    assert [answer["label"] for answer in answers] == list(reversed(COLOURS))


def test_an_image_that_cannot_be_read_has_its_own_error(client: TestClient) -> None:
    damaged = [b"", b"no image", red()[:60], red()]
    answers = client.post("/v1/classify", files=files(*damaged)).raise_for_status().json()
    assert [answer["error"] is None for answer in answers] == [False, False, False, True]
    assert all(answer["label"] is None and answer["ranking"] == [] for answer in answers[:3])
    assert [len(answer["error"]) > 10 for answer in answers[:3]] == [True] * 3
    [alone] = client.post("/v1/classify", **sent(b"", "image/png")).json()
    assert "empty" in alone["error"]


BROKEN = [
    "!",
    "",
    "data:image/png;base64,!",
    "data:image/png,raw",
    "data:",
    "é",
    "a",
    "data:;base64",
    "http://127.0.0.1:9/x",
]


def test_invalid_base64_has_its_own_error(client: TestClient) -> None:
    good = base64.b64encode(red()).decode()
    named = [{"data": text, "name": "broken.png"} for text in BROKEN]
    for path in ("/v1/classify", "/v1/inbox"):
        answers = client.post(path, json={"images": [good, *BROKEN, *named, good]}).raise_for_status().json()
        assert [answer["error"] is None for answer in answers] == [True, *[False] * 2 * len(BROKEN), True]
        assert [answer["source"] for answer in answers[10:-1]] == ["broken.png"] * len(BROKEN)
    for text in BROKEN:
        how: dict[str, Any] = {"json": {"images": [good, text]}}
        for answer in (client.post("/v1/correct?category=red", **how), client.put(path_to("new"), **how)):
            problem(answer, 422)
    assert names(client) == sorted(COLOURS)


def test_data_uris(client: TestClient) -> None:
    data = base64.b64encode(red()).decode()
    for prefix in ("data:image/png;base64,", "DATA:image/PNG;BASE64,", "data:;base64,", "data:image/x;a=b;c=d;base64,"):
        [answer] = client.post("/v1/classify", json={"images": [prefix + data]}).raise_for_status().json()
        assert (answer["label"], answer["error"]) == ("red", None)
    assert client.put(path_to("new"), json={"images": [{"data": "data:image/png;base64," + data}]}).status_code == 201


def test_no_url_is_fetched(client: TestClient) -> None:
    [answer] = client.post("/v1/classify", json={"images": ["http://127.0.0.1:9/x.png"]}).json()
    assert "base64" in answer["error"]
    problem(client.post("/v1/classify", json={"images": [], "urls": ["http://127.0.0.1:9/x.png"]}), 422)
    [answer] = client.post("/v1/classify", **sent(b"http://127.0.0.1:9/x.png", "image/png")).json()
    assert "unknown format" in answer["error"]
    problem(client.post("/v1/classify", data={"images": "http://127.0.0.1:9/x.png"}, files=files(red())), 422, "field")


def test_invalid_queries(client: TestClient) -> None:
    for query in ("top_k=0", "top_k=1001", "top_k=x", "top_k=1e9", "top_k=", "explain=perhaps"):
        problem(client.post(f"/v1/classify?{query}", **sent(red(), "image/png")), 422, query.partition("=")[0])


def test_images_of_one_object_have_one_answer(client: TestClient, classifier: Classifier) -> None:
    pictures = [red(50), b"no image", encode(coloured("blue", 51)), red(52)]
    found = client.post("/v1/classify/track?error_rate=0.5", files=files(*pictures)).raise_for_status().json()
    predictions = found.pop("predictions")
    alone = classifier.classify(pictures, top_k=10, errors="report")
    assert rounded(found) == rounded(classifier.tracker(error_rate=0.5).combine(alone).to_dict())
    assert (found["label"], found["frames"], found["decided_after"], found["error"]) == ("red", 3, 3, None)
    assert [one["label"] for one in predictions] == ["red", None, "blue", "red"]
    assert [one["error"] is None for one in predictions] == [True, False, True, True]
    assert [one["hash"] for one in predictions] == [one.hash for one in alone]
    assert all(one["experts"] == {} for one in predictions)
    turned = client.post("/v1/classify/track?error_rate=0.5", **as_json(*reversed(pictures))).json()
    assert rounded({**turned, "predictions": []}) == rounded({**found, "predictions": []})
    strict = client.post("/v1/classify/track", files=files(*pictures)).json()
    assert (strict["label"], strict["decided_after"], strict["nearest"]) == (None, None, "red")


def test_one_answer_from_one_image_and_from_none(client: TestClient) -> None:
    alone = client.post("/v1/classify/track?error_rate=0.5", **sent(red(50), "image/png")).json()
    assert (alone["label"], alone["nearest"], alone["frames"]) == (None, "red", 1)
    broken = client.post("/v1/classify/track", files=files(b"", b"no image")).raise_for_status().json()
    assert (broken["frames"], broken["nearest"], broken["ranking"]) == (0, None, [])
    assert broken["error"] == broken["predictions"][1]["error"] is not None
    problem(client.post("/v1/classify/track", json={"images": []}), 422)
    problem(client.post("/v1/classify/track", files=files(*[red()] * 65)), 422, "64 images")
    for rate in ("nan", "inf", "0", "-0.1", "0.51", "", "x"):
        problem(client.post(f"/v1/classify/track?error_rate={rate}", files=files(red())), 422, "error_rate")


def test_the_images_of_a_request_are_classified_together(client: TestClient, classifier: Classifier) -> None:
    """Two photos in doubt are like many that are not."""
    pictures = [encode(coloured(colour, 50 + seed)) for seed in range(12) for colour in COLOURS]
    pictures[1:1] = [b"no image", b""]
    found = client.post("/v1/classify?together=true&top_k=2", files=files(*pictures)).raise_for_status().json()
    expected = classifier.classify_together(pictures, top_k=2)
    assert [one["error"] is None for one in found] == [one.error is None for one in expected]
    readable = [(one, other) for one, other in zip(found, expected, strict=True) if other.error is None]
    assert [rounded(one) for one, _ in readable] == [
        rounded(replace(other, source="photo.png", experts={}).to_dict()) for _, other in readable
    ]
    alone = client.post("/v1/classify?top_k=2", files=files(*pictures)).json()
    assert [one["novelty"] for one in alone] == pytest.approx([one["novelty"] for one in found], abs=1e-6)
    changed = [one["probability"] != other["probability"] for one, other in zip(found, alone, strict=True)]
    assert changed.count(True) > len(readable) / 2


def test_an_invalid_set_is_refused(client: TestClient) -> None:
    assert all(one["error"] for one in client.post("/v1/classify?together=true", files=files(b"", b"x")).json())
    problem(client.post("/v1/classify?together=true", json={"images": []}), 422)
    problem(client.post("/v1/classify?together=true", files=files(*[red()] * 65)), 422, "64 images")
    for query in ("together=perhaps", "together=", "together=true&together=true"):
        problem(client.post(f"/v1/classify?{query}", files=files(red())), 422)


def three_colours() -> bytes:
    whole = Image.new("RGB", (24, 6))
    for number, colour in enumerate(COLOURS):
        whole.paste(coloured(colour, 50), (8 * number, 0))
    return encode(whole)


BOXES: list[list[float]] = [[8, 0, 16, 6], [0, 0, 8, 6], [30, 0, 40, 6], [3, 3, 3, 3], [8, 0, 0, 6], [16, 0, 24.5, 6]]


def test_boxes_in_an_image_are_classified_in_order(client: TestClient, classifier: Classifier) -> None:
    data = base64.b64encode(three_colours()).decode()
    form = {"image": ("scene.png", three_colours())}
    for how in (
        {"json": {"image": {"data": data, "name": "scene.png"}, "boxes": BOXES}},
        {"files": form, "data": {"boxes": json.dumps(BOXES)}},
    ):
        answers = client.post("/v1/classify/regions?top_k=2", **how).raise_for_status().json()
        expected = classifier.classify_regions(three_colours(), BOXES, top_k=2)
        assert [answer["label"] for answer in answers] == ["green", "blue", None, None, None, "red"]
        assert [answer["error"] is None for answer in answers] == [True, True, False, False, False, True]
        assert [answer["hash"] for answer in answers] == [one.hash for one in expected]
        assert answers[0]["source"] == "scene.png#xywh=8,0,8,6"
        assert all(answer["experts"] == {} for answer in answers)
    with_margin: dict[str, Any] = {"files": form, "data": {"boxes": "[[8, 0, 16, 6]]", "margin": "0.5"}}
    (answer,) = client.post("/v1/classify/regions?explain=true", **with_margin).json()
    assert answer["hash"] == content_hash(Region(three_colours(), (4, 0, 20, 6)))
    assert answer["experts"]
    infinite = sent(
        json.dumps({"image": data, "boxes": [[0, 0, float("nan"), 1], [0, 0, 1e300, 1], [0, 0, 8, 6]]}).encode()
    )
    answers = client.post("/v1/classify/regions", **infinite).raise_for_status().json()
    assert [answer["error"] is None for answer in answers] == [False, False, True]


def test_an_image_that_cannot_be_read_has_an_error_for_each_box(client: TestClient) -> None:
    for image in ("!", "", base64.b64encode(b"no image").decode()):
        answers = client.post("/v1/classify/regions", json={"image": image, "boxes": BOXES[:2]}).json()
        assert [len(answer["error"]) > 10 for answer in answers] == [True, True]


def test_invalid_boxes(client: TestClient) -> None:
    data = base64.b64encode(red()).decode()
    for boxes in (
        None,
        [],
        [[]],
        [[1, 2, 3]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, "4"]],
        [[1, 2, 3, None]],
        [1, 2, 3, 4],
        {},
    ):
        problem(client.post("/v1/classify/regions", json={"image": data, "boxes": boxes}), 422)
        form: dict[str, Any] = {"files": {"image": red()}, "data": {"boxes": json.dumps(boxes)}}
        problem(client.post("/v1/classify/regions", **form), 422)
    for margin in (-1, 11, "1", None, 1e999):
        body = json.dumps({"image": data, "boxes": [[0, 0, 1, 1]], "margin": margin}).encode()
        problem(client.post("/v1/classify/regions", **sent(body)), 422)
    for how, status in (
        ({"files": {"image": red()}}, 422),
        ({"files": {"images": red()}, "data": {"boxes": "[[0,0,1,1]]"}}, 422),
        ({"data": {"boxes": "[[0,0,1,1]]"}}, 415),
        ({"files": [("image", red())] * 2, "data": {"boxes": "[[0,0,1,1]]"}}, 422),
        ({"files": {"image": red()}, "data": {"boxes": "[[0,0,1,1]]", "other": "x"}}, 422),
        ({"files": {"image": red()}, "data": {"boxes": "[" * 10_000}}, 400),
        (sent(red(), "image/png"), 415),
        ({"json": {"image": data, "boxes": [[0, 0, 1, 1]] * 65}}, 422),
        ({"json": {"image": data, "boxes": [[0, 0, 1, 1]] * 1001}}, 422),
        ({"json": {"image": data, "boxes": [[0, 0, 1, 1]] * 30_000}}, 413),
    ):
        problem(client.post("/v1/classify/regions", **how), status)


def test_a_store_without_categories_classifies_nothing() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as empty, asked(empty) as client:
        for path in ("/v1/classify", "/v1/classify?together=true", "/v1/classify/track"):
            problem(client.post(path, files=files(red())), 409, "no categor")
        assert listed(client, CATEGORIES) == listed(client, "/v1/inbox") == listed(client, "/v1/history") == []
        assert client.get("/v1/inbox/groups").json() == []
        assert client.get("/v1/info").json()["categories"] == 0
        problem(client.post("/v1/undo", json={}), 409, "no change")
        problem(client.get(path_to("red")), 404, "red")
        assert [one["finding"] for one in listed(client, "/v1/audit")] == ["summary"]


# Bodies


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/inbox", "/v1/correct?category=red"])
def test_invalid_bodies(client: TestClient, path: str) -> None:
    problem(client.post(path), 415, "no Content-Type")
    problem(client.post(path, **sent(b"x", "text/plain")), 415, "text/plain")
    problem(client.post(path, **sent(b"a=b", "application/x-www-form-urlencoded")), 415)
    problem(client.post(path, **sent(b"{", "application/json")), 400, "not JSON")
    problem(client.post(path, **sent(b"\xff\xfe{", "application/json")), 400, "not JSON")
    problem(client.post(path, **sent(b'{"images": ["\\ud800"]}', "application/json")), 400, "not JSON")
    problem(client.post(path, **sent(b"[" * 100_000, "application/json")), 400, "not JSON")
    problem(client.post(path, json=[]), 422)
    problem(client.post(path, json={}), 422, "images")
    problem(client.post(path, json={"images": []}), 422, "images")
    if "correct" in path:
        problem(client.post(path, json={"images": [base64.b64encode(red()).decode(), "!"]}), 422, "images.1")
    problem(client.post(path, json={"images": [{"data": "!", "more": 1}]}), 422, "images.0")
    problem(client.post(path, json={"images": [None, 1]}), 422, "images.0")
    problem(client.post(path, json={"images": ["!"] * 1_000_000}), 413, "100,000")
    problem(client.post(path, **sent(b"x", "multipart/form-data")), 400, "boundary")
    problem(client.post(path, **sent(b"--x\r\n\r\n", "multipart/form-data; boundary=x")), 400, "form")
    problem(client.post(path, **sent(b"", "multipart/form-data; boundary=x")), 422, "no image")
    problem(client.post(path, files=[("image", ("a.png", red()))]), 422, "images")
    problem(client.post(path, files=files(red()), data={"texts": "x"}), 422, "texts")
    chosen_none = b'--x\r\nContent-Disposition: form-data; name="images"; filename=""\r\n\r\n\r\n--x--\r\n'
    problem(client.post(path, **sent(chosen_none, "multipart/form-data; boundary=x")), 422, "no image")


def form(*parts: bytes) -> bytes:
    """A form of parts with these parameters, each with an image."""
    return b"".join(
        b"--x\r\nContent-Disposition: form-data; " + part + b"\r\n\r\n" + red() + b"\r\n" for part in parts
    ) + (b"--x--\r\n")


FORM = "multipart/form-data; boundary=x"
FIELDS = "application/x-www-form-urlencoded"
NOT_UTF_8 = "idna punycode utf-7 utf-16 utf-8-sig unicode_escape rot13 uu zlib undefined latin-1 us-ascii x"


def test_other_charsets_than_utf_8_are_refused(client: TestClient) -> None:
    for charset in (*NOT_UTF_8.split(), "", '"punycode"', "utf-8; charset=punycode"):
        refuse_charset(client, charset)


def test_no_codec_that_a_client_names_is_looked_up(client: TestClient) -> None:
    """Some codecs of Python take quadratic time, and would block all requests for seconds."""
    looked_up: list[str] = []
    note = looked_up.append
    codecs.register(note)
    try:
        refuse_charset(client, "spied")
        assert "spied" not in looked_up
        with pytest.raises(LookupError):
            codecs.lookup("spied")
        assert "spied" in looked_up
    finally:
        codecs.unregister(note)


def test_headers_with_many_parameters_are_not_parsed(client: TestClient) -> None:
    """Parsing would block the event loop for two microseconds per semicolon."""
    many = ";" * 33
    for path in ("/v1/classify", "/login", "/categories"):
        body = form(b'name="images"; filename="a"; a="' + many.encode() + b'"')
        problem(client.post(path, **sent(body, FORM)), 400)
        assert client.post(path, **sent(b"", f'{FORM}; a="{many}"')).status_code == 415
    fine = form(b'name="images"; filename="' + many[:30].encode() + b'"')
    assert client.post("/v1/classify", **sent(fine, FORM)).status_code == 200


def refuse_charset(client: TestClient, charset: str) -> None:
    hostile = b"-" + b"a" * 1000
    body = form(b'name="images"; filename="' + hostile + b'"')
    paths = ("/v1/classify", "/v1/inbox", path_to("x", "references"), "/classify", "/login", "/categories")
    for path, content, kind in (
        *((path, body, FORM) for path in paths),
        ("/login", b"key=" + hostile, FIELDS),
        ("/v1/classify", b'{"images":[]}', "application/json"),
        ("/v1/undo", b"{}", "application/json"),
    ):
        answer = client.post(path, **sent(content, f"{kind}; charset={charset}"))
        assert (answer.status_code, "UTF-8" in answer.text) == (415, True), path


def test_utf_8_may_be_named(client: TestClient) -> None:
    body = form('name="images"; filename="ж.png"'.encode())
    for charset in ("utf-8", "UTF-8", "utf8", '"utf-8"'):
        [answer] = client.post("/v1/classify", **sent(body, f"{FORM}; charset={charset}")).json()
        assert answer["source"] == "ж.png"
        assert client.patch(path_to("red"), **sent(b"{}", f"application/json; charset={charset}")).status_code == 200


def test_invalid_utf_8_is_refused(client: TestClient) -> None:
    for content, kind in [
        (form(b'name="images"; filename="\xff.png"'), FORM),
        (form(b'name="\xff"; filename="a.png"'), FORM),
        (b'--x\r\nContent-Disposition: form-data; name="a\xff"\r\n\r\nb\r\n--x--\r\n', FORM),
        (b'--x\r\nContent-Disposition: form-data; name="texts"\r\n\r\n\xe9t\xe9\r\n--x--\r\n', FORM),
        (b"name=\xff", FIELDS),
        (b"name=%FF", FIELDS),
        (b"%FF=a", FIELDS),
        ('{"images":[]}'.encode("utf-16"), "application/json"),
        (b'{"images":["\xff"]}', "application/json"),
    ]:
        path = "/categories" if kind == FIELDS else path_to("x", "references")
        assert client.post(path, **sent(content, kind)).status_code == 400, content
    problem(client.get("/v1/history?category=%FF"), 422, "UTF-8")
    problem(client.post("/v1/correct?category=%FF", files=files(red())), 422, "UTF-8")


# Categories

NAMES = [
    "red/panda",
    "a?b",
    "a#b",
    "100%",
    "%2F",
    "🐼 panda",
    "with  two spaces",
    ".hidden",
    "…",
    "ж",
    "a\\b",
    "a;b=c",
    "<script>alert(1)</script>",
    "x" * 500,
    "熊" * 500,
    "+",
    "references",
    "'\"`",
]


def test_any_name(client: TestClient) -> None:
    for name in NAMES:
        use_name(client, name)


def use_name(client: TestClient, name: str) -> None:
    made = client.put(path_to(name), files=files(red(9)))
    assert (made.status_code, made.json()["category"]) == (201, name)
    assert client.get(path_to(name)).json()["category"] == name
    [hash_] = [one["hash"] for one in listed(client, path_to(name, "references")) if one["modality"] == "image"]
    assert client.get(path_to(name, "references", hash_)).json()["category"] == name
    assert name in names(client)
    assert [change["categories"] for change in listed(client, "/v1/history", params={"category": name})] == [[name]]
    assert client.patch(path_to(name), json={"metadata": {"a": 1}}).status_code == 200
    assert client.patch(path_to(name), json={"name": "plain"}).json()["category"] == "plain"
    assert client.patch(path_to("plain"), json={"name": name}).json()["category"] == name
    assert client.delete(path_to(name)).status_code == 204
    problem(client.get(path_to(name)), 404)


def test_parents(client: TestClient, classifier: Classifier) -> None:
    assert client.get(path_to("red")).json().get("parent", "") == ""
    assert client.patch(path_to("red"), json={"parent": "warm>light"}).json()["parent"] == "warm > light"
    assert client.get(path_to("red")).json()["parent"] == "warm > light"
    assert client.put(path_to("rose"), data={"parent": "red"}, files=files(red(9))).json()["parent"] == "red"
    added = client.post(path_to("rose", "references"), json={"texts": ["a flower"]})
    assert added.json()["parent"] == "red"  # a parent that is not given stays
    (found,) = client.post("/v1/classify", files=files(red(1))).json()
    assert [node["label"] for node in found["path"]][:3] == ["warm", "light", "red"]
    assert found["path"] == sorted(found["path"], key=lambda node: -node["probability"])
    before = state(classifier._store)
    for wrong in ("red", "rose", "rose > x", "a > > b", "a\nb", 7, ["a"], "x" * 501, ">".join("x" * 33)):
        problem(client.patch(path_to("red"), json={"parent": wrong}), 422)
        problem(client.patch(path_to("red"), json={"parent": wrong, "texts": ["x"], "metadata": {"a": 1}}), 422)
    problem(client.patch(path_to("red"), json={"name": "light", "texts": ["x"]}), 422)
    problem(client.patch(path_to("red"), json={"name": "new", "parent": "new"}), 422)
    problem(client.put(path_to("new"), data={"parent": ["a", "b"]}, files=files(red(9))), 422)
    assert state(classifier._store) == before
    assert client.patch(path_to("red"), json={"name": "crimson", "parent": "dark"}).json()["parent"] == "dark"
    assert client.get(path_to("rose")).json()["parent"] == "crimson"
    assert "parent" not in client.patch(path_to("rose"), json={"parent": ""}).json()


def test_invalid_names_in_paths(client: TestClient) -> None:
    for name in ("", "a/b", "a%20b", "%", "%zz"):
        problem(client.get(f"{CATEGORIES}/{name}"), 404)
    for name in ("%20", "%0A", "%00", "a%7Fb", "%E2%80%8B", "x" * 501, "%FF", "%ED%A0%80", "%2E%2E"):
        path = f"{CATEGORIES}/{name}"
        for method, below, body in (
            ("GET", "", None),
            ("PUT", "", {}),
            ("PATCH", "", {}),
            ("DELETE", "", None),
            ("GET", "/references", None),
            ("POST", "/references", {}),
            ("GET", f"/references/{EMPTY_HASH}/image", None),
            ("PATCH", f"/references/{EMPTY_HASH}", {"category": "x"}),
        ):
            problem(client.request(method, path + below, json=body), 422)


def test_invalid_names_in_bodies_and_queries(client: TestClient, classifier: Classifier) -> None:
    client.post("/v1/inbox", files=files(encode(photo(1))))
    [waiting] = [one["hash"] for one in listed(client, "/v1/inbox")]
    [one, *_] = images_of(classifier, "red")
    before = state(classifier._store)
    for wrong in ("", " ", "a\nb", "\x00", "x" * 501, "\u200b"):
        problem(client.patch(path_to("red"), json={"name": wrong}), 422, "category name")
        problem(client.patch(path_to("red"), json={"name": wrong, "texts": ["x"], "metadata": {"a": 1}}), 422)
        problem(client.patch(path_to("red", "references", one), json={"category": wrong}), 422, "category name")
        problem(client.post("/v1/inbox/label", json={"hashes": [waiting], "category": wrong}), 422, "category name")
        problem(client.post("/v1/undo", json={"category": wrong}), 422, "category name")
        problem(client.post("/v1/correct", params={"category": wrong}, files=files(red())), 422, "category name")
    problem(client.post("/v1/correct", files=files(red())), 422, "category")
    assert state(classifier._store) == before


def test_names_that_no_page_can_have(client: TestClient, classifier: Classifier) -> None:
    client.post("/v1/inbox", files=files(encode(photo(1))))
    [waiting] = [one["hash"] for one in listed(client, "/v1/inbox")]
    [one, *_] = images_of(classifier, "red")
    before = state(classifier._store)
    for name in (".", "..", " .. ", "a\u202eb"):
        path = f"{CATEGORIES}/{quote(name, safe='').replace('.', '%2E')}"
        for answer in (
            client.put(path, json={}),
            client.post(f"{path}/references", json={"texts": ["x"]}),
            client.patch(path_to("red"), json={"name": name, "texts": ["x"]}),
            client.patch(path_to("red", "references", one), json={"category": name}),
            client.post("/v1/inbox/label", json={"hashes": [waiting], "category": name}),
            client.post("/v1/correct", params={"category": name}, files=files(red())),
        ):
            problem(answer, 422)
        with pytest.raises(InvalidInputError):
            classifier.add_category(name)
    assert state(classifier._store) == before


UNUSUAL = "./\\%?#&;:+~ \t'\"<>aé\u0301漢😀\u200d\u200f\u202e\u2028\udcff"
SPECIAL = ["references", "..%2f", ". .", "x" * 500, "漢" * 500]
ANY_NAME = st.one_of(st.text(max_size=60), st.text(UNUSUAL, min_size=1, max_size=12), st.sampled_from(SPECIAL))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY_NAME)
def test_every_name_can_be_put_opened_and_removed(client: TestClient, classifier: Classifier, name: str) -> None:
    try:
        stored = checked_name(name)
    except InvalidInputError:
        with pytest.raises(InvalidInputError):
            classifier.add_category(name, texts=["x"])
        if name and name.isprintable():
            problem(client.put(path_to(name).replace(".", "%2E"), json={"texts": ["x"]}), 422)
        return
    assert re.search(NAME_PATTERN, name)
    classifier.add_category(name, texts=["x"])
    assert client.get(path_to(name)).json()["category"] == stored
    assert client.get(f"/categories/{quote(stored, safe='')}").status_code == 200
    assert client.delete(path_to(stored)).status_code == 204
    assert client.put(path_to(name), json={"texts": ["x"]}).status_code == 201
    assert names(client).count(stored) == 1
    classifier.remove_category(stored)


def test_put_creates_or_replaces_a_category(client: TestClient) -> None:
    first = client.put(
        path_to("panda"), data={"texts": ["a bear", "an animal"], "metadata": '{"a": 1}'}, files=files(red(5))
    )
    assert (first.status_code, first.json()["texts"]) == (201, ["a bear", "an animal"])
    assert first.json()["references"] == {"hash:image": 1, "hash:text": 2}
    second = client.put(path_to("panda"), json={"texts": ["a black and white bear"]})
    assert [change["what"] for change in listed(client, "/v1/history")[:2]] == ["replace", "add"]
    assert (second.status_code, second.json()["texts"]) == (200, ["a black and white bear"])
    assert second.json()["references"] == {"hash:image": 1, "hash:text": 1}
    whole = client.get(path_to("panda")).json()
    assert (whole["metadata"], len(whole["stored"])) == ({"a": 1}, 2)
    assert client.put(path_to("panda"), json={"metadata": {"b": None}}).status_code == 200
    assert client.get(path_to("panda")).json()["metadata"] == {"b": None}
    assert client.put(path_to("bare"), json={}).json()["texts"] == ["bare"]


def test_an_empty_list_of_images_is_no_category_by_its_name(client: TestClient, classifier: Classifier) -> None:
    before = state(classifier._store)
    bodies: list[dict[str, Any]] = [{}, {"texts": []}, {"metadata": {"a": 1}}, {"parent": "animal"}]
    for name, more in itertools.product(("new", "red"), bodies):
        problem(client.put(path_to(name), json={"images": [], **more}), 422, "images")
        problem(client.post(path_to(name, "references"), json={"images": [], **more}), 422, "images")
    assert state(classifier._store) == before
    assert client.put(path_to("new"), json={"images": [], "texts": ["x"]}).json()["texts"] == ["x"]
    assert client.put(path_to("bare"), json={"images": None}).json()["texts"] == ["bare"]
    chosen_none = b'--x\r\nContent-Disposition: form-data; name="images"; filename=""\r\n\r\n\r\n--x--\r\n'
    assert client.put(path_to("form"), **sent(chosen_none, FORM)).json()["texts"] == ["form"]


def test_texts_are_refused_if_no_encoder_embeds_texts() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder(modalities=("image",))]) as own, asked(own) as client:
        assert client.put(path_to("red"), files=files(red(1), red(2))).status_code == 201
        before = state(own._store)
        for name in ("red", "new"):
            problem(client.put(path_to(name), json={"texts": ["x"]}), 422, "texts")
            problem(client.put(path_to(name), data={"texts": "x"}, files=files(red(3))), 422, "texts")
            problem(client.post(path_to(name, "references"), json={"texts": ["x"]}), 422, "texts")
        problem(client.patch(path_to("red"), json={"texts": ["x"]}), 422, "texts")
        assert state(own._store) == before
        [first, _] = listed(client, path_to("red", "references"))
        moved = client.patch(path_to("red", "references", first["hash"]), json={"category": "new"})
        assert moved.json()["references"] == {"hash:image": 1}


def test_references_are_added_once(client: TestClient) -> None:
    added = client.post(path_to("red", "references"), files=files(red(5), red(6))).json()
    assert added["references"] == {"hash:image": 5, "hash:text": 1}
    assert client.post(path_to("red", "references"), **as_json(red(5))).json() == added
    assert client.post(path_to("crimson", "references"), data={"texts": "a red"}, files=[]).status_code == 415
    assert client.post(path_to("crimson", "references"), json={"texts": ["a red"]}).json()["texts"] == ["a red"]


def test_invalid_material(client: TestClient, classifier: Classifier) -> None:
    before = state(classifier._store)
    put, add = (path_to("red"), path_to("red", "references"))
    for method, path in (("PUT", put), ("POST", add)):

        def ask(status: int, *words: str, method: str = method, path: str = path, **how: Any) -> None:
            problem(client.request(method, path, **how), status, *words)

        ask(415)
        ask(415, **sent(red(), "image/png"))
        ask(400, "not JSON", **sent(b"{", "application/json"))
        ask(422, "texts", json={"texts": "red"})
        ask(422, "text", json={"texts": [""]})
        ask(422, "text", json={"texts": ["x" * 20_001]})
        ask(422, json={"texts": ["x"] * 1001})
        ask(422, "colour", json={"colour": "red"})
        ask(422, "metadata", json={"metadata": []})
        ask(422, "metadata", json={"metadata": {"a": "x" * 100_001}})
        ask(422, "metadata", json={"metadata": {"a": 2**70}})
        ask(422, **sent(b'{"metadata": {"a": NaN}}', "application/json"))
        ask(422, **sent(b'{"metadata": {"a": 1e999}}', "application/json"))
        ask(422, **sent(b'{"metadata": ' + b'{"a":' * 100 + b"1" + b"}" * 100 + b"}", "application/json"))
        ask(422, files=files(b"no image"))
        ask(422, files=files(red(5), b""))
        ask(422, data={"more": "x"}, files=files(red(5)))
        ask(422, data={"metadata": ["{}", "{}"]}, files=files(red(5)))
        ask(422, data={"metadata": "[]"}, files=files(red(5)))
        ask(400, data={"metadata": "{"}, files=files(red(5)))
        ask(422, data={"texts": " "}, files=files(red(5)))
    assert state(classifier._store) == before


def test_a_change_of_a_category_is_whole(client: TestClient, classifier: Classifier) -> None:
    changed = client.patch(path_to("red"), json={"name": "crimson", "texts": ["like blood"], "metadata": {"a": 1}})
    assert (changed.json()["category"], changed.json()["texts"]) == ("crimson", ["like blood"])
    [last, *_] = listed(client, "/v1/history")
    assert last["what"] == "rename"
    assert client.post("/v1/undo", json={}).json()["id"] == last["id"]
    assert client.get(path_to("red")).json()["texts"] == ["red"]
    assert client.patch(path_to("red"), json={}).json()["category"] == "red"
    assert client.patch(path_to("red"), json={"name": "red"}).json()["category"] == "red"
    before = state(classifier._store)
    # Nothing of a change is done that cannot be done whole.
    more = {"texts": ["x"], "metadata": {"a": 2}}
    problem(client.patch(path_to("red"), json={"name": "blue", **more}), 409, "blue", "merge")
    problem(client.patch(path_to("red"), json={"name": "none", "merge": True, **more}), 404, "none")
    problem(client.patch(path_to("red"), json={"name": "red", "merge": True}), 422, "same")
    problem(client.patch(path_to("red"), json={"merge": True, **more}), 422, "merge")
    problem(client.patch(path_to("none"), json=more), 404, "none")
    problem(client.patch(path_to("red"), json={"texts": [" "]}), 422, "text")
    problem(client.patch(path_to("red"), json={"metadata": 1}), 422, "metadata")
    problem(client.patch(path_to("red"), files=files(red())), 415)
    assert state(classifier._store) == before


@pytest.mark.parametrize("history", [0, 3600])
def test_a_refused_change_changes_nothing(history: int) -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()], history=history) as own, asked(own) as client:
        own.add_category("red", texts=["a red thing"])
        before, changes = state(own._store), list(own.history)
        for body, status in (
            ('{"texts": ["x"], "metadata": {"a": NaN}}', 422),
            ('{"texts": ["x"], "metadata": {"a": 123456789012345678901234567890}}', 422),
            ('{"texts": ["x"], "metadata": {"a": 1}, "merge": true, "name": "red"}', 422),
            ('{"metadata": {"a": 1}, "texts": [" "]}', 422),
            ('{"metadata": {"a": 1}, "texts": ["x"], "name": " "}', 422),
            ('{"metadata": {"a": 1}, "texts": [], "name": "crimson"}', 409),
        ):
            problem(client.patch(path_to("red"), **sent(body.encode())), status)
            assert (state(own._store), list(own.history)) == (before, changes), body


def test_a_category_keeps_a_reference(client: TestClient, classifier: Classifier) -> None:
    client.put(path_to("text"), json={"texts": ["a text"]})
    before = state(classifier._store)
    [text] = listed(client, path_to("text", "references"))
    for method, path, body, status in (
        ("PATCH", path_to("text"), {"texts": []}, 409),
        ("PUT", path_to("text"), {"texts": []}, 409),
        ("PUT", path_to("new"), {"texts": []}, 409),
        ("POST", path_to("new", "references"), {"texts": []}, 409),
        ("DELETE", path_to("text", "references", text["hash"]), None, 409),
        ("PATCH", path_to("text", "references", text["hash"]), {"category": "red"}, 409),
    ):
        problem(client.request(method, path, json=body), status, "no reference")
    assert state(classifier._store) == before
    # Images, or the references that an addition keeps, are enough.
    assert client.post(path_to("text", "references"), json={"texts": []}).json()["texts"] == ["a text"]
    for method in ("PATCH", "PUT"):
        assert client.request(method, path_to("red"), json={"texts": []}).json()["references"] == {"hash:image": 3}


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("history", [0, 3600])
def test_a_change_that_fails_halfway_is_undone(monkeypatch: pytest.MonkeyPatch, merge: bool, history: int) -> None:
    def conflict(*_: Any) -> Any:
        raise ConflictError("others changed it")

    with zsvec.open(":memory:", encoders=[HashEncoder()], history=history) as own, asked(own) as client:
        own.add_categories([CategoryInput(name="red", metadata={"a": 1}), CategoryInput(name="blue")])
        monkeypatch.setattr(own.references, "merge" if merge else "rename", conflict)
        name = "blue" if merge else "crimson"
        change = {"name": name, "merge": merge, "texts": ["x"], "metadata": {"a": 2}}
        problem(client.patch(path_to("red"), json=change), 409, "others changed it")
        whole = client.get(path_to("red")).json()
        kept = (["red"], {"a": 1}) if history else (["x"], {"a": 2})
        assert (whole["texts"], whole["metadata"]) == kept


def test_merge(client: TestClient) -> None:
    merged = client.patch(path_to("red"), json={"name": "blue", "merge": True}).json()
    assert (merged["category"], merged["references"]["hash:image"]) == ("blue", 6)
    assert names(client) == ["blue", "green"]
    client.post("/v1/undo", json={"category": "red"})
    assert names(client) == sorted(COLOURS)


def test_remove(client: TestClient) -> None:
    assert client.delete(path_to("red")).status_code == 204
    problem(client.delete(path_to("red")), 404, "red")
    assert client.post("/v1/undo", json={}).json()["categories"] == ["red"]
    assert names(client) == sorted(COLOURS)


# References


def test_a_reference_is_shown_moved_and_removed(client: TestClient, classifier: Classifier) -> None:
    [first, second, third] = images_of(classifier, "red")
    shown = client.get(path_to("red", "references", first, "image"))
    assert shown.headers["content-type"] == "image/jpeg"
    assert shown.headers["cache-control"] == "private, no-cache"
    tag = shown.headers["etag"]
    for sent_tag, status in ((tag, 304), (f'"x", W/{tag}', 304), ('"x"', 200), ("", 200)):
        again = client.get(shown.request.url, headers={"If-None-Match": sent_tag})
        assert (again.status_code, again.content) == (status, b"" if status == 304 else shown.content)
        assert (again.headers["etag"], again.headers["cache-control"]) == (tag, "private, no-cache")
    moved = client.patch(path_to("red", "references", first), json={"category": "blue"}).json()
    assert (moved["category"], moved["references"]["hash:image"]) == ("blue", 4)
    problem(client.get(path_to("red", "references", first)), 404, first)
    problem(client.get(path_to("red", "references", first, "image")), 404, first)
    assert client.get(path_to("blue", "references", first, "image")).content == shown.content
    assert client.patch(path_to("red", "references", second), json={"category": "new"}).json()["category"] == "new"
    assert client.delete(path_to("red", "references", third)).status_code == 204
    assert images_of(classifier, "red") == []
    [text] = listed(client, path_to("red", "references"))
    problem(client.get(path_to("red", "references", text["hash"], "image")), 404, "small copy")


def test_a_missing_reference(client: TestClient, classifier: Classifier) -> None:
    before = state(classifier._store)
    [first, *_] = images_of(classifier, "red")
    for name, hash_, status in (
        ("red", EMPTY_HASH, 404),
        ("none", first, 404),
        ("red", first[:12], 422),
        ("red", "X", 422),
    ):
        problem(client.get(path_to(name, "references", hash_)), status)
        problem(client.get(path_to(name, "references", hash_, "image")), status)
        problem(client.delete(path_to(name, "references", hash_)), status)
        problem(client.patch(path_to(name, "references", hash_), json={"category": "blue"}), status)
    problem(client.patch(path_to("red", "references", first), json={"category": "red"}), 409, "same")
    problem(client.patch(path_to("red", "references", first), json={}), 422, "category")
    assert state(classifier._store) == before


# Inbox


def test_the_inbox(client: TestClient) -> None:
    pictures = [encode(photo(seed)) for seed in range(3)]
    kept = client.post("/v1/inbox", files=[*files(*pictures), *files(b"no image", name="broken.png")]).json()
    assert [one["error"] is None for one in kept] == [True, True, True, False]
    hashes = [one["hash"] for one in kept[:3]]
    assert hashes == [content_hash(picture) for picture in pictures]
    assert [one["hash"] for one in client.post("/v1/inbox", files=files(*pictures)).json()] == hashes
    waiting = listed(client, "/v1/inbox")
    assert {one["hash"] for one in waiting} == set(hashes)
    assert listed(client, "/v1/inbox?limit=1") == waiting[:1]
    problem(client.get("/v1/inbox?number=1"), 422, "number")
    assert client.get(f"/v1/inbox/{hashes[0]}/image").headers["content-type"] == "image/jpeg"
    problem(client.get(f"/v1/inbox/{EMPTY_HASH}/image"), 404)
    labelled = client.post("/v1/inbox/label", json={"hashes": hashes[:1], "category": "noise"}).json()
    assert (labelled["category"], labelled["references"]) == ("noise", {"hash:image": 1})
    assert client.post("/v1/inbox/dismiss", json={"hashes": hashes[1:2]}).status_code == 204
    assert [one["hash"] for one in listed(client, "/v1/inbox")] == hashes[2:]
    for path, more in (("label", {"category": "noise"}), ("dismiss", {})):
        problem(client.post(f"/v1/inbox/{path}", json={"hashes": [EMPTY_HASH], **more}), 409, "waits")
        problem(client.post(f"/v1/inbox/{path}", json={"hashes": [], **more}), 422, "hashes")
        problem(client.post(f"/v1/inbox/{path}", json=more), 422, "hashes")
        problem(client.post(f"/v1/inbox/{path}", json={"hashes": ["x" * 10_000], **more}), 422, "hashes")
        problem(client.post(f"/v1/inbox/{path}", files=files(red())), 415)


def test_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.curation.inbox.common_words", lambda: ("lion", "hen"))
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as empty, asked(empty) as client:
        client.post("/v1/inbox", files=files(*(encode(coloured("purple", seed)) for seed in range(8))))
        [group] = client.get("/v1/inbox/groups").json()
        assert 5 <= len(group["images"]) <= 8


def test_a_correction_counts_from_the_next_prediction_on(client: TestClient) -> None:
    picture = encode(coloured("white", 3))
    corrected = client.post("/v1/correct", params={"category": "white/snow"}, files=files(picture))
    assert corrected.json()["category"] == "white/snow"
    [answer] = client.post("/v1/classify", files=files(picture)).json()
    assert answer["label"] == "white/snow"
    moved = client.post("/v1/correct", params={"category": "red"}, **sent(picture, "image/png")).json()
    assert (moved["category"], moved["references"]["hash:image"]) == ("red", 4)


def test_several_labels() -> None:
    with zsvec.open(":memory:", encoders=[HashEncoder()], labels="many") as several, asked(several) as client:
        for colour in COLOURS:
            several.add_category(colour, images=[coloured(colour, seed) for seed in range(6)])
        assert client.get("/v1/info").json()["labels"] == "many"
        [answer] = client.post("/v1/classify", files=files(encode(coloured("red", 50)))).json()
        assert [label["label"] for label in answer["labels"]] == ["red"]
        picture = encode(photo(1))
        corrected = client.post("/v1/correct?category=red&also=new", files=files(picture)).json()
        assert corrected["category"] == "red"
        assert several.references.holders([content_hash(picture)]) == {content_hash(picture): ("new", "red")}
        kept = several.keep(photo(2))
        labelled = client.post("/v1/inbox/label", json={"hashes": [kept], "category": "blue", "also": ["green"]}).json()
        assert labelled["category"] == "blue"
        assert several.references.holders([str(kept)]) == {kept: ("blue", "green")}
        problem(client.post("/v1/inbox/label", json={"hashes": [kept], "category": "red", "also": [""]}), 422, "name")
        problem(client.post("/v1/correct?category=red&category=blue", files=files(picture)), 422, "once")
        assert client.post("/v1/correct?category=red&also=blue&also=new", files=files(picture)).status_code == 200


def test_one_label_takes_one_category(client: TestClient) -> None:
    problem(client.post("/v1/correct?category=red&also=blue", files=files(encode(photo(1)))), 409, "one category")


def test_corrections_are_atomic(client: TestClient, classifier: Classifier) -> None:
    before = state(classifier._store)
    answer = client.post("/v1/correct?category=blue", files=files(encode(photo(1)), b"no image"))
    problem(answer, 422, "photo.png")
    assert state(classifier._store) == before


# The store


def test_undo(client: TestClient) -> None:
    client.delete(path_to("red"))
    client.delete(path_to("blue"))
    [_, of_red, *_] = listed(client, "/v1/history")
    assert client.post("/v1/undo", json={"change": of_red["id"][:8]}).json() == of_red | {"undone": True}
    assert client.post("/v1/undo", json={"category": "blue"}).json()["categories"] == ["blue"]
    problem(client.post("/v1/undo", json={"category": "none"}), 409, "none")
    problem(client.post("/v1/undo", json={"change": "ffffffff"}), 409, "ffffffff")
    problem(client.post("/v1/undo", json={"last": 1}), 422, "last")
    problem(client.post("/v1/undo"), 415)


@pytest.mark.parametrize("author", [None, "ann"])
def test_the_undo_of_a_change_of_another_or_of_many_images_needs_the_id(
    classifier: Classifier, author: str | None
) -> None:
    headers = bearer(WRITE) if author else {}
    with asked(classifier, keys=KEYS if author else None) as client, classifier.history.acting(author):
        classifier.add_category("many", images=[encode(photo(seed)) for seed in range(101)])
        large = next(iter(classifier.history)).id
        for body in ({}, {"category": "many"}):
            answer = client.post("/v1/undo", json=body, headers=headers)
            problem(answer, 409, "101 images", large[:8])
            assert (answer.json()["error"], answer.json()["change"]) == ("change_id_needed", large)
        assert client.post("/v1/undo", json={"change": large}, headers=headers).json()["images"] == 101
        with classifier.history.acting("bob"):
            classifier.add_category("few", texts=["a text"])
        answer = client.post("/v1/undo", json={}, headers=headers)
        problem(answer, 409, "'bob'")
        assert answer.json()["change"] == next(iter(classifier.history)).id


def test_the_author_of_a_change_is_recorded(classifier: Classifier) -> None:
    with asked(classifier, keys=KEYS) as client:
        client.put(path_to("new"), files=files(red(9)), headers=bearer(WRITE))
        client.post("/v1/undo", json={}, headers=bearer(WRITE))
        client.post("/v1/correct?category=x", files=files(red(10)), headers=bearer(WRITE))
        [*changes] = listed(client, "/v1/history", headers=bearer(WRITE))
        stored = listed(client, path_to("x", "references"), headers=bearer(WRITE))
    assert {change["by"] for change in changes if set(change["categories"]) & {"new", "x"}} == {"ann"}
    assert {one["by"] for one in stored} == {"ann"}


def test_unknown_paths(client: TestClient) -> None:
    for path in ("/v1", "/v1/", "/v2/info", "/v1/info/", "/v1//info", "/V1/INFO", "/v1/info%20"):
        problem(client.get(path), 404, "/v1/openapi.json")


def test_methods_that_are_not_allowed(client: TestClient) -> None:
    for path, methods in client.get("/v1/openapi.json").json()["paths"].items():
        taken = {method.upper() for method in methods} | ({"HEAD"} if "get" in methods else set())
        for method in {"GET", "PUT", "PATCH", "POST", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} - taken:
            answer = client.request(method, path.replace("{name}", "red").replace("{hash}", EMPTY_HASH))
            problem(answer, 405, method)
            assert set(answer.headers["allow"].split(", ")) == taken


# Equality with the command line


@pytest.fixture
def store(cli: Callable[..., Result]) -> Path:  # noqa: F811
    """A store with three colours and images that wait, made by the command line."""
    add_images(Path("colours"), range(3))
    Path("new").mkdir()
    for seed in range(6):
        Path("new", f"{seed}.png").write_bytes(encode(coloured("purple", seed)))
    Path("colours", "blue", "copy.png").write_bytes(encode(coloured("red", 0)))
    assert cli("import colours").code == cli("classify --keep all new").code == 0
    return Path(os.environ["ZSVEC_STORE"])


def ask(store: Path, method: str, path: str, **how: Any) -> Any:
    with zsvec.open(str(store)) as classifier, asked(classifier) as client:
        return client.request(method, path, **how).raise_for_status().json()


def lines(result: Result) -> list[str]:
    assert result.code == 0, result.err
    return [json.dumps(line) for line in result.objects]


def as_lines(answer: Any) -> list[str]:
    items = answer.get("items", [answer]) if isinstance(answer, dict) else answer
    return [json.dumps(one) for one in items]


def test_get_equals_the_command_line(cli: Callable[..., Result], store: Path) -> None:  # noqa: F811
    waiting = content_hash(Path("new/0.png"))
    cli(f"inbox label {waiting} purple")
    for path, command in {
        "/v1/categories": "list",
        "/v1/categories/red": "show red",
        "/v1/inbox": "inbox",
        "/v1/inbox?limit=2": "inbox -n 2",
        "/v1/inbox/groups": "inbox groups",
        "/v1/audit": "audit",
        "/v1/history": "history",
        "/v1/history?category=purple": "history purple",
    }.items():
        said = lines(cli(f"{command} --json"))
        assert as_lines(ask(store, "GET", path)) == said
        assert said or "groups" in path


def test_info_tells_version_limits_and_what_the_command_line_tells(
    cli: Callable[..., Result],  # noqa: F811
    store: Path,
) -> None:
    found = ask(store, "GET", "/v1/info")
    [said] = cli("info --json").objects
    limits = {"images": 64, "body_bytes": 64 * 2**20, "queue": 256, "top_k": 1000, "page": 1000}
    assert (found.pop("version"), found.pop("limits")) == (zsvec.__version__, limits)
    assert found.keys() == {"encoders", "categories", "references", "unreadable", "profile", "calibration"} | {
        *("labels", "threshold_progress")
    }
    assert found == {name: said[name] for name in found}
    assert str(store) not in json.dumps(found)


def test_predictions_equal_the_command_line(cli: Callable[..., Result], store: Path) -> None:  # noqa: F811
    for options, query in (("", "?explain=true"), ("--top-k 2", "?explain=true&top_k=2")):
        said = [json.loads(line) for line in lines(cli(f"classify --json {options} new/0.png colours/red/1.png"))]
        content = [Path(name).read_bytes() for name in ("new/0.png", "colours/red/1.png")]
        answers = ask(store, "POST", f"/v1/classify{query}", files=files(*content))
        for answer, line in zip(answers, said, strict=True):
            assert list(answer) == list(line)
            assert rounded(answer) | {"source": "", "hash": ""} == rounded(line) | {"source": "", "hash": ""}


CHANGES: list[tuple[str, str, str, dict[str, Any]]] = [
    ("add panda --text 'a bear'", "PUT", "/v1/categories/panda", {"texts": ["a bear"]}),
    ("add red --text 'a bear'", "POST", "/v1/categories/red/references", {"texts": ["a bear"]}),
    ("rename red crimson", "PATCH", "/v1/categories/red", {"name": "crimson"}),
    ("merge red blue", "PATCH", "/v1/categories/red", {"name": "blue", "merge": True}),
    ("move red blue {red}", "PATCH", "/v1/categories/red/references/{red}", {"category": "blue"}),
    ("inbox label {new} purple", "POST", "/v1/inbox/label", {"hashes": ["{new}"], "category": "purple"}),
    ("correct new/0.png blue", "POST", "/v1/correct?category=blue", {"images": ["{image}"]}),
]


def test_changes_equal_the_command_line(cli: Callable[..., Result], store: Path) -> None:  # noqa: F811
    new, copy = Path("new/0.png").read_bytes(), store.with_name("copy")
    texts = {"{red}": content_hash(Path("colours/red/1.png")), "{new}": content_hash(new)}
    texts["{image}"] = base64.b64encode(new).decode()
    for command, method, path, body in CHANGES:
        sent_body = json.dumps(body)
        for mark, text in texts.items():
            command, path, sent_body = (one.replace(mark, text) for one in (command, path, sent_body))
        shutil.copytree(store, copy)
        [said] = map(json.loads, lines(cli(f"{command} --json")))
        answer = ask(copy, method, path, **sent(sent_body.encode()))
        assert list(answer) == list(said), command
        assert answer | {"updated": ""} == said | {"updated": ""}
        [change, *_] = map(json.loads, lines(cli("history --json")))
        [undone] = map(json.loads, lines(cli(f"undo {change['id']} --json")))
        there = ask(copy, "GET", "/v1/history")["items"][0]
        undone_there = ask(copy, "POST", "/v1/undo", json={"change": there["id"]})
        assert list(undone_there) == list(undone), command
        assert undone_there["categories"] == undone["categories"]
        shutil.rmtree(copy)
