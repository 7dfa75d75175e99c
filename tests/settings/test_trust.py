"""Trust in a settings file of the working directory, and in the addresses that receive keys."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.streams.test_stream import within
from tests.support import isolated
from zsvec.errors import GenerationError, InvalidInputError, WeightsUnavailableError, ZSVecError
from zsvec.generation.access import Key, base_url
from zsvec.settings.settings import Settings, load_settings
from zsvec.settings.trust import MAX_BYTES, distrust, is_private, trust

__all__ = ["isolated"]

FILE = Path("zsvec.toml")
KEY = "s3cr3t-k3y"

# One value of each setting that is not the default. A new setting needs one here.
VALUES: dict[str, Any] = {
    "store": "http://192.0.2.1",
    "namespace": "theirs",
    "api_key": "theirs",
    "allow_http": True,
    "ca_certificate": "theirs.pem",
    "timeout": 1.0,
    "max_staleness": 1.0,
    "max_wait_ms": 5.0,
    "replicas": 2,
    "shards": 2,
    "write_consistency": 2,
    "keep_images": "none",
    "labels": "many",
    "added_by": "them",
    "history": 0.0,
    "keep": "all",
    "inbox_size": 1,
    "inbox_days": 1.0,
    "profile": "./theirs",
    "profiles": {"mine": {"encoders": {"clip": {"family": "clip", "model": "./theirs"}}}},
    "encoders": "theirs:encoders",
    "device": "cpu",
    "dtype": "float32",
    "runtime": "torch",
    "export_encoders": "yes",
    "compile": True,
    "batch_size": 4096,
    "index": "memory",
    "index_budget": 10**9,
    "index_device": "cpu",
    "index_dtype": "float16",
    "index_cache": False,
    "neighbors": 100_000,
    "aggregation": "max",
    "top_m": 1,
    "fusion": "max_confidence",
    "weights": {"clip:text": 2.0},
    "temperatures": {"clip:text": 2.0},
    "calibration": "off",
    "false_unknown_rate": 0.9,
    "unknown_above": 0.1,
    "unknown_per_category": True,
    "cascade": "auto",
    "label_false_positive_rate": 0.9,
    "max_pixels": 10**9,
    "image_memory": 10**12,
    "label_studio_token": "theirs",
    "generation": {"base_url": "http://192.0.2.1"},
}
# Changes answers of this process alone, without cost, much memory, a deletion or a request to another machine.
HARMLESS = {
    "device",
    "dtype",
    "runtime",
    "index_device",
    "index_dtype",
    "fusion",
    "weights",
    "temperatures",
    "unknown_above",
    "unknown_per_category",
}
SAME_LETTER = {"s": "\u017f", "k": "\u212a", "i": "\u0131\u0130"}  # become s, k and i by lower, upper or casefold


def toml(name: str, value: Any) -> str:
    """One setting as a line of TOML."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {text(inner)}" for key, inner in value.items()) + "}"
        return json.dumps(value)

    return f"{json.dumps(name)} = {text(value)}\n"


def test_every_setting_is_either_harmless_or_refused() -> None:
    assert VALUES.keys() == Settings.model_fields.keys()
    for name, value in VALUES.items():
        FILE.write_text(toml(name, value))
        if name in HARMLESS:
            assert getattr(load_settings(), name) == value
        else:
            with pytest.raises(InvalidInputError, match=rf"sets {name}, which only a file that you trust may"):
                load_settings()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(VALUES.keys() - HARMLESS)), data=st.data())
def test_no_spelling_of_a_setting_gets_past_trust(name: str, data: st.DataObject) -> None:
    spelling = "".join(
        data.draw(st.sampled_from([letter.lower(), letter.upper(), *SAME_LETTER.get(letter, "")])) for letter in name
    )
    FILE.write_text(toml(spelling, VALUES[name]), encoding="utf-8")
    refused = f"sets {name}, which only a file that you trust may"
    with pytest.raises(InvalidInputError) as raised:
        load_settings()
    assert (refused if spelling == name else f"there is no setting {spelling!r}") in str(raised.value)


def test_another_spelling_is_no_setting(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_API_KEY", KEY)
    for name in ("Store", "STORE", "ZSVEC_STORE", "store.store", "base_url", "search", "Generation"):
        FILE.write_text(toml(name, f"http://127.0.0.1:{listener.getsockname()[1]}"))
        with pytest.raises(InvalidInputError, match=f"there is no setting '{name}'"):
            load_settings().open_store()
        with pytest.raises(BlockingIOError):
            listener.accept()
        trusted()
        for options in ({}, {name: "x"}):
            with pytest.raises(InvalidInputError, match=f"there is no setting '{name}'"):
                load_settings(**options)


def trusted() -> None:
    trust(FILE, Settings.marks())


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that waits for keys."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        yield listening


def test_an_untrusted_file_gets_no_key(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_API_KEY", KEY)
    FILE.write_text(f'store = "http://127.0.0.1:{listener.getsockname()[1]}"\n')
    with pytest.raises(InvalidInputError, match=r"zsvec\.toml sets store.*`zsvec trust`"):
        load_settings().open_store()
    with pytest.raises(BlockingIOError):
        listener.accept()
    trusted()
    assert load_settings().store.startswith("http://127.0.0.1")


def test_stores_and_tables_that_only_a_trusted_file_may_set(tmp_path: Path) -> None:
    Path("link").symlink_to(tmp_path)
    stores = ("https://elsewhere", "/tmp", "../beside", "~/zsvec-store", "./link", ":memory:", "theirs:6333")
    for line in (
        *(f'store = "{store}"' for store in (*stores, "http:/theirs", "./theirs:6333")),
        '[profiles.mine.encoders.clip]\nfamily = "clip"\nmodel = "./weights"',
        '[generation]\nbase_url = "https://elsewhere"',
        "[generation.prices.theirs]\nimage = 0",
    ):
        FILE.write_text(f"unknown_above = 0.25\n{line}")
        name = line.partition(" =")[0].strip("[").partition(".")[0].partition("]")[0]
        with pytest.raises(InvalidInputError, match=rf"sets {name}, which only a file that you trust may"):
            load_settings()
        trusted()
        assert load_settings().unknown_above == 0.25


def test_only_a_trusted_file_may_name_a_folder_of_encoders() -> None:
    for profile in ("./encoders", "encoders/of/theirs", "/tmp/encoders", "~", "../encoders", "."):
        FILE.write_text(f'profile = "{profile}"')
        with pytest.raises(InvalidInputError, match="sets profile, which only a file that you trust may"):
            load_settings()
        trusted()
        with pytest.raises(WeightsUnavailableError, match="no exported encoders in"):
            load_settings().encoder_specs()


def test_settings_that_any_file_may_change() -> None:
    for store in ("./here", "a/b/../c", "here"):
        FILE.write_text(f'store = "{store}"\nprofile = "offline"\nfusion = "fixed"\n')
        assert load_settings().store == store


def test_a_link_to_a_file_elsewhere_is_judged_where_the_link_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, clone = tmp_path / "mine", tmp_path / "clone"
    mine.mkdir()
    clone.mkdir()
    (mine / FILE).write_text('store = "./here"\nnamespace = "mine"\n')
    trust(mine / FILE, Settings.marks())
    (clone / FILE).symlink_to(mine / FILE)
    monkeypatch.chdir(clone)
    with pytest.raises(InvalidInputError, match=r"clone.* sets namespace"):
        load_settings()
    (mine / FILE).write_text('store = "./here"\n')
    assert load_settings().store == "./here"
    Path("here").symlink_to(tmp_path)
    with pytest.raises(InvalidInputError, match=r"sets store"):
        load_settings()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_named_pipe_is_an_error_at_once() -> None:
    os.mkfifo(FILE)
    for action in (trust, distrust):
        with pytest.raises(InvalidInputError, match="cannot be trusted"):
            within(partial(action, FILE, Settings.marks()))


def test_tables_without_end_are_an_error() -> None:
    FILE.write_text("weights = " + "[" * 100_000)
    with pytest.raises(InvalidInputError):
        load_settings()
    with pytest.raises(ZSVecError, match="cannot be trusted"):
        trusted()


def test_a_file_of_any_size_is_an_error_at_once() -> None:
    users, _ = Settings.toml_files
    users.parent.mkdir(parents=True)
    for file in (FILE, users):
        file.write_text('store = "./here"\n' + "#" * (MAX_BYTES - 17))
        assert load_settings().store == "./here"
        os.truncate(file, MAX_BYTES + 1)
        with pytest.raises(InvalidInputError, match=f"{MAX_BYTES + 1:,}"):
            load_settings()
        os.truncate(file, 50 * 2**30)  # a hole, which takes no room on the disk
        with pytest.raises(InvalidInputError, match=f"{50 * 2**30:,}"):
            load_settings()
        for action in (trust, distrust):
            with pytest.raises(InvalidInputError, match=f"{50 * 2**30:,}"):
                action(file, Settings.marks())
        file.unlink()


def test_the_file_of_the_user_and_the_environment_need_no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    users, _ = Settings.toml_files
    users.parent.mkdir(parents=True)
    users.write_text('[generation]\nbase_url = "https://ours"\n')
    monkeypatch.setenv("ZSVEC_STORE", "https://ours")
    assert (load_settings().store, load_settings().generation.base_url) == ("https://ours", "https://ours")


def test_a_trusted_file_that_changes_or_moves_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FILE.write_text('store = "https://ours"\n')
    trusted()
    FILE.write_text('store = "https://theirs"\n')
    with pytest.raises(InvalidInputError):
        load_settings()
    FILE.write_text('store = "https://ours"\n')
    assert load_settings().store == "https://ours"
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / FILE).write_bytes(FILE.read_bytes())
    monkeypatch.chdir(tmp_path / "clone")
    with pytest.raises(InvalidInputError):
        load_settings()


def test_trust_can_be_taken_back() -> None:
    FILE.write_text('store = "https://ours"\n')
    trusted()
    distrust(FILE, Settings.marks())
    with pytest.raises(InvalidInputError):
        load_settings()


def test_a_missing_or_damaged_file_cannot_be_trusted() -> None:
    for content in (None, b"store = ", b"\xff"):
        if content is not None:
            FILE.write_bytes(content)
        for action in (trust, distrust):
            with pytest.raises(InvalidInputError, match="cannot be trusted") as caught:
                action(FILE, Settings.marks())
            assert "Errno" not in str(caught.value)


def test_private_addresses() -> None:
    for url in ("https://elsewhere", "http://localhost:6333", "http://127.0.0.2", "http://[::1]:6333"):
        assert is_private(url)
    hosts = ("qdrant:6333", "192.168.0.7", "localhost.elsewhere", "127.0.0.1@elsewhere", "[")
    assert not any(is_private(url) for url in (*(f"http://{host}" for host in hosts), ""))


def test_the_key_of_a_store_is_not_sent_in_clear_text(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://192.0.2.1:6333"
    for urls in (url, f"http://localhost:6333, {url}"):
        with pytest.raises(InvalidInputError, match=r"192\.0\.2\.1.*could read the key.*allow_http"):
            load_settings(store=urls, api_key=KEY).open_store()
    asked: list[str] = []
    monkeypatch.setattr("zsvec.settings.settings.open_store", lambda store, **_: asked.append(store))
    load_settings(store=url, api_key=KEY, allow_http=True).open_store()
    load_settings(store=url).open_store()
    assert asked == [url, url]


def test_the_key_of_a_service_is_not_sent_in_clear_text() -> None:
    key = Key(KEY)
    with pytest.raises(GenerationError, match="allow_http") as raised:
        base_url("http://192.0.2.1/v1", key, allow_http=False)
    assert KEY not in str(raised.value)
    assert base_url("http://192.0.2.1/v1", key, allow_http=True) == "http://192.0.2.1/v1"
    assert base_url("http://localhost:8000/v1", key, allow_http=False) == "http://localhost:8000/v1"
