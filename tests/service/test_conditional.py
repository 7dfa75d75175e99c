"""Compare-and-set by ETag and If-Match: of writers who race, exactly one wins; and HEAD."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.service.support import KEYS, READ, asked, bearer, files, images_of, listed, path_to, problem, red
from tests.support import coloured_store, state
from zsvec.classifier import Classifier

RED = path_to("red")
Send = Callable[..., Any]


def if_match(*tags: str) -> dict[str, Any]:
    return {"headers": {"If-Match": ", ".join(tags)}}


def version(client: TestClient, name: str = "red") -> str:
    return str(client.get(path_to(name)).headers["etag"])


CHANGES: dict[str, Callable[[TestClient, dict[str, Any], str], Any]] = {
    "put": lambda client, how, _: client.put(RED, json={"texts": ["scarlet"]}, **how),
    "put the same": lambda client, how, _: client.put(RED, json={"metadata": {}}, **how),
    "add": lambda client, how, _: client.post(f"{RED}/references", json={"texts": ["scarlet"]}, **how),
    "set": lambda client, how, _: client.patch(RED, json={"metadata": {"a": 1}}, **how),
    "change nothing": lambda client, how, _: client.patch(RED, json={}, **how),
    "rename": lambda client, how, _: client.patch(RED, json={"texts": ["scarlet"], "name": "scarlet"}, **how),
    "merge": lambda client, how, _: client.patch(RED, json={"name": "green", "merge": True}, **how),
    "remove": lambda client, how, _: client.delete(RED, **how),
    "move a reference": lambda client, how, one: client.patch(
        f"{RED}/references/{one}", json={"category": "green"}, **how
    ),
    "remove a reference": lambda client, how, one: client.delete(f"{RED}/references/{one}", **how),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_made_for_the_present_version_alone(
    client: TestClient, classifier: Classifier, change: str
) -> None:
    send, one = CHANGES[change], images_of(classifier, "red")[0]
    stale = version(client)
    client.patch(RED, json={"metadata": {"by": "another"}}).raise_for_status()
    current = version(client)
    assert current != stale
    before, recorded = state(classifier._store), list(classifier.history)
    for tags in ([stale], [f"W/{current}"], ['""'], [stale, f"W/{current}", '"a,b"'], [current.strip('"').join("''")]):
        answer = send(client, if_match(*tags), one)
        problem(answer, 422 if "'" in tags[0] else 412)
    assert state(classifier._store) == before
    assert list(classifier.history) == recorded
    assert send(client, if_match(stale, current), one).status_code in (200, 204)


def test_any_version_will_do(client: TestClient) -> None:
    for change in ("put", "set", "remove"):
        assert CHANGES[change](client, if_match("*"), "").status_code in (200, 204)


@pytest.mark.parametrize("change", CHANGES)
def test_exactly_one_of_many_writers_wins(classifier: Classifier, change: str) -> None:
    if change in ("put the same", "change nothing"):
        pytest.skip("it changes nothing, so all may win")
    send, one = CHANGES[change], images_of(classifier, "red")[0]
    with asked(classifier) as client:
        tag = version(client)
        with ThreadPoolExecutor(6) as threads:
            codes = Counter(
                answer.status_code for answer in threads.map(lambda _: send(client, if_match(tag), one), range(6))
            )
    # A reference or a category that is gone needs no version.
    assert codes[200] + codes[204] == 1
    assert codes[412] + codes[404] == 5


def test_no_counted_change_is_lost(classifier: Classifier) -> None:
    def count(client: TestClient) -> int:
        for attempt in range(1000):
            read = client.get(RED)
            metadata = {"count": read.json()["metadata"].get("count", 0) + 1}
            answer = client.patch(RED, json={"metadata": metadata}, **if_match(read.headers["etag"]))
            if answer.status_code == 200:
                return attempt
            assert answer.status_code == 412
        raise AssertionError

    with asked(classifier) as client, ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: count(client), range(20)))
        assert client.get(RED).json()["metadata"] == {"count": 20}


def test_answers_have_the_version(client: TestClient) -> None:
    made = client.put(path_to("a/ж"), json={})
    assert (made.status_code, made.headers["etag"]) == (201, '"1"')
    tag = made.headers["etag"]
    for method, path, how in (
        ("PUT", path_to("a/ж"), {"json": {"texts": ["a", "b"]}, **if_match(tag)}),
        ("POST", path_to("a/ж", "references"), {"files": files(red(7))}),
        ("PATCH", path_to("a/ж"), {"json": {"metadata": {"a": 1}}}),
        ("PATCH", path_to("a/ж"), {"json": {"name": "plain"}}),
    ):
        answer = client.request(method, path, **how)
        assert answer.status_code == 200
        name = answer.json()["category"]
        assert answer.headers["etag"] == version(client, name) == f'"{answer.json()["version"]}"'
        assert (name, answer.headers["etag"]) != ("a/ж", tag)


def test_a_category_is_only_created(client: TestClient) -> None:
    new = path_to("new")
    only_new: dict[str, Any] = {"headers": {"If-None-Match": "*"}}
    assert client.put(new, json={}, **only_new).status_code == 201
    problem(client.put(new, json={"texts": ["other"]}, **only_new), 412)
    problem(client.put(new, json={"texts": ["other"]}, headers={"If-None-Match": f"W/{version(client, 'new')}"}), 412)
    assert client.get(new).json()["texts"] == ["new"]
    client.delete(new)
    problem(client.put(new, json={}, **if_match("*")), 412)
    problem(client.put(new, json={}, **if_match('"0"')), 412)
    problem(client.patch(new, json={}, **if_match('"1"')), 404)
    assert client.put(new, json={}, **only_new).status_code == 201
    both = {"If-Match": version(client, "new"), "If-None-Match": version(client, "new")}
    problem(client.put(new, json={"texts": ["other"]}, headers=both), 412)


def test_only_one_of_many_creates_a_category(classifier: Classifier) -> None:
    with asked(classifier) as client, ThreadPoolExecutor(6) as threads:
        codes = Counter(
            threads.map(
                lambda i: (
                    client.put(
                        path_to("new"), json={"texts": [f"text {i}"]}, headers={"If-None-Match": "*"}
                    ).status_code
                ),
                range(6),
            )
        )
    assert codes == {201: 1, 412: 5}


def test_an_identical_put_changes_nothing(client: TestClient, classifier: Classifier) -> None:
    given: dict[str, Any] = {
        "files": files(red(20), red(21)),
        "data": {"texts": ["one", "two"], "metadata": '{"a": {"b": [1, true]}}'},
    }
    first = client.put(path_to("new"), **given)
    recorded = listed(client, "/v1/history")
    again = client.put(path_to("new"), **given)
    assert (again.status_code, again.json(), again.headers["etag"]) == (200, first.json(), first.headers["etag"])
    assert listed(client, "/v1/history") == recorded
    for changed in ({"metadata": '{"a": {"b": [1, 1]}}'}, {"texts": ["two", "one"]}, {"texts": ["one"]}):
        tag = version(client, "new")
        assert client.put(path_to("new"), **{**given, "data": {**given["data"], **changed}}).headers["etag"] != tag


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_malformed_headers(client: TestClient, classifier: Classifier, header: str) -> None:
    before = state(classifier._store)
    for wrong in ("7", "", "*, *", '"7', '7"', "W/7", 'w/"7"', '"a" b', '"a b"', '"a""b"', "*" * 5000, '"' * 9999):
        problem(client.put(RED, json={"texts": ["x"]}, headers={header: wrong}), 422, header)
    assert state(classifier._store) == before
    many = ", ".join(f'"{number}"' for number in range(1, 5000))
    assert client.put(RED, json={"texts": ["x"]}, headers={header: many}).status_code == (
        200 if header == "If-Match" else 412
    )
    several = [(header, '"0"'), (header, version(client)), ("Content-Type", "application/json")]
    assert client.put(RED, content=b'{"texts":["y"]}', headers=several).status_code == (
        200 if header == "If-Match" else 412
    )


def test_get_with_the_present_version(client: TestClient) -> None:
    tag = version(client)
    for same in (tag, f"W/{tag}", f'"x", {tag}', "*"):
        answer = client.get(RED, headers={"If-None-Match": same})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert client.get(RED, headers={"If-None-Match": '"x"'}).status_code == 200


def test_head_is_get_without_a_body() -> None:
    with coloured_store(2) as classifier:
        [one, *_] = images_of(classifier, "red")
        for keys, headers in ((None, {}), (KEYS, bearer(READ))):
            with asked(classifier, keys=keys) as client:
                for path in (RED, "/v1/categories", f"{RED}/references/{one}/image", "/v1/info", path_to("none")):
                    got, head = client.get(path, headers=headers), client.head(path, headers=headers)
                    assert (head.status_code, head.content) == (got.status_code, b"")
                    for name in ("content-type", "content-length", "etag"):
                        assert head.headers.get(name) == got.headers.get(name)
                problem(client.get("/v1/classify", headers=headers), 405)
                assert "HEAD" not in client.get("/v1/classify", headers=headers).headers["allow"]
                assert "HEAD" in client.post(RED, headers=headers).headers.get("allow", "HEAD")
                if keys:
                    assert client.head(RED).status_code == 401


def test_a_head_that_fails_is_logged_as_head(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("zsvec.classifier.facade.facts", lambda *_: 1 / 0)
    client.event_hooks = {"response": []}
    with caplog.at_level("INFO"):
        assert client.head("/v1/info").status_code == 500
    assert "HEAD /v1/info 500" in caplog.text
