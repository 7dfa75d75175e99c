"""The key is in no output, log or file of a run, however the run ends."""

from __future__ import annotations

import base64
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import Result, cli, hash_encoders  # noqa: F401
from tests.generation.fake_openai import CHAT, IMAGES, FakeOpenAI, Fault, Request
from tests.support import isolated  # noqa: F401
from zsvec.generation.access import KEY_VARIABLE

KEY = "sk-proj-Zk3nXq8Wm2Lr7Tb5Vd9Yf4Hs6Jc1Pg0"
FORMS = [
    form.encode()
    for form in (KEY, *(base64.b64encode(text.encode()).decode()[:-4] for text in (KEY, f"Bearer {KEY}", f":{KEY}")))
]
SAID = "The key {key} was sent."


def faulty(path: str, fault: Fault) -> dict[str, Any]:
    """Options of a service with a fault for all requests of a path."""
    return {"fault": lambda request: fault if request.path == path else None}


def quoted_in_answers(request: Request) -> Fault | None:
    """Quotes the key in a refusal, then in names of fields, then not at all."""
    if request.path != CHAT or request.number > 3:
        return None
    return Fault.refusal(f"Not with {KEY}.") if request.number == 0 else Fault.malformed_content(f'{{"{KEY}": ""}}')


def half_done(request: Request) -> Fault | None:
    """Refuses the key for some of the images."""
    return Fault.error(401, SAID) if "tiger" in request.body.get("prompt", "") else None


ENDS: dict[str, tuple[int, dict[str, Any]]] = {
    "all is well": (0, {}),
    "an answer quotes it": (0, {"appearances": {"lion": f"A cat of {KEY}."}}),
    "answers of no use quote it": (0, {"fault": quoted_in_answers}),
    "images that are declined": (0, faulty(IMAGES, Fault.error(400, SAID, "moderation_blocked"))),
    "images that are none": (0, faulty(IMAGES, Fault.not_an_image())),
    "questions that are declined": (0, faulty(CHAT, Fault.error(400, SAID, "content_policy_violation"))),
    **{
        f"HTTP {status} for {what}": (1, faulty(path, Fault.error(status, SAID)))
        for what, path in (("questions", CHAT), ("images", IMAGES))
        for status in (307, 400, 401, 403, 404, 429, 500)
    },
    "no credit": (1, faulty(IMAGES, Fault.error(429, SAID, "insufficient_quota"))),
    "half done": (1, {"fault": half_done}),
    "cut": (1, faulty(IMAGES, Fault.cut())),
}


@pytest.fixture(autouse=True)
def settings(isolated: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    monkeypatch.setenv("ZSVEC_GENERATION__DEADLINE", "0.3")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FakeOpenAI]]:
    servers = []

    def start(**options: Any) -> FakeOpenAI:
        servers.append(FakeOpenAI(key=KEY, **options))
        monkeypatch.setenv("OPENAI_BASE_URL", servers[-1].url)
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def left(*folders: Path) -> dict[str, bytes]:
    """Returns the content of all files, by path."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {str(path): written(path) for path in files}


def written(path: Path) -> bytes:
    """Returns the written parts of a file. The files of a store have hundreds of megabytes of holes."""
    parts, end = [], 0
    with path.open("rb") as file, suppress(OSError):  # there is no data from here on
        while True:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            parts.append(os.pread(file.fileno(), end - start, start))
    return b"\0".join(parts)


def leaks(*said: str, files: dict[str, bytes]) -> list[str]:
    """Returns the places of the key."""
    everything = {**files, **{f"output ({number})": text.encode() for number, text in enumerate(said)}}
    return [
        where
        for where, content in everything.items()
        if any(form in content or form in where.encode() for form in FORMS)
    ]


@pytest.mark.parametrize("text", [KEY, f"a{KEY}b", base64.b64encode(f"Bearer {KEY}".encode()).decode()])
def test_a_leak_would_be_found(text: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text(f"…{text}…")
    assert leaks("", files=left(tmp_path)) == [str(tmp_path / "a" / "b")]
    assert leaks("", f"…{text}…", files={}) == ["output (1)"]


@pytest.mark.parametrize(
    ("name", "json"),
    [(name, "--json" if name.startswith("an") else "") for name in ENDS],
)
@pytest.mark.usefixtures("hash_encoders")
def test_nothing_says_the_key(
    name: str,
    json: str,
    cli: Callable[..., Result],  # noqa: F811
    serve: Callable[..., FakeOpenAI],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    code, service = ENDS[name]
    caplog.set_level(logging.DEBUG)
    if code == 0:  # on a loaded machine, a repeated request needs more time
        monkeypatch.setenv("ZSVEC_GENERATION__DEADLINE", "60")
    server = serve(**service)
    # noise is sometimes far from a category, and then kept out of the store
    result = cli(f"generate lion tiger --per-category 2 --keep-flagged {json}")
    assert result.code == code, result.err
    assert server.entries
    store = Path(os.environ["ZSVEC_STORE"])
    files = left(tmp_path, store)
    assert any(path.endswith("manifest.jsonl") for path in files)
    assert any(path.startswith(str(store)) for path in files) == (code == 0 or name == "half done")
    assert caplog.records
    assert leaks(result.out, result.err, caplog.text, files=files) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("an answer quotes it", 0),
        ("answers of no use quote it", 0),
        ("questions that are declined", 0),
        ("HTTP 401 for questions", 1),
    ],
)
@pytest.mark.usefixtures("hash_encoders")
def test_a_run_for_texts_does_not_say_the_key(
    name: str,
    code: int,
    cli: Callable[..., Result],  # noqa: F811
    serve: Callable[..., FakeOpenAI],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve(**ENDS[name][1])
    result = cli("generate lion tiger --texts")
    assert (result.code, {entry.path for entry in server.entries}) == (code, {CHAT})
    files = left(tmp_path, Path(os.environ["ZSVEC_STORE"]))
    assert leaks(result.out, result.err, caplog.text, files=files) == []


@pytest.mark.parametrize("name", ["an answer quotes it", "answers of no use quote it", "images that are declined"])
@pytest.mark.usefixtures("hash_encoders")
def test_texts_that_quote_the_key_are_kept_without_it(
    name: str,
    cli: Callable[..., Result],  # noqa: F811
    serve: Callable[..., FakeOpenAI],
    tmp_path: Path,
) -> None:
    _, service = ENDS[name]
    serve(**service)
    assert cli("generate lion --per-category 1").code == 0
    (manifest,) = (content for path, content in left(tmp_path).items() if path.endswith("manifest.jsonl"))
    assert b"***" in manifest
    if name == "an answer quotes it":
        assert "A cat of ***." in cli("show lion --json").objects[0]["texts"]


@pytest.mark.parametrize(
    ("code", "module", "service"),
    [
        (1, "zsvec", faulty(CHAT, Fault.error(401, SAID))),
        (1, "zsvec", faulty(CHAT, Fault.error(500, SAID))),
        (0, "tests.generation.fast_cli", {}),
    ],
    ids=["the key is refused", "the deadline is reached", "all is well"],
)
def test_no_process_says_the_key(
    code: int, module: str, service: dict[str, Any], serve: Callable[..., FakeOpenAI], tmp_path: Path
) -> None:
    server = serve(**service)
    environment = {**os.environ, "OPENAI_LOG": "debug", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", module, "generate", "lion", "--per-category", "1", "--json"]
    ended = subprocess.run(
        command, cwd=tmp_path / "work", env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert server.entries
    assert "openai._base_client" in ended.stderr
    assert leaks(ended.stdout, ended.stderr, files=left(tmp_path)) == []
