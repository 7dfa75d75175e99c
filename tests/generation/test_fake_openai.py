"""The fake server with the real client of OpenAI."""

from __future__ import annotations

import base64
import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from tests.generation.fake_openai import IMAGES, KEY, FakeOpenAI, Fault

TIMEOUT = 60.0
DESCRIBE = {"categories": ["red panda", "desk"]}


@contextmanager
def client_of(server: FakeOpenAI, **options: Any) -> Iterator[openai.OpenAI]:
    settings = {"api_key": KEY, "base_url": server.url, "max_retries": 0, "timeout": TIMEOUT, **options}
    with openai.OpenAI(**settings) as client:
        yield client


@contextmanager
def serving(**options: Any) -> Iterator[tuple[FakeOpenAI, openai.OpenAI]]:
    with FakeOpenAI(**options) as server, client_of(server) as client:
        yield server, client


def schema(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def ask(client: openai.OpenAI, key: str) -> ChatCompletion:
    wanted: Any = {"name": "descriptions", "schema": schema(answer={"type": "string"}), "strict": True}
    return client.chat.completions.create(
        model="gpt-test",
        messages=[
            {"role": "system", "content": "Answer."},
            {"role": "user", "content": json.dumps(DESCRIBE)},
        ],
        response_format={"type": "json_schema", "json_schema": wanted},
        extra_headers={"Idempotency-Key": key},
    )


def draw(client: openai.OpenAI, prompt: str = "a red panda", key: str | None = None) -> bytes:
    headers = {"Idempotency-Key": key} if key else None
    answer = client.images.generate(model="gpt-image-test", prompt=prompt, extra_headers=headers)
    assert answer.data
    assert answer.data[0].b64_json is not None
    return base64.b64decode(answer.data[0].b64_json)


# Answers


# Idempotency


def test_a_repeated_key_is_sold_once() -> None:
    with serving() as (server, client):
        assert draw(client, key="a") == draw(client, key="a") != draw(client, key="b")
        assert ask(client, key="a").id == ask(client, key="a").id
        assert server.sold(IMAGES) == {"a": 1, "b": 1}
        assert server.sold() == {"a": 2, "b": 1}


def test_a_server_without_idempotency_sells_again() -> None:
    with serving(honours_idempotency=False) as (server, client):
        assert draw(client, key="a") == draw(client, key="a")
        assert server.sold() == {"a": 2}


# Faults


def test_a_late_answer_is_sold_when_the_client_has_left() -> None:
    with serving(fault=lambda request: Fault.delay(2) if request.attempt == 0 else None) as (server, client):
        with pytest.raises(openai.APITimeoutError):
            draw(client.with_options(timeout=0.1), key="a")
        while not server.sold():  # the server may still be at work
            time.sleep(0.01)
        assert server.sold() == {"a": 1}
        draw(client, key="a")
        assert server.sold() == {"a": 1}
        while len(server.entries) < 2:
            time.sleep(0.01)
    assert [(entry.number, entry.fault, entry.sold, entry.completed) for entry in server.entries] == [
        (1, None, False, True),
        (0, "delay", True, False),
    ]


def test_a_cut_answer_is_sold_and_given_in_full_to_a_repetition() -> None:
    with serving(fault=lambda request: Fault.cut() if request.attempt == 0 else None) as (server, client):
        with pytest.raises(openai.APIConnectionError):
            draw(client, key="a")
        assert draw(client, key="a")
        assert server.sold() == {"a": 1}
        assert [(entry.sold, entry.completed) for entry in server.entries] == [(True, False), (False, True)]


# Clients that leave


def test_an_image_is_sold_to_a_client_that_is_killed() -> None:
    with FakeOpenAI(latency=0.1) as server:
        host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
        body = b'{"prompt": "a desk"}'
        head = f"POST {IMAGES} HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=TIMEOUT) as connection:
            connection.sendall(head.encode() + body)
            while not server.sold():
                time.sleep(0.001)
            at_once = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)  # a reset, not an orderly end
    assert [(entry.sold, entry.completed) for entry in server.entries] == [(True, False)]
