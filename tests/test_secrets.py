"""Keys and passwords are in no message, cause, traceback, log, representation or output of a command.

`tests/generation/test_key.py` has the same for services that draw.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import zsvec
from tests.cli.support import cli, hash_encoders
from tests.support import encode, isolated, open_classifier, trusted_settings
from zsvec.errors import ZSVecError, without_password
from zsvec.generation.access import Key, base_url
from zsvec.inputs.images import load_image, source_of
from zsvec.settings.settings import GenerationSettings, Settings, load_settings

__all__ = ["cli", "hash_encoders", "isolated"]

PLANTED = "Zk3nXq8Wm2Lr7Tb5"
NUMERIC = 4815162342108
KEYS = (PLANTED, f"{PLANTED}é", f"{PLANTED}\nx", f"\x1b{PLANTED}", str(NUMERIC))
URLS = (
    f"http://user:{PLANTED}@127.0.0.1:1",
    f"https://{PLANTED}@127.0.0.1:1",
    f"http://user:{PLANTED}/x@127.0.0.1:1",
    f"http://127.0.0.1:1,http://user:{PLANTED}@127.0.0.1:2",
    f"user:{PLANTED}@127.0.0.1:6333",
)


def said(error: BaseException) -> str:
    """Returns the traceback of an error, with causes and contexts."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)


def outcome(action: Callable[[], Any]) -> str:
    try:
        done = action()
    except ZSVecError as error:
        return said(error)
    return f"{done!r} {done!s}"


def assert_kept(text: str) -> None:
    for secret in (PLANTED, str(NUMERIC)):
        lines = [line for line in text.splitlines() if secret in line]
        # tracebacks quote code, without values
        assert not lines, lines[:3]


def test_without_password() -> None:
    for text, shown in {
        "http://user:pass@host:6333/x": "http://***@host:6333/x",
        "http://pass@host": "http://***@host",
        "http://a:b@c@host": "http://***@host",
        "'http://a:b/c@host'": "'http://***@host'",
        "http://host:1,http://a:b@host:2": "http://host:1,http://***@host:2",
        "http://user:pa'ss@host:6333": "http://***@host:6333",
        'http://us:p"w@h:1': "http://***@h:1",
        "http://a:b@host/icon@2x.png": "http://***@host/icon@2x.png",
        "http://user:pa#ss/word@host:6333": "http://***@host:6333",
        "http://user:#pass@host": "http://***@host",
        "http://user:/pass@host/x": "http://***@host/x",
        "http://user:?pass@host:1/x": "http://***@host:1/x",
        "http://user:p@ss/word@host:6333": "http://***@host:6333",
        "http://user:p@ss#word@[::1]:6333/x": "http://***@[::1]:6333/x",
        "http://user:12/34@host:6333": "http://***@host:6333",
        "http://to/k#en@host:6333": "http://***@host:6333",
        "http://a:1/b@host:2,http://c:d/e@host:3": "http://***@host:2,http://***@host:3",
        "http://host:1/x,http://a:b@host:2": "http://host:1/x,http://***@host:2",
        "https://cdn/x/icon@2x.png": "https://cdn/x/icon@2x.png",
        "https://cdn:8080/icon@2x.png": "https://cdn:8080/icon@2x.png",
        "https://cdn?icon=a@b": "https://cdn?icon=a@b",
        "file:///a/b@c/d": "file:///a/b@c/d",
        "user:pass@host:6333": "***@host:6333",
        "'user:pa'ss@host:6333'": "'***@host:6333'",
        "user:pa/ss@host:6333": "***@host:6333",
        "http://host:6333/a": "http://host:6333/a",
        "photo@2x.png": "photo@2x.png",
        "mail to a@b.org: c": "mail to a@b.org: c",
        "": "",
    }.items():
        assert without_password(text) == shown


@pytest.mark.parametrize("store", ["http://127.0.0.1:1", "http://elsewhere.invalid:1", "https://127.0.0.1:1", "x"])
def test_the_key_of_a_store(store: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for key in KEYS:
        for action in (
            lambda key=key: load_settings(store=store, api_key=key),
            lambda key=key: load_settings(store=store, api_key=key).open_store().close(),
            lambda key=key: load_settings(store=store, api_key=key, allow_http=True, timeout=0.2).open_store(),
            lambda key=key: zsvec.open(store, profile="none", api_key=key),
        ):
            assert_kept(outcome(action))
    assert_kept(caplog.text)


@pytest.mark.parametrize("key", [NUMERIC, float(NUMERIC), [PLANTED], {"a": PLANTED}, PLANTED.encode()])
def test_a_key_that_is_no_text(key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_kept(outcome(lambda: load_settings(api_key=key)))
    assert_kept(outcome(lambda: zsvec.open("http://127.0.0.1:1", api_key=key, timeout=0.2)))
    trusted_settings(f"api_key = {json.dumps(key if not isinstance(key, dict | bytes) else NUMERIC)}")
    assert_kept(outcome(load_settings))


@pytest.mark.parametrize("name", ["apikey", "api_keys", "openai_api_key", "generation.api_key", "generation.key"])
def test_a_key_at_the_wrong_place(
    name: str, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any], recwarn: pytest.WarningsRecorder
) -> None:
    trusted_settings(
        "\n".join([*([f"[{name.split('.')[0]}]"] if "." in name else []), f'{name.split(".")[-1]} = "{PLANTED}"'])
    )
    assert_kept(outcome(load_settings))
    for command in ("trust", "info", "doctor"):
        done = cli(command)
        assert_kept(done.out + done.err)
    Path("zsvec.toml").unlink()
    monkeypatch.setenv(f"ZSVEC_{name.upper().replace('.', '__')}", PLANTED)
    with suppress(UserWarning):
        assert_kept(outcome(load_settings))
    assert_kept("".join(str(warning.message) for warning in recwarn))


@pytest.mark.parametrize("url", URLS)
class TestPasswordsOfURLs:
    def test_of_a_store(self, url: str, cli: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        for options in ({}, {"api_key": "key"}, {"timeout": "soon"}, {"api_key": "key", "allow_http": True}):
            assert_kept(outcome(lambda options=options: load_settings(store=url, **options)))  # type: ignore[misc]
            assert_kept(outcome(lambda options=options: zsvec.open(url, profile="base", **options)))  # type: ignore[misc]
        for command in ("info", "doctor", "doctor --json", "list", "gc"):
            done = cli(f"--store '{url}' {command}")
            assert_kept(done.out + done.err)
        trusted_settings(f'store = "{url}"')
        for command in ("trust", "doctor", "info --json", "trust --revoke", "info"):
            done = cli(command)
            assert_kept(done.out + done.err)
        assert_kept(caplog.text)

    def test_of_a_service(
        self, url: str, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        monkeypatch.setenv("OPENAI_API_KEY", f"sk-{PLANTED}")
        for allow_http in (False, True):
            assert_kept(outcome(lambda: base_url(url, Key("sk-1234567890"), allow_http=allow_http)))  # noqa: B023
        with suppress(ValueError):
            assert_kept(repr(GenerationSettings(base_url=url)))
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("ZSVEC_GENERATION__DEADLINE", "0.2")
        for command in ("generate red blue --max-images 1 --per-category 1", "doctor", "doctor --json"):
            done = cli(command)
            assert_kept(done.out + done.err)
        monkeypatch.delenv("OPENAI_BASE_URL")
        trusted_settings(f'[generation]\nbase_url = "{url}"')
        for command in ("generate red blue --max-images 1 --per-category 1", "doctor", "trust"):
            done = cli(command)
            assert_kept(done.out + done.err)
        assert_kept(outcome(load_settings))
        assert_kept(caplog.text)

    def test_of_a_hub(self, url: str, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", url)
        for command in ("doctor", "doctor --json"):
            done = cli(command)
            assert_kept(done.out + done.err)

    def test_of_images(self, url: str, cli: Callable[..., Any], tmp_path: Path) -> None:
        source = f"{url}/a.jpg"
        assert_kept(outcome(lambda: load_image(source)) if "://" in url else "")
        assert_kept(source_of(source) if "://" in url else "")
        with open_classifier(tmp_path) as clf:
            clf.add_category("a", images=[encode(Image.new("RGB", (8, 8)), "PNG")])
            for prediction in clf.classify_stream([source] if "://" in url else []):
                assert_kept(f"{prediction!r} {prediction} {json.dumps(prediction.to_dict())}")


@pytest.mark.parametrize("token", [PLANTED, f"\x1b{PLANTED}", NUMERIC, [PLANTED], {"a": PLANTED}])
def test_the_token_of_label_studio(token: Any) -> None:
    assert_kept(outcome(lambda: load_settings(label_studio_token=token)))


def test_a_service_gets_no_password() -> None:
    assert base_url("https://user:pass@host/v1", Key("sk-1234567890"), allow_http=False) == "https://host/v1"


def test_representations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", PLANTED)
    with open_classifier(tmp_path, api_key=PLANTED) as clf:
        for one in (clf, clf.settings, clf._store, clf.stats, clf.generation, clf.info(), Key.from_environment()):
            assert_kept(f"{one!r} {one!s}")
        assert_kept(clf.settings.model_dump_json())
    assert_kept(repr(Settings(store=URLS[0], api_key=PLANTED)))  # type: ignore[arg-type]
