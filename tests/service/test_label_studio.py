"""The machine learning backend of Label Studio, called over HTTP as Label Studio does.

``label_studio_requests.json`` has the bodies that Label Studio 1.23.2 sent, without its tokens.
"""

from __future__ import annotations

import base64
import gzip
import json
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cli.support import Cli, cli, colours, filled, finish, hash_encoders, start
from tests.qdrant import DEADLINE, wait_until
from tests.service.servers import Running, head, running
from tests.service.support import KEYS, READ, WRITE, bearer
from tests.support import coloured, coloured_store, encode
from zsvec import content_hash
from zsvec.classifier import Classifier
from zsvec.errors import InvalidInputError
from zsvec.service.label_studio import LabelStudio
from zsvec.service.label_studio.config import control_of
from zsvec.service.problems import Problem

__all__ = ["cli", "colours", "filled", "hash_encoders"]

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("label_studio_requests.json").read_bytes())
TOKEN = "token-0123456789"
PERSONAL = "eyJ.payload.signature"
BASIC = {"read": ("camera", READ), "write": ("ann", WRITE)}
CONFIG = """
<View><!-- a comment -->
  <Image name="photo" value="$image"/>
  <Choices name="kind" toName="photo" {more}>
    <Choice value="red"/><Choice value="blue"/><Choice value="Sunset" alias="orange"/>
  </Choices>
</View>
"""
SINGLE, MULTIPLE = CONFIG.format(more=""), CONFIG.format(more='choice="multiple"')


@dataclass
class Fake:
    """A Label Studio: files, redirects, and the paths and tokens of its requests."""

    port: int = 0
    takes: str = f"Token {TOKEN}"  # the authorization that is valid now
    renewal: bytes = b'{"access": "access-%d"}'  # answer to the personal access token
    renewal_encoding: str = "identity"
    renewal_status: int = 200
    renewed: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    held: threading.Event | None = None  # until which files below /data/held/ are not sent
    drip_s: float = 0.0  # pause after each byte of files below /data/slow/

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving() -> Iterator[Fake]:
    """Serves files to requests with the token."""
    fake = Fake()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("Authorization")
            fake.asked.append((self.path, token))
            if fake.held and self.path.startswith("/data/held/"):
                fake.held.wait(DEADLINE)
            content = fake.files.get(self.path)
            if target := fake.redirects.get(self.path):
                self.send_response(302)
                self.send_header("Location", target)
            elif token != fake.takes:
                self.send_response(401)
            else:
                self.send_response(404 if content is None else 200)
            self.end_headers()
            if self.path.startswith("/data/slow/"):
                with suppress(ConnectionError):
                    for byte in content or b"":
                        self.wfile.write(bytes([byte]))
                        time.sleep(fake.drip_s)
                return
            self.wfile.write(content or b"")

        def do_POST(self) -> None:
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if (self.path, sent) != ("/api/token/refresh/", {"refresh": PERSONAL}):
                self.send_response(401)
                self.end_headers()
                return
            fake.renewed += 1
            fake.takes = f"Bearer access-{fake.renewed}"
            self.send_response(fake.renewal_status)
            self.send_header("Content-Encoding", fake.renewal_encoding)
            self.end_headers()
            self.wfile.write(fake.renewal.replace(b"%d", b"%d" % fake.renewed))

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        fake.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def fake() -> Iterator[Fake]:
    with serving() as fake:
        fake.files = {
            "/data/upload/1/red.png": encode(coloured("red", 50)),
            "/data/upload/1/orange.png": encode(coloured("orange", 50)),
            "/data/local-files/?d=blue/1.png": encode(coloured("blue", 50)),
        }
        yield fake


@contextmanager
def connected(
    classifier: Classifier, fake: Fake, *, right: str | None = "write", token: str | None = TOKEN
) -> Iterator[tuple[httpx.Client, Running]]:
    """Label Studio's client of a service. With a right, the service has keys."""
    studio = LabelStudio(fake.url, token)
    with running(classifier, keys=KEYS if right else None, label_studio=studio) as service:
        auth = httpx.BasicAuth(*BASIC[right]) if right else None
        with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", auth=auth, timeout=60) as client:
            yield client, service


@pytest.fixture
def client(classifier: Classifier, fake: Fake) -> Iterator[httpx.Client]:
    with connected(classifier, fake) as (client, _):
        yield client


def asked_for(*images: object, config: str = SINGLE) -> dict[str, Any]:
    """The body of a request for predictions."""
    body: dict[str, Any] = RECORDED["predict"]
    task = body["tasks"][0]
    tasks = [{**task, "id": number, "data": {"image": image}} for number, image in enumerate(images)]
    return {**body, "tasks": tasks, "label_config": config}


def results(client: httpx.Client, *images: object, config: str = SINGLE) -> list[dict[str, Any]]:
    found = client.post("/predict", json=asked_for(*images, config=config)).raise_for_status().json()
    assert found.keys() == {"results"}
    assert len(found["results"]) == len(images)
    return list(found["results"])


def chosen(result: dict[str, Any]) -> list[str]:
    return [name for one in result["result"] for name in one["value"]["choices"]]


def event(image: str, *choices: str, action: str = "ANNOTATION_CREATED", config: str = SINGLE, **more: Any) -> Any:
    """The body of a webhook."""
    body = deepcopy(RECORDED[action])
    body["project"]["label_config"] = config
    several = isinstance(body["annotation"], list)
    for task in body["task"] if several else [body["task"]]:
        task["data"]["image"] = image
    for annotation in body["annotation"] if several else [body["annotation"]]:
        annotation.update(more)
        if choices:
            annotation["result"][0]["value"]["choices"] = [*choices]
        else:
            annotation["result"] = []
    return body


def test_a_task_labelled_end_to_end(client: httpx.Client, classifier: Classifier, fake: Fake) -> None:
    assert client.get("/health").json() == {"status": "UP", "model_class": "zsvec"}
    setup = {**RECORDED["setup"], "schema": SINGLE}
    version = client.post("/setup", json=setup).raise_for_status().json()["model_version"]
    image = "/data/upload/1/orange.png"
    (before,) = results(client, image)
    assert before["model_version"] == version
    assert chosen(before) != ["orange"]

    answer = client.post("/webhook", json=event(image, "orange"))
    assert (answer.status_code, answer.json()) == (201, {"status": "ok", "result": {"changed": True}})

    after, red = results(client, image, "/data/upload/1/red.png")
    (result,) = after["result"]
    assert (result["from_name"], result["to_name"], result["type"]) == ("kind", "photo", "choices")
    assert result["value"] == {"choices": ["orange"]}
    assert 0.5 < result["score"] == after["score"] <= 1
    assert int(after["model_version"]) > int(version)
    assert client.get("/versions").raise_for_status().json() == {"versions": [after["model_version"]]}
    assert chosen(red) == ["red"]
    assert classifier.category("orange").images == 1
    assert [change.by for change in classifier.history if "orange" in change.categories] == ["ann"]
    assert {token for _, token in fake.asked} == {f"Token {TOKEN}"}


def test_the_version_is_of_the_answer(
    client: httpx.Client, classifier: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def setup() -> int:
        return int(client.post("/setup", json={"schema": SINGLE}).raise_for_status().json()["model_version"])

    def versions(*images: str) -> list[int]:
        return [int(one["model_version"]) for one in results(client, *images)]

    red, missing = "/data/upload/1/red.png", "/data/upload/1/missing.png"
    classifier.add_category("green", images=[coloured("green", 9000)])
    begun = setup()
    assert versions(red, missing) == [begun, begun]
    classifier.remove_category("green")  # the newest one
    removed = setup()
    assert removed > begun
    assert versions(missing, red) == [removed, removed]

    answer = Classifier.classify

    def changed_before(self: Classifier, *arguments: Any, **more: Any) -> Any:
        classifier.add_category("blue", images=[coloured("blue", 9001)])
        return answer(self, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "classify", changed_before)
        (during,) = versions(red)
    assert during == classifier.category("blue").rev > removed
    classifier.calibrate()
    assert (setup(), versions(red)) == (during, [during])


def test_a_webhook_repeated_at_once_changes_nothing(client: httpx.Client, classifier: Classifier) -> None:
    image = "/data/upload/1/red.png"
    assert client.post("/webhook", json=event(image, "blue")).json()["result"] == {"changed": True}
    changes, blue = len(list(classifier.history)), classifier.category("blue")
    for action in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED"):
        assert client.post("/webhook", json=event(image, "blue", action=action)).json()["result"] == {"changed": False}
    assert (len(list(classifier.history)), classifier.category("blue")) == (changes, blue)
    client.post("/webhook", json=event(image, "red", action="ANNOTATION_UPDATED")).raise_for_status()
    assert (classifier.category("blue").images, classifier.category("red").images) == (3, 4)


def test_the_newest_annotation_of_an_image_counts(client: httpx.Client, classifier: Classifier) -> None:
    image = "/data/upload/1/red.png"

    def annotated(choice: str, second: int | None) -> tuple[bool, int, int]:
        at = None if second is None else f"2026-11-30T19:17:{second:02}.5+00:00"
        body = event(image, choice, updated_at=at, id=choice)
        answer = client.post("/webhook", json=body).raise_for_status().json()
        return answer["result"]["changed"], classifier.category("blue").images, classifier.category("red").images

    assert annotated("blue", 20) == (True, 4, 3)
    assert annotated("red", 10) == (False, 4, 3)
    assert annotated("red", 30) == (True, 3, 4)
    assert annotated("blue", 20) == (False, 3, 4)
    classifier.history.undo(change=next(iter(classifier.history)).id)
    assert annotated("red", 30) == (True, 3, 4)
    assert annotated("blue", None) == (True, 4, 3)


def test_an_annotation_dated_in_the_future_silences_no_later_one(client: httpx.Client, classifier: Classifier) -> None:
    def annotated(choice: str, at: object) -> bool:
        answer = client.post("/webhook", json=event("/data/upload/1/red.png", choice, updated_at=at, id=choice))
        changed: bool = answer.raise_for_status().json()["result"]["changed"]
        return changed

    def from_now(**ahead: int) -> str:
        return (datetime.now(UTC) + timedelta(**ahead)).isoformat()

    assert annotated("blue", "9999-12-31T23:59:59.999999-23:59")
    assert not annotated("red", from_now(hours=-1))  # earlier, and late
    assert annotated("red", from_now())
    assert annotated("blue", from_now(days=2))
    assert annotated("red", from_now(days=1))
    assert not annotated("blue", "0001-01-01T00:00:00+23:59")
    assert annotated("blue", from_now(minutes=2))  # as of a clock that is ahead
    assert not annotated("red", from_now(minutes=1))
    assert annotated("red", None)


@pytest.mark.parametrize("at", ["2026-11-30T19:17:20", "10000-01-01T00:00:00Z", "tomorrow", [], {}, True])
def test_an_annotation_needs_a_date_with_a_time_zone(client: httpx.Client, classifier: Classifier, at: object) -> None:
    answer = client.post("/webhook", json=event("/data/upload/1/red.png", "blue", updated_at=at))
    assert answer.status_code == 422
    assert classifier.category("blue").images == 3


def test_a_late_annotation_of_another_project_counts(fake: Fake) -> None:
    image, elsewhere = "/data/upload/1/orange.png", MULTIPLE.replace("red", "round")
    with coloured_store(3, labels="many") as classifier, connected(classifier, fake) as (client, _):
        classifier.add_category("round", images=[coloured("green", 9000)])
        for choice, config, second in (("red", MULTIPLE, 20), ("round", elsewhere, 10), ("blue", MULTIPLE, 15)):
            at = f"2026-11-30T19:17:{second}Z"
            client.post("/webhook", json=event(image, choice, config=config, updated_at=at)).raise_for_status()
        known = content_hash(fake.files[image])
        assert classifier.references.holders([known])[known] == ("red", "round")


@pytest.mark.parametrize(
    "body",
    [
        event("/data/upload/1/red.png"),
        event("/data/upload/1/red.png", "blue", was_cancelled=True),
        event("/data/upload/1/red.png", "blue", action="ANNOTATIONS_CREATED"),  # copies of predictions
        RECORDED["skipped"],
        RECORDED["ANNOTATIONS_DELETED"],
        RECORDED["START_TRAINING"],
        {"action": "TASKS_CREATED", "tasks": [{"id": 1}]},
    ],
)
def test_other_events_change_nothing(client: httpx.Client, classifier: Classifier, body: Any) -> None:
    before = classifier.categories()
    assert client.post("/webhook", json=body).is_success
    assert classifier.categories() == before


def test_several_choices(fake: Fake) -> None:
    with coloured_store(3, labels="many") as classifier, connected(classifier, fake) as (client, _):
        image = "/data/upload/1/orange.png"
        client.post("/webhook", json=event(image, "orange", "red", config=MULTIPLE)).raise_for_status()
        held = classifier.references.holders([one.hash for one in classifier.references.of("orange")])
        assert ("orange", "red") in held.values()
        again = client.post("/webhook", json=event(image, "red", "orange", config=MULTIPLE))
        assert again.json()["result"] == {"changed": False}
        (several,) = results(client, image, config=MULTIPLE)
        (single,) = results(client, image)
        assert len(chosen(single)) <= 1
        assert set(chosen(single)) <= set(chosen(several)) <= {"orange", "red", "blue"}


def test_an_annotation_keeps_categories_of_other_projects(fake: Fake) -> None:
    image, elsewhere = "/data/upload/1/orange.png", MULTIPLE.replace("red", "round").replace("blue", "caf\u0065\u0301")
    with coloured_store(3, labels="many") as classifier, connected(classifier, fake) as (client, _):
        for seed, name in enumerate(["round", "orange", "caf\u00e9"]):  # a category keeps its last image
            classifier.add_category(name, images=[coloured("green", 9000 + seed)])

        def annotated(*choices: str, config: str) -> tuple[bool, tuple[str, ...]]:
            answer = client.post("/webhook", json=event(image, *choices, config=config)).raise_for_status()
            known = content_hash(fake.files[image])
            return answer.json()["result"]["changed"], classifier.references.holders([known])[known]

        assert annotated("round", config=elsewhere) == (True, ("round",))
        assert annotated("red", config=MULTIPLE) == (True, ("red", "round"))
        assert annotated("red", config=MULTIPLE) == (False, ("red", "round"))
        assert annotated("blue", "orange", config=MULTIPLE) == (True, ("blue", "orange", "round"))
        # Orange is a choice of both projects. The stored form of the other choice has the accent composed.
        assert annotated("caf\u0065\u0301", config=elsewhere)[1] == ("blue", "caf\u00e9")
        assert annotated("orange", config=elsewhere)[1] == ("blue", "orange")


def test_annotations_of_an_image_at_the_same_time(fake: Fake) -> None:
    image, elsewhere = "/data/upload/1/orange.png", MULTIPLE.replace("red", "round")
    bodies = [event(image, "round", config=elsewhere), event(image, "red", config=MULTIPLE)]
    with (
        coloured_store(3, labels="many") as classifier,
        connected(classifier, fake) as (client, _),
        ThreadPoolExecutor(2) as threads,
    ):
        classifier.add_category("orange", images=[coloured("green", 9000), fake.files[image]])
        reading, read = classifier.references.holders, threading.Barrier(2)

        def holders(hashes: Collection[str]) -> dict[str, tuple[str, ...]]:
            found = reading(hashes)
            with suppress(threading.BrokenBarrierError):
                read.wait(0.5)  # for the other annotation, which must not have read yet
            return found

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(classifier.references), "holders", lambda _, hashes: holders(hashes))
            answers = list(threads.map(lambda body: client.post("/webhook", json=body), bodies))
        assert [answer.status_code for answer in answers] == [201, 201]
        known = content_hash(fake.files[image])
        assert reading([known])[known] == ("red", "round")


def test_several_choices_need_a_store_of_several_labels(client: httpx.Client) -> None:
    answer = client.post("/webhook", json=event("/data/upload/1/red.png", "red", "blue", config=MULTIPLE))
    assert answer.status_code == 409


def test_images_of_tasks(client: httpx.Client, classifier: Classifier, fake: Fake) -> None:
    uri = "data:image/png;base64," + base64.b64encode(encode(coloured("red", 60))).decode()
    fake.files["/data/upload/1/text.png"] = b"no image"
    fake.files["/data/upload/1/green.png"] = encode(coloured("green", 50))
    unusable = [
        None,
        7,
        "",
        "/data/upload/1/missing.png",
        "/data/upload/1/text.png",
        "data:image/png;base64,?",
        "data:,a",
    ]
    usable = [f"{fake.url}/data/upload/1/red.png", uri, "/data/local-files/?d=blue/1.png"]
    found = results(client, *usable, *unusable, "/data/upload/1/green.png", "/data/upload/1/red.png")
    assert [chosen(one) for one in found[:3]] == [["red"], ["red"], ["blue"]]
    assert all((one["result"], one["score"]) == ([], 0.0) for one in found[3:-1])  # green is no choice
    assert chosen(found[-1]) == ["red"]
    refused = client.post("/webhook", json=event("/data/upload/1/missing.png", "red"))
    assert refused.status_code == 422
    assert TOKEN not in refused.text


def test_nothing_is_fetched_from_elsewhere(client: httpx.Client, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    image = encode(coloured("red", 50))
    with serving() as other:
        monkeypatch.setenv("HTTP_PROXY", other.url)
        other.files["/data/upload/1/red.png"] = image
        host, path = f"127.0.0.1:{other.port}", "/data/upload/1/red.png"
        fake.redirects["/data/upload/1/moved.png"] = other.url + path
        fake.redirects["/data/upload/1/inside.png"] = "/data/upload/1/red.png"
        own = fake.url.removeprefix("http://")
        refused = [
            other.url + path,
            f"//{host}{path}",
            f"/\\{host}{path}",
            f"\\\\{host}{path}",
            f"http://{own}@{host}{path}",
            f"http://user:password@{own}{path}",
            f"http://{host}\\@{own}{path}",
            f"http://{host}#@{own}{path}",
            f"https://{own}{path}",
            f"http://localhost:{fake.port}{path}",
            "/data/upload/1/moved.png",
            "/data/upload/1/inside.png",
            f"file://{__file__}",
            __file__,
            "s3://bucket/a.png",
            "/api/projects/1/export",
            "/data/../api/projects",
            "/data/%2e%2e/api/projects",
            "/data/%252e%252e/api/projects",
            "/data/..\\api",
            "http://[::1",
            "/data/a\r\nX: b",
            "/data/" + "a" * 100_000,
        ]
        assert all(one["result"] == [] for one in results(client, *refused))
        assert other.asked == []
    assert {asked.partition("?")[0] for asked, _ in fake.asked} <= {
        "/data/upload/1/moved.png",
        "/data/upload/1/inside.png",
        "/data/a%0D%0AX:%20b",
    }


def test_a_personal_access_token(classifier: Classifier, fake: Fake) -> None:
    red = "/data/upload/1/red.png"
    with connected(classifier, fake, token=PERSONAL) as (client, _):
        for number in (1, 2):
            assert [chosen(one) for one in results(client, *[red] * 9)] == [["red"]] * 9
            assert fake.renewed == number  # once for all images
            fake.takes = "expired"
        assert client.post("/webhook", json=event(red, "blue")).json()["result"] == {"changed": True}
    assert all(PERSONAL not in (token or "") for _, token in fake.asked)


@pytest.mark.parametrize("token", ["legacy.with.dots", "eyJ", "eyJ.a", "eyJ.a.b.c"])
def test_other_tokens_are_not_exchanged(classifier: Classifier, fake: Fake, token: str) -> None:
    fake.takes = f"Token {token}"
    with connected(classifier, fake, token=token) as (client, _):
        assert chosen(results(client, "/data/upload/1/red.png")[0]) == ["red"]


@pytest.mark.parametrize(
    ("token", "renewal"),
    [
        ("token-of-another", b""),
        (None, b""),
        ("eyJ.of.another", b""),
        (PERSONAL, b'{"access": "another"}'),
        (PERSONAL, b'{"access": "a\\nb"}'),
        (PERSONAL, b'{"access": "\xc3\xa9"}'),
        (PERSONAL, b'{"access": 1}'),
        (PERSONAL, b"[]"),
        (PERSONAL, b"no JSON"),
    ],
)
def test_a_refused_token_fails_the_request(
    classifier: Classifier, fake: Fake, token: str | None, renewal: bytes
) -> None:
    red, fake.renewal = "/data/upload/1/red.png", renewal
    with connected(classifier, fake, token=token) as (client, _):
        for path, body in (("/predict", asked_for(red)), ("/webhook", event(red, "blue"))):
            answer = client.post(path, json=body)
            assert answer.status_code == 503  # so that Label Studio stores no empty prediction
            assert PERSONAL not in answer.text


@pytest.mark.parametrize(
    ("renewal", "encoding"),
    [
        (b'{"access": "access-%d"}' + b" " * 2**16, "identity"),
        (b'{"access": "' + b"a" * 8193 + b'"}', "identity"),
        (gzip.compress(b'{"access": "access-1"}', mtime=0), "gzip"),
    ],
)
def test_the_answer_to_a_personal_access_token_is_bounded(
    classifier: Classifier, fake: Fake, renewal: bytes, encoding: str
) -> None:
    red, fake.renewal, fake.renewal_encoding = "/data/upload/1/red.png", renewal, encoding
    with connected(classifier, fake, token=PERSONAL) as (client, _):
        assert client.post("/predict", json=asked_for(red)).status_code == 503
    assert fake.asked == [(red, None)]  # the access token is not used


@pytest.mark.parametrize(("status", "passing"), [(429, True), (500, True), (503, True), (400, False), (401, False)])
def test_a_token_that_cannot_be_exchanged_now_is_not_called_refused(
    classifier: Classifier, fake: Fake, status: int, passing: bool
) -> None:
    fake.renewal_status = status
    with connected(classifier, fake, token=PERSONAL) as (client, _):
        answer = client.post("/predict", json=asked_for("/data/upload/1/red.png"))
    assert answer.status_code == 503
    assert (f"answers {status}" in answer.text) == passing
    assert ("ZSVEC_LABEL_STUDIO_TOKEN" in answer.text) != passing


def test_the_size_of_an_image_is_bounded(client: httpx.Client, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsvec.service.label_studio.images._MAX_BYTES", 1000)
    fake.files["/data/upload/1/red.png"] = encode(coloured("red", 50)) + bytes(100_000)
    assert results(client, "/data/upload/1/red.png")[0]["result"] == []


def test_the_time_of_an_image_and_of_a_request_is_bounded(
    client: httpx.Client, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, red = "/data/slow/red.png", "/data/upload/1/red.png"
    fake.files[slow], fake.drip_s = fake.files[red], 0.01  # each byte comes in time, all of them take seconds
    assert chosen(results(client, slow)[0]) == ["red"]
    with monkeypatch.context() as patch:
        patch.setattr("zsvec.service.label_studio.images._TIMEOUT_S", 0.5)
        assert results(client, slow)[0]["result"] == []
    monkeypatch.setattr("zsvec.service.label_studio.routes._TIMEOUT_S", 0.5)
    assert [chosen(one) for one in results(client, *[slow] * 8, red)] == [[]] * 9


def posted(path: str, body: object) -> bytes:
    """A raw request."""
    content = json.dumps(body).encode()
    return head("POST", path, Content_Type="application/json", Content_Length=len(content)) + content


def test_an_abandoned_request_ends_after_its_group(classifier: Classifier, fake: Fake) -> None:
    fake.held = threading.Event()
    with running(classifier, label_studio=LabelStudio(fake.url, TOKEN)) as service:
        wait_until(lambda: not service.connections)
        with service.connect() as connection:
            connection.sendall(posted("/predict", asked_for(*["/data/held/missing.png"] * 17)))
            wait_until(lambda: len(fake.asked) == 8)
        wait_until(lambda: not service.connections)
        fake.held.set()
        wait_until(lambda: "499" in service.app.state.metrics.codes())
    assert len(fake.asked) == 8


def test_a_refused_token_ends_the_other_fetches_first(
    classifier: Classifier, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = LabelStudio.image
    begun: list[object] = []
    ended: list[object] = []

    async def observed(self: LabelStudio, value: object, seconds: float) -> Any:
        begun.append(value)
        try:
            return await image(self, value, seconds)
        finally:
            ended.append(value)

    monkeypatch.setattr(LabelStudio, "image", observed)
    fake.held = threading.Event()
    held, red = [f"/data/held/{number}.png" for number in range(7)], "/data/upload/1/red.png"
    with connected(classifier, fake, token="token-of-another") as (client, _), ExitStack() as holding:
        holding.callback(fake.held.set)
        answer = client.post("/predict", json=asked_for(*held, red))
        assert answer.status_code == 503
        assert begun == [*held, red]
        assert set(ended) == set(begun)


def test_annotations_do_not_wait_for_predictions(
    classifier: Classifier, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsvec.service.label_studio.images._TIMEOUT_S", 1000.0)
    monkeypatch.setattr("zsvec.service.label_studio.routes._TIMEOUT_S", 1000.0)
    fake.held = threading.Event()
    with connected(classifier, fake, right=None) as (client, service), ExitStack() as predicting:
        predicting.callback(fake.held.set)
        connections = [predicting.enter_context(service.connect()) for _ in range(3)]
        for number, connection in enumerate(connections):
            connection.sendall(posted("/predict", asked_for(f"/data/held/{number}.png")))
        wait_until(lambda: len(fake.asked) == 2)  # the third request waits
        assert client.post("/webhook", json=event("/data/upload/1/red.png", "blue")).status_code == 201
        assert not fake.held.is_set()
        for connection in connections:
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)


def test_keys(classifier: Classifier, fake: Fake) -> None:
    body = event("/data/upload/1/red.png", "blue")
    with connected(classifier, fake, right="read") as (client, service):
        assert client.get("/health").is_success
        assert client.post("/setup", json={"project": "1.1", "schema": SINGLE}).is_success
        assert chosen(results(client, "/data/upload/1/red.png")[0]) == ["red"]
        assert client.post("/webhook", json=body).status_code == 403
        assert client.get("/v1/info").status_code == 401  # elsewhere, basic authentication is not taken
        url = f"http://127.0.0.1:{service.port}"
        for auth in (("ann", READ), ("camera", ""), ("", READ), ("camera", "wrong")):
            assert httpx.post(f"{url}/predict", json=asked_for(), auth=auth).status_code == 401
        for header in ("Basic ?", "Basic /w==", "Basic", ""):
            assert httpx.get(f"{url}/health", headers={"Authorization": header}).status_code == 401
        assert httpx.get(f"{url}/health").status_code == 401
        assert httpx.post(f"{url}/webhook", json=body, headers=bearer(WRITE)).status_code == 201
    with connected(classifier, fake, right=None) as (client, _):
        assert client.get("/health").is_success


def test_the_routes_exist_only_with_a_label_studio(classifier: Classifier) -> None:
    with running(classifier) as service, httpx.Client(base_url=f"http://127.0.0.1:{service.port}") as client:
        assert client.get("/health").status_code == 404
        for path in ("/setup", "/predict", "/webhook"):
            assert client.post(path, json={}).status_code == 404


@pytest.mark.usefixtures("hash_encoders")
def test_the_command(filled: Cli, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    assert filled("serve --port 0 --label-studio label.example.org").code == 2
    monkeypatch.setenv("ZSVEC_LABEL_STUDIO_TOKEN", TOKEN)
    assert filled("serve --port 0 --label-studio http://label.example.org").code == 2
    process = start("serve", "--port", "0", "--label-studio", fake.url)
    assert process.stderr
    address = process.stderr.readline().decode().split()[-1].replace("localhost", "127.0.0.1")
    with httpx.Client(base_url=address, timeout=60) as client:
        wait_until(lambda: client.get("/health").is_success)
        assert chosen(results(client, "/data/upload/1/red.png")[0]) == ["red"]
    process.terminate()
    code, out, said = finish(process)
    assert (code, out) == (0, "")
    assert TOKEN not in said


def test_bodies_that_cannot_be_used(client: httpx.Client) -> None:
    for path in ("/setup", "/predict", "/webhook"):
        assert client.post(path, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
        assert client.post(path, json={}).status_code == 422
    assert client.post("/predict", json=asked_for(*[""] * 1001)).status_code == 422
    assert client.post("/webhook", json=event("/data/upload/1/red.png", "grey")).status_code == 422
    assert client.post("/webhook", json=RECORDED["without payload"]).status_code == 422
    wrong = event("/data/upload/1/red.png", "red")
    for choices in ([{"a": 1}], 5, "red", {"red": 1}, True):
        wrong["annotation"]["result"][0]["value"]["choices"] = choices
        assert client.post("/webhook", json=wrong).status_code == 422
    assert results(client) == []


@pytest.mark.parametrize(
    "config",
    [
        "",
        "no XML",
        "<View/>",
        '<View><Image name="a" value="$a"/></View>',
        '<View><Choices name="k" toName="a"><Choice value="red"/></Choices></View>',
        '<View><Image name="a" value="$a"/><Choices name="k" toName="b"><Choice value="red"/></Choices></View>',
        '<View><Image name="a" value="$a"/><Choices name="k" toName="a"/></View>',
        '<View><Image name="a" value="x.png"/><Choices name="k" toName="a"><Choice value="r"/></Choices></View>',
        '<View><Text name="a" value="$a"/><Choices name="k" toName="a"><Choice value="r"/></Choices></View>',
        '<!DOCTYPE a [<!ENTITY e "red">]>' + SINGLE.strip(),
        SINGLE.replace("<Choices", '<Choices perRegion="true"'),
    ],
)
def test_configurations_that_cannot_be_used(config: str) -> None:
    with pytest.raises(Problem) as caught:
        control_of(config)
    assert caught.value.status == 422


def test_a_large_configuration_is_refused() -> None:
    with pytest.raises(Problem) as caught:
        control_of(SINGLE + " " * 1_000_000)
    assert caught.value.status == 413


def test_choices_of_a_configuration() -> None:
    control = control_of(SINGLE)
    assert (control.name, control.image, control.field, control.multiple) == ("kind", "photo", "image", False)
    assert control.choices == {"red", "blue", "orange"}
    assert control_of(MULTIPLE).multiple


@pytest.mark.parametrize(
    ("url", "token"),
    [
        ("label.example.org", None),
        ("ftp://label.example.org", None),
        ("http://user:password@label.example.org", None),
        ("http://", None),
        ("http://[::1", None),
        ("http://label.example.org", TOKEN),
        ("https://label.example.org", "a\nb"),
        ("https://label.example.org", "é"),
    ],
)
def test_servers_that_cannot_be_used(url: str, token: str | None) -> None:
    with pytest.raises(InvalidInputError) as caught:
        LabelStudio(url, token)
    assert "password@" not in str(caught.value)
    assert token is None or token not in str(caught.value)


def test_a_token_goes_unencrypted_only_where_allowed() -> None:
    LabelStudio("http://label.example.org")
    LabelStudio("https://label.example.org", TOKEN)
    LabelStudio("http://label.example.org", TOKEN, allow_http=True)
