"""Whom a user trusts: a settings file of the working directory, and addresses that keys are sent to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import isolated
from zsvec.config import Settings, load_settings
from zsvec.errors import GenerationError, InvalidInputError, WeightsUnavailableError
from zsvec.generation.access import Key, base_url
from zsvec.trust import distrust, is_private, trust

__all__ = ["isolated"]

FILE = Path("zsvec.toml")
KEY = "s3cr3t-k3y"


def trusted() -> None:
    trust(FILE, Settings.marks())


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody who waits for keys."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0)
        yield listening


def test_a_file_that_somebody_put_there_gets_no_key(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_API_KEY", KEY)
    FILE.write_text(f'store = "http://127.0.0.1:{listener.getsockname()[1]}"\n')
    with pytest.raises(InvalidInputError, match=r"zsvec\.toml sets store.*`zsvec trust`"):
        load_settings().open_store()
    with pytest.raises(BlockingIOError):
        listener.accept()
    trusted()
    assert load_settings().store.startswith("http://127.0.0.1")


@pytest.mark.parametrize(
    "toml",
    [
        'store = "https://elsewhere"',
        'store = "/tmp"',
        'store = "../beside"',
        'store = "~/zsvec-store"',
        'store = "./link"',
        'api_key = "theirs"',
        "allow_http = true",
        'ca_certificate = "theirs.pem"',
        '[profiles.mine.encoders.clip]\nfamily = "clip"\nmodel = "./weights"',
        '[generation]\nbase_url = "https://elsewhere"',
        "[generation.prices.theirs]\nimage = 0",
    ],
)
def test_what_only_a_trusted_file_may_decide(toml: str, tmp_path: Path) -> None:
    Path("link").symlink_to(tmp_path)
    FILE.write_text(f"batch_size = 3\n{toml}")
    name = toml.partition(" =")[0].strip("[").partition(".")[0].partition("]")[0]
    with pytest.raises(InvalidInputError, match=rf"sets {name}, which only a file that you trust may"):
        load_settings()
    trusted()
    assert load_settings().batch_size == 3


@pytest.mark.parametrize("profile", ["./encoders", "encoders/of/theirs", "/tmp/encoders", "~", "../encoders", "."])
def test_only_a_trusted_file_may_name_a_folder_of_encoders(profile: str) -> None:
    FILE.write_text(f'profile = "{profile}"')
    with pytest.raises(InvalidInputError, match="sets profile, which only a file that you trust may"):
        load_settings()
    trusted()
    with pytest.raises(WeightsUnavailableError, match="no exported encoders in"):
        load_settings()


@pytest.mark.parametrize("store", ["./here", "a/b/../c", ":memory:"])
def test_what_any_file_may_decide(store: str) -> None:
    FILE.write_text(f'store = "{store}"\nnamespace = "birds"\nprofile = "offline"\ntimeout = 2\n')
    assert load_settings().store == store


def test_what_the_user_says_elsewhere_needs_no_trust(monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.parametrize("content", [None, b"store = ", b"\xff"])
def test_what_cannot_be_trusted(content: bytes | None) -> None:
    if content is not None:
        FILE.write_bytes(content)
    for action in (trust, distrust):
        with pytest.raises(InvalidInputError, match="cannot be trusted"):
            action(FILE, Settings.marks())


@pytest.mark.parametrize(
    ("url", "private"),
    [
        ("https://elsewhere", True),
        ("http://localhost:6333", True),
        ("http://127.0.0.2", True),
        ("http://[::1]:6333", True),
        ("http://qdrant:6333", False),
        ("http://192.168.0.7", False),
        ("http://localhost.elsewhere", False),
        ("http://127.0.0.1@elsewhere", False),
        ("http://[", False),
        ("", False),
    ],
)
def test_who_can_read_what_is_sent(url: str, private: bool) -> None:
    assert is_private(url) == private


def test_a_key_is_not_sent_where_others_can_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "http://192.0.2.1:6333"
    for urls in (url, f"http://localhost:6333, {url}"):
        with pytest.raises(InvalidInputError, match=r"192\.0\.2\.1.*could read the key.*allow_http"):
            load_settings(store=urls, api_key=KEY).open_store()
    asked: list[str] = []
    monkeypatch.setattr("zsvec.config.open_store", lambda store, **_: asked.append(store))
    load_settings(store=url, api_key=KEY, allow_http=True).open_store()
    load_settings(store=url).open_store()
    assert asked == [url, url]


def test_nor_is_that_of_a_service() -> None:
    key = Key(KEY)
    with pytest.raises(GenerationError, match="allow_http") as raised:
        base_url("http://192.0.2.1/v1", key, allow_http=False)
    assert KEY not in str(raised.value)
    assert base_url("http://192.0.2.1/v1", key, allow_http=True) == "http://192.0.2.1/v1"
    assert base_url("http://localhost:8000/v1", key, allow_http=False) == "http://localhost:8000/v1"
