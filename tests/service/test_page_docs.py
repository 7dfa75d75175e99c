"""The page about the API."""

from __future__ import annotations

from starlette.testclient import TestClient

from tests.service.support import READ, page_of, visitor
from tests.support import coloured_store


def test_the_page_has_every_operation_and_model(browser: TestClient) -> None:
    page = page_of(browser.get("/docs"))
    description = browser.get("/v1/openapi.json").json()
    shown = {str(found["id"]) for found in page.all("details")}
    operations = {one["operationId"] for methods in description["paths"].values() for one in methods.values()}
    assert shown == operations | set(description["components"]["schemas"])
    for path, methods in description["paths"].items():
        assert path in page.text
        for one in methods.values():
            assert all(parameter["name"] in page.text for parameter in one.get("parameters", ()))
    links = {str(found["href"])[1:] for found in page.all("a") if str(found["href"]).startswith("#")} - {"main"}
    assert links <= shown
    assert {"Prediction", "CategoryGiven"} <= {link.partition("Page")[0] for link in links}


def test_who_may_read_may_read_the_page() -> None:
    with coloured_store(1) as classifier, visitor(classifier, "read") as browser:
        page_of(browser.get("/docs"))
        browser.cookies.clear()
        assert browser.get("/docs").status_code == 303
        assert READ not in browser.get("/docs").text
