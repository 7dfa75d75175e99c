"""Pages of lists, and queries: no item is skipped or repeated while others write, and nothing is ignored."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.testclient import TestClient

from tests.service.support import asked, files, images_of, listed, path_to, problem, red
from tests.support import encode, photo
from zsvec.classifier import Classifier
from zsvec.inputs.categories import ReferenceImage
from zsvec.inputs.images import content_hash
from zsvec.service.api.paging import MAX_LIMIT

LISTS = [
    "/v1/categories",
    path_to("red", "references"),
    "/v1/history",
    "/v1/history?category=red",
    "/v1/audit",
    "/v1/inbox",
]
ODD = ["a/b", "ж", "🐼" * 500, "%2F", "a b", "x" * 500, "~", "A", "é"]


@pytest.fixture
def full(client: TestClient, classifier: Classifier) -> TestClient:
    """A client of a service with several items in each list."""
    classifier.add_category("copies", images=[red(0), red(1)])
    names = iter(["z", "a" * 300, "b", "a" * 300 + "b", ""])
    images = [ReferenceImage(image=red(seed), source=name) for seed, name in zip(range(20, 25), names, strict=True)]
    classifier.add_category("red", texts=["scarlet", "ж" * 2000, "crimson"], images=images)
    for name in ODD:
        classifier.add_category(name, texts=["text of one"])
    client.post("/v1/inbox", files=files(*[encode(photo(seed)) for seed in range(5)])).raise_for_status()
    return client


def ask(client: TestClient, path: str, **query: Any) -> Any:
    return client.get(f"{path}{'&' if '?' in path else '?'}{urlencode(query)}")


def pages(client: TestClient, path: str, limit: int, between: Callable[[], Any] = lambda: None) -> Iterator[list[Any]]:
    after: dict[str, str] = {}
    while True:
        page = ask(client, path, limit=limit, **after).raise_for_status().json()
        assert len(page["items"]) <= limit
        yield page["items"]
        if page["next"] is None:
            return
        assert len(page["items"]) == limit
        after = {"cursor": page["next"]}
        between()


@pytest.mark.parametrize("path", LISTS)
def test_the_pages_together_are_the_whole_list(full: TestClient, path: str) -> None:
    whole = listed(full, path)
    assert len(whole) > 1
    for limit in (1, 2, len(whole) - 1, len(whole), len(whole) + 1, MAX_LIMIT):
        found = list(pages(full, path, limit))
        assert list(itertools.chain(*found)) == whole
        assert len(found) == max(1, -(-len(whole) // limit))


def test_no_category_is_skipped_or_repeated_while_others_write(full: TestClient, classifier: Classifier) -> None:
    before = [one["category"] for one in listed(full, "/v1/categories")]
    seen: list[str] = []
    number = itertools.count()

    def write() -> None:
        classifier.remove_category(seen[-1])  # the position of the cursor
        classifier.add_category(f"0 {next(number)}", texts=["before every position"])
        classifier.add_category("zz", texts=[f"text {next(number)}"])

    for page in pages(full, "/v1/categories", 1, write):
        seen.extend(one["category"] for one in page)
    assert [name for name in seen if name in before] == before
    assert len(set(seen)) == len(seen)
    assert "zz" in seen


def test_no_reference_is_skipped_or_repeated_while_others_write(full: TestClient, classifier: Classifier) -> None:
    before = [one["hash"] for one in listed(full, path_to("red", "references"))]
    seen: list[str] = []
    seeds = itertools.count(200)

    def write() -> None:
        if len(seen) == 3:
            classifier.references.remove("red", seen[-1])
        if len(seen) < 5:
            classifier.add_category("red", texts=[f"text {next(seeds)}"], images=[red(next(seeds))])

    for page in pages(full, path_to("red", "references"), 1, write):
        seen.extend(one["hash"] for one in page)
    assert [one for one in seen if one in before] == before
    assert len(set(seen)) == len(seen)


def test_no_change_is_skipped_or_repeated_while_others_write(full: TestClient, classifier: Classifier) -> None:
    before = [one["id"] for one in listed(full, "/v1/history")]
    numbers = itertools.count()

    oldest = listed(full, "/v1/history")[-1]

    def write() -> None:
        classifier.references.update("red", metadata={"a": next(numbers)})
        with classifier.history.one_change(oldest["what"], continues=oldest["id"]):
            classifier.references.update("blue", metadata={"a": next(numbers)})

    assert [one["id"] for page in pages(full, "/v1/history", 2, write) for one in page] == before
    assert next(iter(classifier.history)).id == oldest["id"]


@pytest.mark.parametrize("path", ["/v1/inbox", "/v1/audit"])
def test_a_list_by_usefulness_stays_as_it_was(full: TestClient, classifier: Classifier, path: str) -> None:
    whole = listed(full, path)

    def write() -> None:
        for image in classifier.inbox.rank(1):
            classifier.inbox.label(image.hash, "new")

    assert list(itertools.chain(*pages(full, path, 1, write))) == whole
    assert listed(full, path) != whole


def test_few_lists_are_kept(full: TestClient) -> None:
    first = full.get("/v1/inbox?limit=1").json()["next"]
    assert full.get(f"/v1/inbox?limit=1&cursor={first}").status_code == 200
    for _ in range(8):
        full.get("/v1/inbox?limit=1")
    gone = full.get(f"/v1/inbox?limit=1&cursor={first}")
    problem(gone, 410, "first page")


@pytest.mark.parametrize("path", ["/v1/inbox", "/v1/audit"])
def test_no_list_names_an_erased_image(full: TestClient, classifier: Classifier, path: str) -> None:
    first = ask(full, path, limit=1).json()["next"]
    assert ask(full, path, limit=1, cursor=first).status_code == 200
    classifier.references.forget(content_hash(red(0)))
    problem(ask(full, path, limit=1, cursor=first), 410, "first page")
    assert not full.app.state.lists._lists  # type: ignore[attr-defined]
    assert content_hash(red(0)) not in ask(full, path, limit=1000).text


def test_a_cursor_is_of_one_list(full: TestClient, classifier: Classifier) -> None:
    full.post("/v1/inbox", files=files(encode(photo(9))))
    paths = [*LISTS, path_to("copies", "references"), "/v1/history?category=copies"]
    for origin in LISTS:
        cursor = ask(full, origin, limit=1).json()["next"]
        assert cursor
        for path in set(paths) - {origin}:
            problem(ask(full, path, cursor=cursor), 422, "cursor")


def test_forged_cursors(full: TestClient) -> None:
    for path in LISTS:
        real = ask(full, path, limit=1).json()["next"]
        content = base64.urlsafe_b64decode(real + "==")
        forged = [
            real[:-4],
            real[4:],
            real * 2,
            "A",
            "AA",
            "A" * 8000,
            "A" * 8001,
            "red",
            "",
            "!",
            "\0",
            real.swapcase(),
        ]
        for position in range(0, len(content), 3):
            changed = bytes([*content[:position], content[position] ^ 1, *content[position + 1 :]])
            forged.append(base64.urlsafe_b64encode(changed).decode().rstrip("="))
        for cursor in forged:
            problem(ask(full, path, cursor=cursor), 422, "cursor")


def test_a_cursor_outlives_the_items_but_not_the_category(full: TestClient, classifier: Classifier) -> None:
    path = path_to("copies", "references")
    cursor = full.get(f"{path}?limit=1").json()["next"]
    for one in images_of(classifier, "copies")[:1]:
        classifier.references.remove("copies", one)
    assert full.get(f"{path}?cursor={cursor}").status_code == 200
    classifier.remove_category("copies")
    problem(full.get(f"{path}?cursor={cursor}"), 404)


@pytest.mark.parametrize("path", LISTS)
def test_limits(client: TestClient, path: str) -> None:
    for limit in ("0", "-1", "1001", "9" * 30, "9" * 5000, "1.5", "x", "", "1e2", "null", "٣ "):
        problem(ask(client, path, limit=limit), 422, "limit")


def test_no_parameter_of_a_query_is_ignored(client: TestClient) -> None:
    described = client.get("/v1/openapi.json").json()["paths"]
    for path, operations in described.items():
        address = path.replace("{name}", "red").replace("{hash}", "0" * 64)
        for method in operations:
            problem(client.request(method, f"{address}?top=3"), 422, "'top'")
            problem(client.request(method, f"{address}?limits"), 422, "'limits'")
    problem(client.get("/v1/categories?limit=1&limit=2"), 422, "once")
    problem(client.get("/v1/categories?Limit=1"), 422, "Limit")
    assert client.head("/v1/categories?number=1").status_code == 422


def test_an_empty_store_has_empty_pages(classifier: Classifier) -> None:
    for name in ("red", "green", "blue"):
        classifier.remove_category(name)
    with asked(classifier) as client:
        for path in ("/v1/categories", "/v1/inbox"):
            assert client.get(path).json() == {"items": [], "next": None}
