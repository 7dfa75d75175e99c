"""The guard: keys, every route, hosts, origins; and the file of the first key."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import logging
import os
import re
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

import zsvec
from tests.service.support import KEYS, READ, WRITE, asked, bearer, files, images_of, listed, names, problem, red
from tests.support import coloured, encode, photo, state, two_encoders
from zsvec.classifier import Classifier
from zsvec.errors import InvalidInputError
from zsvec.service import create_app
from zsvec.service.auth.guard import COOKIE
from zsvec.service.auth.keys import VARIABLE, Key, Keys, first_key, key_file
from zsvec.service.server import JsonLines

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "x-other")
OPEN = {"/login", "/logout", "/health/live", "/health/ready", "/static/x/red"}


@pytest.fixture
def guarded(classifier: Classifier) -> Iterator[TestClient]:
    """A client of a service with a key to read and a key to write, which follows no redirect."""
    with asked(classifier, keys=KEYS) as client:
        client.follow_redirects = False
        yield client


# Keys


def test_keys_of_the_environment() -> None:
    keys = Keys.from_environment({VARIABLE: f" ann:write:{WRITE} , camera:read:{READ}, "})
    assert keys
    assert [(key.name, key.right) for given in (WRITE, READ) if (key := keys.find(given))] == [
        ("ann", "write"),
        ("camera", "read"),
    ]
    for wrong in ("", WRITE[:-1], WRITE + "x", WRITE.upper(), f" {WRITE}", "\ud800", "é" * 20, "x" * 100_000):
        assert keys.find(wrong) is None
    for nothing in ({}, {VARIABLE: ""}, {VARIABLE: " , ,"}):
        assert not Keys.from_environment(nothing)


def test_invalid_entries_are_refused_without_showing_a_key() -> None:
    entry_1 = [
        f"ann:{WRITE}",
        WRITE,
        f":write:{WRITE}",
        f"a b:write:{WRITE}",
        f"{'a' * 65}:write:{WRITE}",
        f"a\n:write:{WRITE}",
        "ann:write:short",
        "ann:write:",
        "ann:write:" + "é" * 20,
        "ann:write:with a space in it",
        f"{WRITE}:write:ann",  # in the wrong order
    ]
    others = [
        (f"a:write:{WRITE},ann:all:{READ}", "entry 2"),
        (f"ann:write:{WRITE},bob:read:{WRITE}", "'ann' and 'bob'"),
    ]
    for value, words in [*((value, "entry 1") for value in entry_1), *others]:
        with pytest.raises(InvalidInputError) as caught:
            Keys.from_environment({VARIABLE: value})
        assert words in str(caught.value), value
        assert WRITE not in str(caught.value)
        assert "short" not in str(caught.value)


def test_a_name_may_have_two_keys_for_rotation() -> None:
    keys = Keys.from_environment({VARIABLE: f"ann:write:{WRITE},ann:write:{READ}"})
    assert {key.name for given in (WRITE, READ) if (key := keys.find(given))} == {"ann"}


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    keys = Keys(Key(f"k{number}", "read", f"{number:064x}") for number in range(100))
    for given in ("x", WRITE):
        compared.clear()
        keys.find(given)
        assert [len(one) == len(other) == 64 for one, other in compared] == [True] * 100


def test_a_key_is_in_no_representation() -> None:
    key = KEYS.find(WRITE)
    assert key is not None
    for said in (repr(key), str(key), repr(KEYS), repr(vars(KEYS))):
        assert WRITE not in said
        assert key.digest not in said


def test_special_characters_of_a_key_pass_header_and_cookie(classifier: Classifier) -> None:
    secret = "!#$%&'()*+-./:;<=>?@[]^_`{|}~\"\\"
    cookie: SimpleCookie = SimpleCookie()
    cookie[COOKIE] = secret
    with asked(classifier, keys=Keys.from_environment({VARIABLE: f"odd:read:{secret}"})) as client:
        for headers in (bearer(secret), {"Cookie": cookie.output(header="").strip()}):
            assert client.get("/v1/info", headers=headers).status_code == 200


def test_requests_without_a_valid_key_are_refused(guarded: TestClient) -> None:
    wrong: list[dict[str, Any]] = [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {WRITE}"},
        {"Authorization": WRITE},
        {"Authorization": f"Bearer {WRITE}x"},
        {"Authorization": f"Bearer {WRITE} {WRITE}"},
        {"Authorization": f"Bearer é{WRITE}".encode("latin-1")},
        {"Authorization": f"Bearer {WRITE[:-1]}"},
        {"Cookie": f"{COOKIE}="},
        {"Cookie": f"{COOKIE}={WRITE}x"},
        {"Cookie": f"{COOKIE.upper()}={WRITE}"},
        {"Cookie": b"\xff=\xfe; ;=;;"},
        {"X-API-Key": WRITE},
        {"Proxy-Authorization": f"Bearer {WRITE}"},
    ]
    for headers in wrong:
        answer = guarded.get("/v1/info", headers=headers)
        problem(answer, 401, "key")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.headers["cache-control"] == "no-store"
    assert guarded.get(f"/v1/info?key={WRITE}&access_token={WRITE}").status_code == 401


def test_a_key_is_accepted_in_the_header_or_the_cookie(guarded: TestClient) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert guarded.get("/v1/info", headers={"Authorization": f"{scheme} {READ}"}).status_code == 200
    others = f"a=b; broken cookie; {COOKIE}={READ}; _x=é"
    assert guarded.get("/v1/info", headers=[(b"Cookie", others.encode("latin-1"))]).status_code == 200


# Every route


def routes(found: Iterable[Any]) -> Iterator[tuple[str, str]]:
    """Path and method of each route of an application with nested routers."""
    for route in found:
        if hasattr(route, "original_router"):
            yield from routes(route.original_router.routes)
        elif hasattr(route, "methods"):
            yield from ((route.path, method) for method in route.methods or ())
        else:
            yield route.path, "GET"


def everything(classifier: Classifier) -> Any:
    waiting = sorted(image.hash for image in classifier._store.inbox.read() if image.state == "waiting")
    changes = [change.to_dict() for change in classifier.history]
    return state(classifier._store), waiting, changes, classifier._store.calibration()


def bodies(one: str, waiting: str) -> list[dict[str, Any]]:
    """Bodies that some route may read as a change."""
    wishes = {
        "texts": ["x"],
        "metadata": {"a": 1},
        "name": "blue",
        "new": "other",
        "merge": True,
        "category": "blue",
        "hashes": [waiting],
        "hash": one,
        "reference": f"{one}:red",
        "images": ["AAAA"],
    }
    return [
        {},
        {"json": {}},
        {"json": wishes},
        *({"json": {name: value}} for name, value in wishes.items()),
        {"json": {"hashes": [waiting], "category": "blue"}},
        {"json": {"name": "blue", "merge": True}},
        {"data": {name: value if isinstance(value, str) else json.dumps(value) for name, value in wishes.items()}},
        {"files": files(red(99))},
        {"files": files(red(99)), "data": {"category": "blue", "name": "blue", "reference": f"{one}:red"}},
    ]


@pytest.fixture
def paths(classifier: Classifier) -> list[tuple[str, str]]:
    """Path and method of every route, for an existing category, reference and image of the inbox."""
    app = create_app(classifier)
    waiting = classifier.keep(photo(1))
    one = images_of(classifier, "red")[0]
    found = set(routes(app.routes))
    described = app.openapi()["paths"]
    assert {(path, method.upper()) for path, methods in described.items() for method in methods} <= found
    filled = set()
    for path, method in found:
        hash_ = waiting if "inbox" in path else one
        full = path.replace("{name}", "red").replace("{hash}", str(hash_))
        filled.add((re.sub(r"\{[^}]*\}", "x", full), method))
    return sorted(filled)


def test_without_a_key_only_open_routes_answer(
    guarded: TestClient, paths: list[tuple[str, str]], classifier: Classifier
) -> None:
    before = everything(classifier)
    for path, route_method in paths:
        for method in {route_method, *METHODS}:
            answer = guarded.request(method, path)
            if path not in OPEN:
                assert answer.status_code == 401
                page = guarded.request(method, path, headers={"Accept": "text/html"})
                if path.startswith("/v1/"):
                    assert page.status_code == 401
                else:
                    assert (page.status_code, page.headers["location"], page.content) == (303, "/login", b"")
    assert {path for path, _ in paths} >= OPEN
    assert everything(classifier) == before


def test_with_a_key_to_read_nothing_can_be_changed(
    guarded: TestClient, paths: list[tuple[str, str]], classifier: Classifier
) -> None:
    before = everything(classifier)
    waiting = before[1][0]
    one = images_of(classifier, "red")[0]
    let_in = set()
    for path, method in paths:
        for body in bodies(one, waiting) if method not in ("GET", "HEAD") else [{}]:
            answer = guarded.request(method, path, **body, headers=bearer(READ))
            assert answer.status_code != 401 or path == "/login"
            if answer.status_code != 403:
                let_in.add((method, path))
        guarded.cookies.clear()
    assert everything(classifier) == before
    changing = {(method, path) for method, path in let_in if method not in ("GET", "HEAD")}
    classifying = ("/v1/classify", "/v1/classify/regions", "/v1/classify/track", "/classify", "/classify/combined")
    assert changing <= {("POST", path) for path in (*classifying, "/login", "/logout")}
    assert changing >= {("POST", path) for path in classifying}


def test_with_a_key_to_write_every_route_is_open(guarded: TestClient, paths: list[tuple[str, str]]) -> None:
    for path, method in paths:
        if path == "/live/events":  # does not end
            continue
        answer = guarded.request(method, path, headers=bearer(WRITE))
        assert answer.status_code not in (401, 403) or path == "/login"
        guarded.cookies.clear()


def test_no_path_bypasses_the_guard(classifier: Classifier) -> None:
    """Sent raw, because a client would normalise it."""
    paths = r"""
        //v1/info /v1/../login /login/../v1/info /static/../v1/info /static/%2e%2e/v1/info
        /static/..%2fv1%2finfo /health/../v1/info /health/live/../../v1/info /health/ /health/metrics /%6cogin
        /LOGIN /login/ /login/x /login;/v1/info /login%2f..%2fv1%2finfo /loginx /logout/../v1/categories
        /v1/info#/login /v1%2finfo /./v1/info \v1\info http://localhost/v1/info
    """
    app = create_app(classifier, keys=KEYS)
    for path in paths.split():
        for method in ("GET", "POST", "DELETE"):
            status, _, body = asyncio.run(send(app, method, path.encode(), {"host": "localhost"}))
            assert status in (401, 404), (method, path)
            assert b"categories" not in body.replace(b"/v1/categories", b"")


async def send(
    app: Any, method: str, path: bytes, headers: dict[str, str], more: Iterable[tuple[bytes, bytes]] = ()
) -> tuple[int, Headers, bytes]:
    """Sends a raw path and raw headers."""
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path.decode("latin-1"),
        "raw_path": path,
        "query_string": b"",
        "headers": [*raw, *more],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    got: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def take(message: Any) -> None:
        got.append(message)

    await app(scope, receive, take)
    body = b"".join(message.get("body", b"") for message in got[1:])
    return got[0]["status"], Headers(raw=got[0]["headers"]), body


def test_a_websocket_is_closed(guarded: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), guarded.websocket_connect("/v1/info", headers=bearer(WRITE)):
        pass


# Hosts


def test_without_keys_only_names_of_this_machine_are_served(classifier: Classifier) -> None:
    names_of_this_machine = "localhost LOCALHOST:8000 127.0.0.1 127.0.0.1:1 127.9.9.9 [::1] [::1]:8000 localhost:"
    others = """
        evil.example evil.example:8000 127.0.0.1.evil.example localhost.evil.example evil.example. localhost.
        127.0.0.1. evil.example@localhost localhost@evil.example localhost:80@evil.example localhost/evil
        localhost#evil localhost,evil.example [::1 [::ffff:1.2.3.4] [fe80::1] ::1 0.0.0.0 192.168.0.1
        10.0.0.1:8000 2130706433 0x7f.1 127.1
    """
    app = create_app(classifier)
    for host in names_of_this_machine.split():
        assert asyncio.run(send(app, "GET", b"/v1/info", {"host": host}))[0] == 200, host
    for host in (
        *others.split(),
        "",
        "localhost evil.example",
        "localhost\x00",
        "ⓛocalhost".encode().decode("latin-1"),
    ):
        for path in (b"/v1/info", b"/", b"/login", b"/health/live", b"/metrics", b"/static/x/x"):
            status, _, body = asyncio.run(send(app, "GET", path, {"host": host}))
            assert (status, json.loads(body)["status"]) == (403, 403), (host, path)


def test_no_host_and_two_hosts(classifier: Classifier) -> None:
    for keys, absent in ((Keys(), 403), (KEYS, 200)):
        app = create_app(classifier, keys=keys)
        given = {"authorization": f"Bearer {READ}"}
        assert asyncio.run(send(app, "GET", b"/v1/info", given))[0] == absent
        for second in (b"localhost", b"evil.example"):
            found = asyncio.run(send(app, "GET", b"/v1/info", {"host": "localhost", **given}, [(b"host", second)]))
            assert found[0] == 400


# Origins

SITES = (None, "same-origin", "none", "same-site", "cross-site", "x")
ORIGINS = (None, "http://localhost", "http://localhost:1", "http://evil.example", "null", "http://[", "", "localhost")


@pytest.mark.parametrize("cookie", [False, True])
def test_cross_origin_requests_are_refused(guarded: TestClient, cookie: bool) -> None:
    asked_for: list[tuple[str, str, Any, int]] = [
        ("GET", "/v1/info", {}, 200),
        ("POST", "/v1/undo", {"json": {"change": "ffffffff"}}, 409),
        ("DELETE", "/v1/categories/none", {}, 404),
        ("POST", "/login", {"data": {"key": WRITE}}, 303),
    ]
    for site, origin in itertools.product(SITES, ORIGINS):
        given = {"Sec-Fetch-Site": site, "Origin": origin}
        headers = {name: value for name, value in given.items() if value is not None}
        headers |= {"Cookie": f"{COOKIE}={WRITE}"} if cookie else bearer(WRITE)
        same_origin = site in (None, "same-origin", "none") and origin in (None, "http://localhost")
        known = not cookie or site is not None or origin is not None
        for method, path, how, status in asked_for:
            answer = guarded.request(method, path, headers=headers, **how)
            let_in = same_origin and (known or method == "GET")
            assert answer.status_code == (status if let_in else 403), (site, origin, method, path)
            guarded.cookies.clear()
    assert names(guarded, headers=bearer(READ)) == ["blue", "green", "red"]


@pytest.mark.parametrize("keys", [Keys(), KEYS], ids=["no keys", "keys"])
def test_another_origin_may_only_link(classifier: Classifier, keys: Keys) -> None:
    requests = [
        ("navigate", "document", "GET"),  # a link
        ("navigate", "iframe", "GET"),
        ("navigate", "frame", "GET"),
        ("navigate", "embed", "GET"),
        ("navigate", "object", "GET"),
        ("navigate", "document", "POST"),  # a form
        ("no-cors", "image", "GET"),
        ("no-cors", "script", "GET"),
        ("no-cors", "empty", "POST"),
        ("cors", "empty", "GET"),
        ("cors", "empty", "OPTIONS"),
        ("websocket", "websocket", "GET"),
        ("", "", "GET"),
    ]
    with asked(classifier, keys=keys) as client:
        for site, (mode, dest, method) in itertools.product(("cross-site", "same-site"), requests):
            headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest, **bearer(WRITE)}
            answer = client.request(method, "/v1/categories", headers=headers)
            is_link = (mode, dest, method) == requests[0]
            assert answer.status_code == (200 if is_link else 403), (site, mode, dest, method)
            assert "access-control-allow-origin" not in answer.headers


def test_an_origin_must_match_the_host(classifier: Classifier) -> None:
    app = create_app(classifier, keys=KEYS)
    for host, origin, let_in in [
        ("zsvec.example", "https://zsvec.example", True),
        ("ZSVEC.example", "https://zsvec.EXAMPLE", True),
        ("zsvec.example:443", "https://zsvec.example", True),  # of some proxies
        ("zsvec.example:80", "http://zsvec.example", True),
        ("zsvec.example:8443", "https://zsvec.example:8443", True),
        ("zsvec.example:8443", "https://zsvec.example", False),
        ("zsvec.example:443", "http://zsvec.example", False),
        ("zsvec.example", "file://zsvec.example", False),
        ("zsvec.example", "moz-extension://zsvec.example", False),
        ("", "null", False),
        ("", "http://", False),
    ]:
        headers = {"host": host, "origin": origin, "authorization": f"Bearer {READ}"}
        assert asyncio.run(send(app, "GET", b"/v1/info", headers))[0] == (200 if let_in else 403), (host, origin)


# Logs


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Lines of all loggers, as `--log-json` writes them."""
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not record.name.startswith("httpx"):  # the client
                lines.append(self.format(record))

    handler = Lines()
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


def test_keys_are_in_no_log_and_no_answer(guarded: TestClient, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = (READ, WRITE, "a-wrong-0123456789")
    answers = []
    for secret in secrets:
        quoted = secret.replace("-", "%2D")
        for headers in (
            bearer(secret),
            {"Cookie": f"{COOKIE}={secret}"},
            {"Authorization": f"Basic {secret}"},
            {"X-Request-ID": "x" * 65 + secret, **bearer(READ)},
        ):
            paths = ("/v1/info", "/v1/none", f"/v1/info?key={secret}&token={quoted}")
            answers += [guarded.get(path, headers=headers) for path in paths]
            answers.append(guarded.post("/v1/undo", headers=headers))
        answers.append(guarded.post("/login", data={"key": secret}))
        guarded.cookies.clear()
        answers.append(guarded.get("/metrics", headers=bearer(WRITE)))
    with monkeypatch.context() as patch:  # a defect, and its traceback
        patch.setattr("zsvec.classifier.facade.facts", lambda *_: 1 / 0)
        guarded.event_hooks = {"response": []}
        broken = guarded.get("/v1/info", headers=bearer(WRITE))
    assert broken.status_code == 500
    assert "ZeroDivisionError" in "\n".join(log)
    assert "ZeroDivisionError" not in broken.text
    given = [f"{answer.text}{dict(answer.headers) | {'set-cookie': ''}}" for answer in [*answers, broken]]
    for secret in secrets:
        assert not [said for said in [*given, *log] if secret in said or secret.replace("-", "%2D") in said]
    assert any('"key": "ann"' in line for line in log)


# The first key


def test_the_first_key_is_shown_once(tmp_path: Path) -> None:
    folder = tmp_path / "state" / "zsvec"
    keys, secret = first_key(folder)
    assert secret is not None
    assert len(secret) >= 40
    found = keys.find(secret)
    assert found is not None
    assert (found.name, found.right) == ("owner", "write")
    assert secret not in key_file(folder).read_text()
    again, shown = first_key(folder)
    assert shown is None
    assert again.find(secret) == found
    assert [file.name for file in folder.iterdir()] == [key_file(folder).name]
    key_file(folder).unlink()
    assert first_key(folder)[0].find(secret) is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
def test_other_users_cannot_read_the_file_or_its_folder(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        first_key(tmp_path / "zsvec")
    finally:
        os.umask(before)
    assert stat.S_IMODE(key_file(tmp_path / "zsvec").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "zsvec").stat().st_mode) == 0o700


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other rights")
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in (0o777, 0o770, 0o722):
        tmp_path.chmod(mode)
        with pytest.raises(InvalidInputError, match=f"others may write to .*set {VARIABLE}"):
            first_key(tmp_path)
    tmp_path.chmod(0o700)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(InvalidInputError, match="others may write"):
        first_key(tmp_path)
    assert not key_file(tmp_path).exists()


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "zsvec"
    folder.mkdir(mode=0o700)
    (tmp_path / "elsewhere").write_text("0" * 64)
    for target in ("elsewhere", "missing"):
        key_file(folder).symlink_to(tmp_path / target)
        with pytest.raises(InvalidInputError, match="no key can be kept"):
            first_key(folder)
        key_file(folder).unlink()
    assert not (tmp_path / "missing").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_named_pipe_in_place_of_the_file_does_not_block(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    os.mkfifo(key_file(tmp_path))
    found: list[BaseException] = []

    def start() -> None:
        try:
            first_key(tmp_path)
        except InvalidInputError as exc:
            found.append(exc)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join(5)
    assert "no key can be kept" in str(found)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for content in (b"", b"x", b"0" * 63, b"0" * 65, b"G" * 64, b"\xff" * 64, b"0" * 10_000_000):
        key_file(tmp_path).write_bytes(content)
        with pytest.raises(InvalidInputError, match=re.escape(str(key_file(tmp_path)))) as caught:
            first_key(tmp_path)
        assert len(str(caught.value)) < 500
    key_file(tmp_path).unlink()
    key_file(tmp_path).mkdir()
    with pytest.raises(InvalidInputError, match="no key can be kept"):
        first_key(tmp_path)


def test_of_concurrent_starts_one_shows_the_key(tmp_path: Path) -> None:
    number = 16
    together = threading.Barrier(number)

    def start(_: int) -> tuple[Keys, str | None]:
        together.wait()
        return first_key(tmp_path / "zsvec")

    for _ in range(5):
        with ThreadPoolExecutor(number) as pool:
            found = list(pool.map(start, range(number)))
        [secret] = [shown for _, shown in found if shown]
        assert all(keys.find(secret) for keys, _ in found)
        key_file(tmp_path / "zsvec").unlink()


def test_a_key_to_read_evicts_no_image_that_a_key_to_write_has_kept() -> None:
    with zsvec.open(":memory:", encoders=two_encoders(), keep="uncertain", inbox_size=2) as classifier:
        for colour in ("red", "green", "blue"):
            classifier.add_category(colour, images=[coloured(colour, 1)])
        with asked(classifier, keys=KEYS) as client:
            sent = client.post("/v1/inbox", files=files(encode(photo(1))), headers=bearer(WRITE))
            [kept] = sent.json()
            for seed in range(10, 16):
                answer = client.post("/v1/classify", files=files(encode(photo(seed))), headers=bearer(READ))
                assert answer.status_code == 200
            waiting = listed(client, "/v1/inbox", headers=bearer(READ))
    assert kept["hash"] in {image["hash"] for image in waiting}
    assert len(waiting) == 2
