"""Liveness, readiness, metrics, and the log."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

import zsvec
from tests.qdrant import DEADLINE, running_server, wait_until
from tests.service.support import KEYS, READ, WRITE, Limits, asked, bearer, files, path_to, problem, red
from tests.store.support import fast_folder
from tests.support import encode, photo
from zsvec.classifier import Classifier
from zsvec.errors import StoreUnavailableError, WeightsUnavailableError
from zsvec.service.server import JsonLines
from zsvec.testing import HashEncoder

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def ready(client: TestClient) -> str:
    """The reason why the service is not ready, or an empty text."""
    answer = client.get("/health/ready")
    if answer.status_code == 200:
        assert answer.json() == {"status": "ok"}
        return ""
    problem(answer, 503)
    return str(answer.json()["detail"])


# Health


def test_ready_once_the_encoders_are_loaded(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    may_go_on = threading.Event()
    tried: list[int] = []

    def load() -> None:
        assert may_go_on.wait(DEADLINE)
        tried.append(1)
        if len(tried) < 3:
            raise WeightsUnavailableError("no weights yet") if len(tried) == 1 else RuntimeError("a defect")

    monkeypatch.setattr(Classifier, "encoders", property(lambda _: load()))
    monkeypatch.setattr("zsvec.service.operations._LOAD_RETRY_S", 0.01)
    with asked(classifier) as client:
        assert "loaded" in ready(client)
        assert client.get("/health/live").json() == {"status": "ok"}
        assert (client.head("/health/live").status_code, client.head("/health/live").content) == (200, b"")
        may_go_on.set()
        wait_until(lambda: not ready(client))
        assert len(tried) == 3
    assert "RuntimeError: a defect" in caplog.text


def test_not_ready_during_shutdown(client: TestClient) -> None:
    wait_until(lambda: not ready(client))
    client.app.state.health.ending.set()  # type: ignore[attr-defined]
    assert "shutting down" in ready(client)
    assert client.get("/health/live").status_code == client.get("/v1/info").status_code == 200


def test_health_needs_no_key_and_metrics_do(classifier: Classifier) -> None:
    with asked(classifier, keys=KEYS) as client:
        assert client.get("/health/live").status_code == 200
        wait_until(lambda: not ready(client))
        problem(client.get("/metrics"), 401)
        assert client.get("/metrics", headers=bearer(READ)).status_code == 200


# Metrics


def figures(client: TestClient, **how: Any) -> Figures:
    """Each value by name and labels, as Prometheus parses the text."""
    answer = client.get("/metrics", **how).raise_for_status()
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found: Figures = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            place = sample.name, tuple(sorted(sample.labels.items()))
            assert place not in found
            found[place] = sample.value
    return found


def figure(found: Figures, name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def test_metrics_count_requests_and_images(client: TestClient, classifier: Classifier) -> None:
    before = figures(client)
    assert figure(before, "zsvec_images_total", outcome="known") == 0
    client.post("/v1/classify", files=files(red(50), red(51), b"no image"))
    client.get(path_to("red"))
    client.get(path_to("none"))
    client.get("/none/such")
    after = figures(client)
    images = {
        outcome: figure(after, "zsvec_images_total", outcome=outcome) for outcome in ("known", "unknown", "failed")
    }
    assert (images["known"] + images["unknown"], images["failed"]) == (2, 1)
    assert figure(after, "zsvec_queue_size") == 0
    assert figure(after, "zsvec_batch_size_sum") == 2
    assert figure(after, "zsvec_batch_size_count") == figure(after, "zsvec_batch_size_bucket", le="+Inf") in (1, 2)
    for stage in ("decode", "encode", "search", "fuse"):
        assert figure(after, "zsvec_stage_seconds_sum", stage=stage) > 0
        assert figure(after, "zsvec_stage_seconds_count", stage=stage) >= 1
    assert figure(after, "zsvec_http_requests_total", route="/v1/classify", code="200") == 1
    for code in ("200", "404"):
        assert figure(after, "zsvec_http_requests_total", route="/v1/categories/{name}", code=code) == 1
    assert figure(after, "zsvec_http_requests_total", route="none", code="404") == 1
    assert figure(after, "zsvec_http_request_seconds_count", route="/v1/classify") == 1
    assert figure(after, "zsvec_references", modality="image") == 9
    assert figure(after, "zsvec_references", modality="text") == 3
    assert figure(after, "zsvec_store_revision") == classifier.revision


def test_the_revision_in_the_metrics_counts_removed_categories(client: TestClient, classifier: Classifier) -> None:
    added = classifier.add_category("new", texts=["a new one"]).rev
    classifier.remove_category("new")
    assert figure(figures(client), "zsvec_store_revision") > added


def test_no_label_contains_a_name_of_a_user(classifier: Classifier) -> None:
    with asked(classifier, keys=KEYS) as client:
        write: Any = {"headers": bearer(WRITE)}
        client.put(path_to("secret-name"), files=files(red(9), name="secret-file.png"), **write)
        client.post("/v1/correct?category=secret-name", files=files(red(10), name="secret-file.png"), **write)
        client.get(path_to("secret-name"), **write)
        client.get("/secret-path", **write)
        client.get("/v1/categories/secret-name/secret-path", **write)
        client.request("SECRETMETHOD", path_to("secret-name"), **write)
        text = client.get("/metrics", **write).text
        assert "secret" not in text.lower()
        assert "ann" not in re.findall(r'="([^"]*)"', text)
        labels = {name for family in text_string_to_metric_families(text) for s in family.samples for name in s.labels}
    assert labels <= {"outcome", "stage", "route", "code", "modality", "le"}


def test_two_services_in_one_process_count_separately(classifier: Classifier) -> None:
    with asked(classifier) as one, asked(classifier) as other:
        one.get("/v1/info")
        assert ("zsvec_http_requests_total", (("code", "200"), ("route", "/v1/info"))) in figures(one)
        assert ("zsvec_http_requests_total", (("code", "200"), ("route", "/v1/info"))) not in figures(other)


# The log


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """Returns the lines of `--log-json` since the last call, parsed."""
    caplog.set_level(logging.INFO)
    formatter = JsonLines()

    def lines() -> list[dict[str, Any]]:
        texts = [formatter.format(record) for record in caplog.records if record.name.startswith("zsvec")]
        caplog.clear()
        assert all(text.isprintable() and text.isascii() for text in texts)
        return [json.loads(text) for text in texts]

    return lines


def test_each_request_is_one_line_with_the_id_of_its_answer(
    classifier: Classifier, log: Callable[[], list[dict[str, Any]]]
) -> None:
    with asked(classifier, keys=KEYS) as client:
        log()
        for method, path, headers, route, code, key in (
            ("GET", "/v1/info", bearer(READ), "/v1/info", 200, "camera"),
            ("DELETE", path_to("red"), bearer(WRITE), "/v1/categories/{name}", 204, "ann"),
            ("DELETE", path_to("red"), bearer(WRITE), "/v1/categories/{name}", 404, "ann"),
            ("DELETE", path_to("blue"), bearer(READ), "none", 403, "camera"),
            ("GET", "/v1/info", {}, "none", 401, None),
            ("GET", "/health/live", bearer(READ), "/health/live", 200, None),
            ("GET", "/none", bearer(READ), "none", 404, "camera"),
        ):
            answer = client.request(method, path, headers=headers)
            [line] = log()
            assert line["id"] == answer.headers["x-request-id"]
            assert (line["method"], line["route"], line["code"], line["key"]) == (method, route, code, key)
            assert line["code"] == answer.status_code
            assert 0 < line["seconds"] < 10
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", line["time"])


def test_a_valid_request_id_is_kept(client: TestClient) -> None:
    for given in ("abc-1.2_3", "x" * 64, "x" * 65, "", 'a"b', "a b", "é"):
        answer = client.get("/health/live", headers=[(b"X-Request-ID", given.encode("latin-1"))])
        assert (answer.headers["x-request-id"] == given) == (given in ("abc-1.2_3", "x" * 64))
        assert re.fullmatch(r"[\w.-]{1,64}", answer.headers["x-request-id"])


def test_no_line_can_be_forged(client: TestClient, log: Callable[[], list[dict[str, Any]]]) -> None:
    log()
    forged = '\n{"level": "ERROR"}\r\n\u2028\x1b[31m'
    client.get(path_to(forged))
    client.put(path_to("x"), json={"texts": [forged], "metadata": {forged: forged}})
    client.post("/v1/classify", json={"images": [forged]})
    client.post("/v1/correct", params={"category": forged}, files=files(red()))
    client.post("/v1/inbox", files=files(b"x", name=forged.replace("\n", "").replace("\r", "")))
    client.get("/" + "x" * 5000)
    lines = log()
    assert len(lines) == 6
    assert {line["level"] for line in lines} == {"INFO"}
    assert {line["logger"] for line in lines} == {"zsvec.requests"}


# A store that is away


def away(*_: object, **__: object) -> Any:
    raise StoreUnavailableError("http://user:secret@localhost:1 does not answer: start it")


def test_a_store_that_is_away(client: TestClient, classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_until(lambda: not ready(client))
    before = figures(client)
    with monkeypatch.context() as patch:
        patch.setattr("zsvec.service.operations._PING_INTERVAL_S", 0.0)
        patch.setattr("zsvec.service.operations._COUNT_INTERVAL_S", 0.0)
        for name in ("ping", "categories", "category", "info", "changes", "bind"):
            patch.setattr(classifier._store, name, away)
        assert "store" in ready(client)
        for path in ("/v1/categories", path_to("red"), "/v1/info", "/v1/history"):
            answer = client.get(path)
            problem(answer, 503, "log of the service")
            assert (answer.headers["retry-after"], answer.json()["error"]) == ("5", "store_unavailable")
            assert "secret" not in answer.text
        now = figures(client)
        assert figure(now, "zsvec_store_revision") == figure(before, "zsvec_store_revision")  # as last read
        assert client.get("/health/live").status_code == 200
    monkeypatch.setattr("zsvec.service.operations._PING_INTERVAL_S", 0.0)
    assert not ready(client)
    assert client.get("/v1/categories").status_code == 200


@pytest.fixture
def on_server() -> Iterator[tuple[TestClient, Any]]:
    """A service on a Qdrant server, and the server, which can be paused and killed."""
    with ExitStack() as stack:
        node = stack.enter_context(running_server(stack.enter_context(fast_folder())))
        classifier = stack.enter_context(zsvec.open(node.url, encoders=[HashEncoder()]))
        classifier.add_category("red", images=[photo(1)])
        classifier.add_category("blue", images=[photo(2)])
        client = stack.enter_context(asked(classifier, limits=Limits(store_timeout_s=2.0)))
        wait_until(lambda: not ready(client))
        yield client, node


@pytest.mark.parametrize("how", ["kill", "pause"])
def test_a_server_that_goes_away_and_comes_back(
    on_server: tuple[TestClient, Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, node = on_server
    picture = encode(photo(1))
    assert client.post("/v1/classify", files=files(picture)).json()[0]["label"] == "red"
    assert figure(figures(client), "zsvec_references", modality="image") == 2
    getattr(node, how)()
    try:
        monkeypatch.setattr("zsvec.service.operations._COUNT_INTERVAL_S", 0.0)
        wait_until(lambda: "store" in ready(client))
        asked_for: list[tuple[str, str, Any]] = [
            ("POST", "/v1/classify", {"files": files(picture)}),
            ("GET", "/v1/categories", {}),
            ("PUT", path_to("new"), {"files": files(picture)}),
            ("DELETE", path_to("red"), {}),
        ]
        for method, path, how_sent in asked_for:
            answer = client.request(method, path, **how_sent)
            problem(answer, 503)
            assert answer.headers["retry-after"] == "5"
        assert figure(figures(client), "zsvec_references", modality="image") == 2
    finally:
        node.restart() if how == "kill" else node.resume()
    wait_until(lambda: not ready(client))
    assert client.post("/v1/classify", files=files(picture)).json()[0]["label"] == "red"
    assert client.put(path_to("new"), files=files(encode(photo(3)))).status_code == 201


def test_concurrent_probes_share_one_ping(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[float] = []

    def hang() -> None:
        asked_for.append(time.monotonic())
        time.sleep(0.3)
        raise StoreUnavailableError("it is away")

    with asked(classifier) as client:
        while client.get("/health/ready").status_code != 200:
            pass
        monkeypatch.setattr(classifier._store, "ping", hang)
        monkeypatch.setattr("zsvec.service.operations._PING_INTERVAL_S", DEADLINE)
        client.app.state.health._pinged = (float("-inf"), None)  # type: ignore[attr-defined]
        with ThreadPoolExecutor(20) as pool:
            codes = list(pool.map(lambda _: client.get("/health/ready").status_code, range(20)))
        assert (codes, len(asked_for)) == ([503] * 20, 1)
