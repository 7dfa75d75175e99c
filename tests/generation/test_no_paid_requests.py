"""Tests cannot spend money: with ZSVEC_ALLOW_REQUESTS=0, no request leaves this machine."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.generation.fake_openai import FakeOpenAI
from tests.generation.scripted import pictures, scripted
from tests.support import isolated  # noqa: F401
from zsvec.errors import GenerationError, GenerationUnavailableError
from zsvec.generation import access, prompts
from zsvec.generation.access import SWITCH_VARIABLE
from zsvec.generation.client import Answer, Client, Picture
from zsvec.settings.settings import GenerationSettings

OPENAI = "https://api.openai.com/v1"
ELSEWHERE = {
    OPENAI: "api.openai.com",
    "http://service.invalid/v1": "service.invalid",
    "http://192.0.2.1/v1": "192.0.2.1",
    "http://0.0.0.0/v1": "0.0.0.0",
    "http://[2001:db8::1]/v1": "2001:db8::1",
    "http://127.0.0.1.evil.invalid/v1": "127.0.0.1.evil.invalid",
    "http://localhost.evil.invalid/v1": "localhost.evil.invalid",
    "http://localhost@evil.invalid/v1": "evil.invalid",
    "http://127.0.0.1:8000@evil.invalid/v1": "evil.invalid",
    "http://evil.invalid/127.0.0.1": "evil.invalid",
    "http://evil.invalid?@127.0.0.1/v1": "evil.invalid",
    "http://evil.invalid#@localhost/v1": "evil.invalid",
}
QUESTION = prompts.describe(["lion"])

# Lists every host that is looked up or connected to, and lets none but loopback be reached.
RECORDER = """
import socket

attempts = []
look_up, connect = socket.getaddrinfo, socket.socket.connect

def check(host):
    attempts.append(host)
    if host not in ("127.0.0.1", "localhost", "::1"):
        raise OSError(f"no test goes to {host}")

def checked_look_up(host, *more, **named):
    check(host)
    return look_up(host, *more, **named)

def checked_connect(self, address):
    if self.family != socket.AF_UNIX:
        check(address[0])
    return connect(self, address)
"""


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    recorder: dict[str, Any] = {}
    exec(RECORDER, recorder)
    monkeypatch.setattr(socket, "getaddrinfo", recorder["checked_look_up"])
    monkeypatch.setattr(socket.socket, "connect", recorder["checked_connect"])
    return recorder["attempts"]


def test_the_switch_is_off() -> None:
    assert os.environ[SWITCH_VARIABLE] == "0"
    assert access.ALLOW_REQUESTS is False


@pytest.mark.usefixtures("isolated")
def test_the_switch_stays_off_where_settings_are_taken_away() -> None:
    assert os.environ[SWITCH_VARIABLE] == "0"
    assert [name for name in os.environ if name.startswith("ZSVEC_")] == [SWITCH_VARIABLE]


def test_no_other_host_is_asked(attempts: list[str]) -> None:
    for url, host in ELSEWHERE.items():
        expected = f"requests to {host} are forbidden here by ZSVEC_ALLOW_REQUESTS in the environment"
        with Client(GenerationSettings(base_url=url, allow_http=True, deadline=0.1)) as client:
            with pytest.raises(GenerationError, match=f"^{re.escape(expected)}$"):
                client.ask(QUESTION, "k")
            with pytest.raises(GenerationError, match=f"^{re.escape(expected)}$"):
                client.draw("a lion", "k")
    assert attempts == []


def test_neither_the_environment_nor_the_default_is_asked(attempts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "", OPENAI):
        if value is not None:
            monkeypatch.setenv("OPENAI_BASE_URL", value)
        with (
            Client(GenerationSettings()) as client,
            pytest.raises(GenerationError, match=r"api\.openai\.com are forbidden"),
        ):
            client.ask(QUESTION, "k")
    assert attempts == []


def test_it_is_the_switch_that_does_it(attempts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "ALLOW_REQUESTS", True)
    for url, host in ELSEWHERE.items():
        if url == OPENAI:
            continue
        attempts.clear()
        with (
            Client(GenerationSettings(base_url=url, allow_http=True, deadline=0.1)) as client,
            pytest.raises(GenerationUnavailableError),
        ):
            client.ask(QUESTION, "k")
        assert set(attempts) == {host}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_this_machine_is_asked(host: str, attempts: list[str]) -> None:
    with FakeOpenAI() as server:
        settings = GenerationSettings(base_url=server.url.replace("127.0.0.1", host), allow_http=True)
        with Client(settings) as client:
            assert isinstance(client.ask(QUESTION, "k"), Answer)
            assert isinstance(client.draw("a lion", "k"), Picture)
    assert host.lower() in attempts


def test_this_machine_by_its_other_address(attempts: list[str]) -> None:
    with (
        Client(GenerationSettings(base_url="http://[::1]:9/v1", deadline=0.1)) as client,
        pytest.raises(GenerationUnavailableError),  # no server
    ):
        client.ask(QUESTION, "k")
    assert set(attempts) == {"::1"}


def test_no_image_is_fetched_from_elsewhere(attempts: list[str]) -> None:
    for url, host in ELSEWHERE.items():
        with (
            scripted(lambda *_, url=url: pictures({"url": url})) as server,
            Client(GenerationSettings(base_url=server.url, deadline=0.1)) as client,
            pytest.raises(GenerationError, match=f"requests to {host} are forbidden"),
        ):
            client.draw("a lion", "k")
        assert len(server.seen) == 1
    assert set(attempts) == {"127.0.0.1"}


@pytest.mark.usefixtures("isolated")
def test_a_process_of_a_test_sends_nothing(tmp_path: Path) -> None:
    program = (
        f"import sys\n{RECORDER}\n"
        "socket.getaddrinfo, socket.socket.connect = checked_look_up, checked_connect\n"
        "from zsvec.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    print('attempts:', attempts)\n"
    )
    started = subprocess.run(
        [sys.executable, "-c", program, "generate", "lion"],
        cwd=tmp_path / "work",
        env={**os.environ, "ZSVEC_GENERATION__DEADLINE": "0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert started.returncode == 1
    assert started.stdout == "attempts: []\n"
    assert "requests to api.openai.com are forbidden here by ZSVEC_ALLOW_REQUESTS in the environment" in started.stderr
