"""`open_store(":memory:")`: a new store each time, quiet and offline. The rest is in the contract."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.material import FINGERPRINTS, add, sources, unit_vector
from zsvec.errors import StoreError
from zsvec.store import Store, open_store

ROOT = Path(__file__).parents[2]


def opened() -> Store:
    return open_store(":memory:", namespace="birds")


def test_two_opens_are_two_stores() -> None:
    with opened() as one, opened() as other:
        for store in (one, other):
            store.bind(FINGERPRINTS)
        add(one, "red panda", ["a"])
        assert other.categories() == []
        add(other, "red panda", ["b"])
        assert sources(one, "red panda")["clip:image"] == ["a"]
    with opened() as again:
        assert again.categories() == []
        assert again.encoders() == {}


def test_info_names_the_place() -> None:
    with opened() as store:
        assert store.location == ":memory: (namespace birds)"
        assert store.info()["store"] == ":memory:"


def test_a_refusal_of_the_client_is_a_store_error() -> None:
    with opened() as store, pytest.raises(StoreError, match=":memory:"):
        store.query("clip", "image", unit_vector(16, "query")[None], 1)


def test_neither_warnings_nor_connections_nor_files(tmp_path: Path) -> None:
    program = """\
import socket
from tests.store.material import FINGERPRINTS, add
from zsvec.store import open_store

def refuse(*_):
    raise AssertionError("a connection")

socket.socket.connect = refuse
with open_store(":memory:", namespace="birds") as store:
    store.bind(FINGERPRINTS)
    add(store, "red panda", ["a", "b"], ["text"])
    add(store, "red panda", ["c"], replace=True)
    store.remove("red panda")
    store.gc()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == []
