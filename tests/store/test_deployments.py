"""Deployments with limits and rights: strict mode, rights, certificates of one's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme
from qdrant_client import models

from tests.qdrant import Node, running_server
from tests.search.support import STATE, assert_answers, fill, queries, searcher
from tests.store.material import FINGERPRINTS, add, sources, write_of
from tests.store.support import ServerDeployment, fast_folder
from zsvec.errors import StoreError, StoreUnavailableError
from zsvec.store import Store, open_store

KEY = "an-administrator-s-key-of-some-length"
PATIENT: dict[str, Any] = {"timeout": 120.0, "first_contact": 120.0}  # deadlines in seconds that are not reached
AT_ONCE = 60.0  # seconds of a busy machine, and less than those


def strict(server: ServerDeployment, **limits: Any) -> None:
    """From now on the namespace's collections allow only so much."""
    for collection in server.collections():
        if collection.startswith(server.namespace):
            mode = models.StrictModeConfig(enabled=True, **limits)
            server.client.update_collection(collection, strict_mode_config=mode)


def live(store: Store, before: Mapping[str, Any]) -> None:
    """Import, replace, add, remove and collect; the store ends with the same content."""
    fill(store, before)
    store.write([write_of("images only", ["other"], replace=True), write_of("new", [str(i) for i in range(30)])])
    assert len(sources(store, "new")["clip:image"]) == 30
    store.remove("new")
    store.write([write_of("both", ["one more"])])
    fill(store, before)
    store.gc(grace=0)
    assert store.incomplete() == []


def test_collections_show_writes_at_once_and_leave_small_images_on_disk(server: ServerDeployment) -> None:
    store = server.open()
    fill(store, STATE)
    held = {}
    for name in ("clip", "catalog", "images"):
        config = server.client.get_collection(store.collection(name)).config
        assert (config.hnsw_config.m, config.hnsw_config.payload_m) == (0, 0)
        assert config.optimizer_config.prevent_unoptimized is False
        assert isinstance(config.params.vectors, models.VectorParams)
        assert config.params.payload
        held[name] = (config.params.vectors.memory, config.params.payload.memory)
    cold, cached = models.Memory.COLD, models.Memory.CACHED
    assert held == {"clip": (cached, cached), "catalog": (cached, cached), "images": (cold, cold)}


# Strict mode

UNFRIENDLY: Mapping[str, Mapping[str, Any]] = {
    "page": {"max_query_limit": 10},
    "upsert": {"upsert_max_batchsize": 2},
    "batch": {"search_max_batchsize": 1},
    "condition": {"condition_max_size": 2},
    "filter": {"filter_max_conditions": 3},
    "indexes": {"unindexed_filtering_retrieve": False, "unindexed_filtering_update": False},
}
ALL = {name: limit for limits in UNFRIENDLY.values() for name, limit in limits.items()} | {"filter_max_conditions": 64}


@pytest.mark.parametrize("limits", [*UNFRIENDLY.values(), ALL], ids=[*UNFRIENDLY, "all"])
def test_a_store_lives_within_strict_limits(server: ServerDeployment, limits: Mapping[str, Any]) -> None:
    store = server.open()
    fill(store, STATE)
    strict(server, **limits)
    with closing(server.open()) as another:
        for way in ("numpy", "qdrant"):
            live(another, STATE)
            assert_answers(searcher(another, way), STATE)


def test_limits_that_come_later_are_noticed(server: ServerDeployment) -> None:
    store = server.open()
    fill(store, STATE)
    searching = searcher(store, "qdrant")
    assert_answers(searching, STATE)
    strict(server, **ALL)
    live(store, STATE)
    assert_answers(searching, STATE)


def test_a_limit_on_conditions_that_comes_later_is_noticed_by_a_scroll(server: ServerDeployment) -> None:
    store = server.open()
    fill(store, STATE)
    category = store.category("many")
    ids = [*category.write_ids, *map(str, range(2000))]
    assert sum(len(page.ids) for page in store.references("clip", ids))
    before = sum(len(page.ids) for page in store.references("clip", ids))
    strict(server, filter_max_conditions=1, condition_max_size=100)
    assert sum(len(page.ids) for page in store.references("clip", ids)) == before


def test_without_exact_search_images_are_compared_in_this_process(server: ServerDeployment) -> None:
    store = server.open()
    fill(store, STATE)
    strict(server, **ALL, search_allow_exact=False)
    with closing(server.open()) as another:
        live(another, STATE)
        assert_answers(searcher(another, "numpy"), STATE)
        with pytest.raises(StoreError, match=r"search_allow_exact.*index=memory"):
            searcher(another, "qdrant").search(queries(), nearest=1)


def test_rate_limits_are_waited_for(server: ServerDeployment) -> None:
    store = server.open()
    strict(server, write_rate_limit=60)
    begun = time.monotonic()
    for name in range(40):
        add(store, f"category {name}", ["1"])
    assert len(store.categories()) == 40
    assert time.monotonic() - begun > 0.5


# Rights


@pytest.fixture(scope="module")
def guarded() -> Iterator[Node]:
    """A server that asks for a key."""
    settings = {"QDRANT__SERVICE__API_KEY": KEY, "QDRANT__SERVICE__JWT_RBAC": "true"}
    with fast_folder() as folder, running_server(folder, **settings) as node:
        yield node


def token(namespace: str, access: str) -> str:
    """A token with rights on exactly the collections of a namespace."""
    names = [f"{namespace}__{name}" for name in ("catalog", "images", "inbox", *FINGERPRINTS)]
    return jwt.encode({"access": [{"collection": name, "access": access} for name in names]}, KEY, algorithm="HS256")


def test_rights_on_one_namespace_are_enough(guarded: Node) -> None:
    with open_store(guarded.url, namespace="birds", api_key=KEY) as store:
        store.bind(FINGERPRINTS)
    with open_store(guarded.url, namespace="birds", api_key=token("birds", "rw")) as store:
        store.bind(FINGERPRINTS)
        live(store, STATE)
        store.keep_calibration({})
        assert_answers(searcher(store, "numpy"), STATE)
        found = {finding.what: finding for finding in store.check_up()}
        assert all(finding.ok for finding in found.values())
        assert found["rights"].detail == "read, write, not make collections"
    with open_store(guarded.url, namespace="birds", api_key=token("birds", "r")) as store:
        for way in ("numpy", "qdrant"):
            assert_answers(searcher(store, way), STATE)
        with pytest.raises(StoreUnavailableError, match=r"refuses this .*ZSVEC_API_KEY"):
            add(store, "another", ["1"])
        found = {finding.what: finding for finding in store.check_up()}
        assert found["rights"].detail == "read, not write, not make collections"


@pytest.mark.parametrize(
    "key", [None, "another key", token("bees", "rw")], ids=["none", "another", "of another namespace"]
)
def test_other_keys_are_refused_at_once(guarded: Node, key: str | None) -> None:
    begun = time.monotonic()
    with (
        pytest.raises(StoreUnavailableError, match="refuses this") as caught,
        open_store(guarded.url, namespace="birds", api_key=key, **PATIENT) as store,
    ):
        store.categories()
    assert time.monotonic() - begun < AT_ONCE
    assert key is None or key not in str(caught.value)


# Certificates


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a server's certificate and key, and the certificate of the authority."""
    folder = tmp_path_factory.mktemp("authority")
    ours = trustme.CA()
    ours.cert_pem.write_to_path(folder / "ca.pem")
    certificate = ours.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    for part in certificate.cert_chain_pems:
        part.write_to_path(folder / "cert.pem", append=True)
    return folder


@pytest.fixture(scope="module")
def private(authority: Path) -> Iterator[Node]:
    """A server that speaks TLS, with a certificate of a private authority."""
    settings = {
        "QDRANT__SERVICE__ENABLE_TLS": "true",
        "QDRANT__TLS__CERT": str(authority / "cert.pem"),
        "QDRANT__TLS__KEY": str(authority / "key.pem"),
        "QDRANT__SERVICE__API_KEY": KEY,
    }
    with fast_folder() as folder, running_server(folder, **settings) as node:
        yield node


@pytest.mark.parametrize("by", ["setting", "variable"])
def test_an_authority_of_ones_own(private: Node, authority: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = authority / "ca.pem"
    if by == "variable":
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
    certificate = file if by == "setting" else None
    with open_store(private.url, namespace=by, api_key=KEY, ca_certificate=certificate) as store:
        store.bind(FINGERPRINTS)
        live(store, STATE)
        assert_answers(searcher(store, "numpy"), STATE)
        found = {finding.what: finding for finding in store.check_up()}
    assert "gRPC" in found[f"node {private.url}"].detail
    assert "no gRPC" not in found[f"node {private.url}"].detail


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda url: url, r"not trusted.*ca_certificate"),
        (lambda url: url.replace("https:", "http:"), "speaks TLS: give it as https://"),
    ],
)
def test_certificates_that_are_not_trusted_are_said_at_once(
    private: Node, change: Callable[[str], str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=said):
        open_store(change(private.url), namespace="birds", api_key=KEY, **PATIENT)
    assert time.monotonic() - begun < AT_ONCE
    assert capfd.readouterr().err == ""


def test_tls_where_there_is_none(server: ServerDeployment) -> None:
    begun = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="in private"):
        open_store(server.url.replace("http:", "https:"), namespace="birds", **PATIENT)
    assert time.monotonic() - begun < AT_ONCE


# Check-ups


def test_a_check_up_of_a_server(server: ServerDeployment) -> None:
    store = server.open()
    fill(store, STATE)
    strict(server, max_query_limit=10)
    found = {finding.what: finding for finding in store.check_up()}
    assert list(found) == [f"node {server.url}", "rights", "limits", "copies", "catalog"]
    assert all(finding.ok for finding in found.values())
    assert "page 10" in found["limits"].detail
    assert found["rights"].detail == "read, write, make collections"
    collection = store.collection("dino")
    server.client.delete(collection, models.FilterSelector(filter=models.Filter(must=[])), wait=True)
    found = {finding.what: finding for finding in store.check_up()}
    assert not found["references"].ok
    server.client.delete_collection(collection)
    found = {finding.what: finding for finding in store.check_up()}
    assert collection in found["collections"].detail


def test_a_check_up_where_one_of_two_nodes_is_away(server: ServerDeployment) -> None:
    store = server.open()
    away = "http://127.0.0.1:9"
    with open_store(f"{server.url},{away}", namespace=server.namespace, timeout=60) as both:
        found = {finding.what: finding for finding in both.check_up()}
    assert found[f"node {server.url}"].ok
    assert not found[f"node {away}"].ok
    del store
