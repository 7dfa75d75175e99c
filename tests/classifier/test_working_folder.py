"""Relative paths are resolved when given: a later change of the working folder has no effect."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import zsvec
from tests.support import encode, isolated, photo, two_encoders
from zsvec.errors import InvalidInputError
from zsvec.settings.settings import load_settings
from zsvec.store import open_store
from zsvec.testing import HashEncoder

__all__ = ["isolated"]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


def test_a_store_stays_where_it_was_opened(elsewhere: Path) -> None:
    home = Path.cwd()
    with zsvec.open("store", encoders=two_encoders()) as clf:
        os.chdir(elsewhere)
        clf.add_category("a", images=[encode(photo(1))])
        os.chdir(home)
        clf.add_category("b", images=[encode(photo(2))])
        os.chdir(elsewhere)
        assert [category.name for category in clf.categories()] == ["a", "b"]
    assert list(elsewhere.iterdir()) == []
    with open_store(str(home / "store"), namespace="zsvec") as store:
        assert [category.name for category in store.categories()] == ["a", "b"]


@pytest.mark.parametrize("store", ["./store", None])
def test_settings_keep_the_working_folder(store: str | None, elsewhere: Path) -> None:
    home = Path.cwd()
    settings = load_settings(store=store)
    copies = [settings, settings.model_copy()]
    os.chdir(elsewhere)
    for copy in copies:
        with copy.open_store() as opened:
            opened.bind({"clip": HashEncoder("clip", dim=8).fingerprint})
        assert (home / (store or "zsvec-store")).is_dir()
    assert list(elsewhere.iterdir()) == []


def test_a_store_in_memory_has_no_folder() -> None:
    with load_settings(store=":memory:").open_store() as opened:
        assert opened.info()["store"] == ":memory:"


def test_certificates_keep_the_working_folder(elsewhere: Path) -> None:
    home = Path.cwd()
    settings = load_settings(store="https://127.0.0.1:1", ca_certificate="authority.pem")
    os.chdir(elsewhere)
    with pytest.raises(zsvec.ZSVecError, match=str(home / "authority.pem")):
        settings.open_store()


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_certificates_are_no_folder(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="ca_certificate: "):
        load_settings(store="https://127.0.0.1:1", ca_certificate=path)
    monkeypatch.setenv("ZSVEC_CA_CERTIFICATE", path)
    with pytest.raises(InvalidInputError, match="ca_certificate: "):
        load_settings(store="https://127.0.0.1:1")
