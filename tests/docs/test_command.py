"""`zsvec docs`: topics, pages, and what it says of a topic that is none."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from zsvec.cli.commands import app
from zsvec.cli.docs import TOPICS, page, summary
from zsvec.errors import InvalidInputError


def docs(*arguments: str) -> Any:
    return app(["docs", *arguments], prog_name="zsvec", standalone_mode=False)


def test_without_a_topic_it_lists_them_with_their_first_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    docs()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.strip()] == list(TOPICS)
    assert summary(page("limits")) in next(line for line in lines if line.startswith("limits"))


@pytest.mark.parametrize("topic", TOPICS)
def test_a_pipe_gets_the_page_as_it_is(topic: str, capsys: pytest.CaptureFixture[str]) -> None:
    docs(topic)
    assert capsys.readouterr().out == page(topic)


@pytest.mark.parametrize("topic", TOPICS)
def test_a_terminal_gets_it_laid_out(
    topic: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    docs(topic)
    printed = capsys.readouterr().out
    assert page(topic).splitlines()[0].removeprefix("# ") in printed
    assert "```" not in printed
    assert ".md)" not in printed


def test_links_become_commands_in_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "](measured.md)" in page("limits")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    docs("limits")
    assert "zsvec docs measured" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("topic", "close"), [("stream", "streams"), ("Servers", "server"), ("unknown", "unknowns"), ("../errors", None)]
)
def test_an_unknown_topic_names_the_topics_and_close_ones(topic: str, close: str | None) -> None:
    with pytest.raises(InvalidInputError) as raised:
        docs(topic)
    message = str(raised.value)
    assert repr(topic) in message
    assert all(name in message for name in TOPICS)
    assert ("did you mean" in message) == (close is not None)
    assert close is None or close in message.partition("?")[0]


def test_an_unknown_topic_is_wrong_usage_and_costs_nothing() -> None:
    code = """
import sys
from zsvec.cli import main
sys.argv = ["zsvec", "docs", "nothing"]
try:
    main()
finally:
    print(*sorted(sys.modules.keys() & {"torch", "numpy", "scipy", "qdrant_client", "qdrant_edge", "openai"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "quickstart" in done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("# A\n\nOne is. Two\nis.\n", "One is."),
        ("# A\n\nOne\ngoes on\nhere. Two.", "One goes on here."),
        ("# A\n\nVersion 1.18 is. Two.", "Version 1.18 is."),
        ("# A\n\nNo end\n", "No end"),
    ],
)
def test_the_first_sentence(text: str, sentence: str) -> None:
    assert summary(text) == sentence
