"""The fake of OpenAI, as its real client sees it."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion
from PIL import Image, UnidentifiedImageError

from tests.generation.fake_openai import CHAT, IMAGES, KEY, FakeOpenAI, Fault, Request, folder_artist, read_log

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


def ask(client: openai.OpenAI, asked: Any = None, name: str = "descriptions", key: str | None = None) -> ChatCompletion:
    wanted: Any = {"name": name, "schema": schema(answer={"type": "string"}), "strict": True}
    return client.chat.completions.create(
        model="gpt-test",
        messages=[
            {"role": "system", "content": "Answer."},
            {"role": "user", "content": json.dumps(DESCRIBE if asked is None else asked)},
        ],
        response_format={"type": "json_schema", "json_schema": wanted},
        extra_headers={"Idempotency-Key": key} if key else None,
    )


def told(client: openai.OpenAI, asked: Any, name: str) -> Any:
    content = ask(client, asked, name).choices[0].message.content
    assert content is not None
    return json.loads(content)


def draw(client: openai.OpenAI, prompt: str = "a red panda", key: str | None = None, **options: Any) -> bytes:
    answer = client.images.generate(
        model="gpt-image-test", prompt=prompt, extra_headers={"Idempotency-Key": key} if key else None, **options
    )
    assert answer.data
    assert answer.data[0].b64_json is not None
    return base64.b64decode(answer.data[0].b64_json)


def always(fault: Fault) -> dict[str, Any]:
    return {"fault": lambda request: fault}


# Answers


def test_describes_categories() -> None:
    with serving(appearances={"desk": "flat, on four legs"}) as (_, client):
        answer = ask(client)
        panda, desk = told(client, DESCRIBE, "descriptions")["categories"]
        assert told(client, DESCRIBE, "descriptions")["categories"] == [panda, desk]
    assert (answer.model, answer.choices[0].finish_reason, answer.choices[0].message.refusal) == (
        "gpt-test",
        "stop",
        None,
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 20
    assert "red panda" in panda["appearance"]
    assert desk["appearance"] == "flat, on four legs"
    assert len(set(panda["scenes"])) == 4


def test_groups_names_by_their_last_word_and_as_it_is_told() -> None:
    everyone = ["red panda", "giant_Panda", "desk", "table", "brown bear", "black bear"]
    with serving(groups=[["desk", "table", "chair"]]) as (_, client):
        groups = told(client, {"categories": ["giant_Panda", "desk"], "all": everyone}, "groups")["groups"]
    assert groups == [["red panda", "giant_Panda"], ["desk", "table"]]


def test_tells_what_the_members_of_groups_have_in_common_and_what_not() -> None:
    group = [{"name": "red panda", "appearance": "red"}, {"name": "giant panda", "appearance": "black and white"}]
    with serving() as (_, client):
        (features,) = told(client, {"groups": [group]}, "features")["groups"]
    assert len(features["common"]) == 2
    assert [member["name"] for member in features["members"]] == ["red panda", "giant panda"]
    assert all(len(member["distinguishing"]) == 2 for member in features["members"])


def test_draws_another_picture_for_each_request() -> None:
    with serving() as (_, client):
        pictures = [draw(client), draw(client), draw(client, key="a"), draw(client, key="b"), draw(client, "desk", "c")]
        answer = client.images.generate(model="gpt-image-test", prompt="desk", n=2, size="1024x1024", quality="low")
    assert len(set(pictures)) == 5
    assert Image.open(io.BytesIO(pictures[0])).size == (64, 64)
    assert len({image.b64_json for image in answer.data or ()}) == 2
    assert (answer.size, answer.quality, answer.output_format) == ("1024x1024", "low", "png")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (1, 196, 197)


def test_draws_by_a_function_and_answers_a_url() -> None:
    with serving(draw=lambda body: body["prompt"].encode(), as_url=True) as (server, client):
        answer = client.images.generate(model="gpt-image-test", prompt="a desk")
        assert answer.data
        (image,) = answer.data
        assert image.b64_json is None
        assert image.url is not None
        with urllib.request.urlopen(image.url, timeout=TIMEOUT) as response:
            assert response.read() == b"a desk"
    assert [entry.sold for entry in server.entries] == [True, False]


def test_serves_images_of_the_longest_name_in_the_prompt_in_turn(tmp_path: Path) -> None:
    for name in ("panda/a", "red_panda/b", "red_panda/c"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    with serving(draw=folder_artist(tmp_path)) as (_, client):
        prompts = ["A Red Panda.", "a panda", "a red panda", "a red panda"]
        assert [draw(client, prompt) for prompt in prompts] == [
            b"red_panda/b",
            b"panda/a",
            b"red_panda/c",
            b"red_panda/b",
        ]
        with pytest.raises(openai.BadRequestError, match="names no sub-folder"):
            draw(client, "a desk")


@pytest.mark.parametrize(
    "wanted",
    [
        {"name": "descriptions", "schema": schema(), "strict": False},
        {"name": "descriptions", "schema": {"type": "object", "properties": {}}, "strict": True},
        {"name": "descriptions", "schema": {**schema(a={"type": "string"}), "required": []}, "strict": True},
        {"name": "poems", "schema": schema(), "strict": True},
    ],
)
def test_refuses_schemas_that_are_not_strict_or_not_known(wanted: Any) -> None:
    with serving() as (server, client):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(
                model="gpt-test",
                messages=[{"role": "user", "content": json.dumps(DESCRIBE)}],
                response_format={"type": "json_schema", "json_schema": wanted},
            )
        assert not server.sold()


def test_knows_no_other_route() -> None:
    with serving() as (_, client), pytest.raises(openai.NotFoundError) as caught:
        client.models.list()
    assert caught.value.body == {
        "message": "Invalid URL (GET /v1/models)",
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }


def test_quotes_a_wrong_key() -> None:
    with FakeOpenAI() as server, client_of(server, api_key="sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="sk-wrong") as caught:
            ask(client)
        assert (caught.value.code, server.entries[0].status, server.entries[0].sold) == ("invalid_api_key", 401, False)


# Idempotency


def test_a_repeated_key_is_sold_once() -> None:
    with serving() as (server, client):
        assert draw(client, key="a") == draw(client, key="a") != draw(client, key="b")
        assert ask(client, key="a").id == ask(client, key="a").id
        assert server.sold(IMAGES) == {"a": 1, "b": 1}
        assert server.sold() == {"a": 2, "b": 1}


def test_a_key_that_is_repeated_meanwhile_is_sold_once() -> None:
    def slowly(body: dict[str, Any]) -> bytes:
        time.sleep(0.1)
        return b"picture"

    with serving(draw=slowly) as (server, client), ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: draw(client, key="a"), range(4)))
        assert server.sold() == {"a": 1}


def test_a_server_without_idempotency_sells_again() -> None:
    with serving(honours_idempotency=False) as (server, client):
        assert draw(client, key="a") == draw(client, key="a")
        assert server.sold() == {"a": 2}


# Faults


@pytest.mark.parametrize(
    ("fault", "error", "status", "code"),
    [
        (Fault.rate_limited(7), openai.RateLimitError, 429, "rate_limit_exceeded"),
        (Fault.out_of_quota(), openai.RateLimitError, 429, "insufficient_quota"),
        (Fault.error(500), openai.InternalServerError, 500, None),
        (Fault.error(503, headers={"Retry-After": "7"}), openai.InternalServerError, 503, None),
        (Fault.unauthorized(), openai.AuthenticationError, 401, "invalid_api_key"),
        (Fault.unknown_model(), openai.NotFoundError, 404, "model_not_found"),
        (Fault.blocked(), openai.BadRequestError, 400, "moderation_blocked"),
        (Fault.blocked("content_policy_violation"), openai.BadRequestError, 400, "content_policy_violation"),
    ],
)
def test_errors(fault: Fault, error: type[openai.APIStatusError], status: int, code: str | None) -> None:
    with serving(**always(fault)) as (server, client):
        for call in (ask, draw):
            with pytest.raises(error) as caught:
                call(client)
            assert (caught.value.status_code, caught.value.code) == (status, code)
            assert caught.value.response.headers.get("Retry-After") == fault.headers.get("Retry-After")
        assert [(entry.status, entry.fault, entry.sold) for entry in server.entries] == [
            (status, fault.name, False)
        ] * 2
        assert not server.sold()


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


def test_closing_ends_a_delay_and_all_threads() -> None:
    before = set(threading.enumerate())
    with FakeOpenAI(**always(Fault.delay(600))) as server, client_of(server) as client, ThreadPoolExecutor() as pool:
        waiting = pool.submit(draw, client)
        while not server.sold():
            time.sleep(0.01)
        started = time.monotonic()
        server.close()
        with pytest.raises(openai.APIConnectionError):
            waiting.result()
    assert time.monotonic() - started < 60
    assert set(threading.enumerate()) <= before
    assert [entry.completed for entry in server.entries] == [False]


def test_a_cut_answer_is_sold_and_given_in_full_to_who_repeats_its_key() -> None:
    with serving(fault=lambda request: Fault.cut() if request.attempt == 0 else None) as (server, client):
        with pytest.raises(openai.APIConnectionError):
            draw(client, key="a")
        assert draw(client, key="a")
        assert server.sold() == {"a": 1}
        assert [(entry.sold, entry.completed) for entry in server.entries] == [(True, False), (False, True)]


@pytest.mark.parametrize("call", [ask, draw])
def test_a_body_that_is_not_json(call: Any) -> None:
    with serving(**always(Fault.malformed_body())) as (server, client):
        with pytest.raises((openai.APIError, ValueError)):
            call(client)
        assert server.entries[0].sold


@pytest.mark.parametrize(
    ("fault", "reason", "content", "refusal"),
    [
        (Fault.malformed_content(), "stop", "Sure! Here you are.", None),
        (Fault.malformed_content('{"categories": 3}'), "stop", '{"categories": 3}', None),
        (Fault.refusal("No."), "stop", None, "No."),
        (Fault.content_filter(), "content_filter", "", None),
    ],
)
def test_faults_of_chats(fault: Fault, reason: str, content: str | None, refusal: str | None) -> None:
    with serving(**always(fault)) as (server, client):
        (choice,) = ask(client, key="a").choices
        assert (choice.finish_reason, choice.message.content, choice.message.refusal) == (reason, content, refusal)
        assert server.sold(CHAT) == {"a": 1}


def test_a_chat_that_ends_too_early() -> None:
    with serving(**always(Fault.length())) as (_, client):
        (choice,) = ask(client).choices
    assert choice.finish_reason == "length"
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        json.loads(choice.message.content or "")


def test_faults_of_images() -> None:
    faults = [Fault.no_image(), Fault.not_an_image()]
    with serving(fault=lambda request: faults[request.number]) as (server, client):
        assert client.images.generate(model="gpt-image-test", prompt="a desk").data == []
        picture = draw(client)
        assert server.sold().total() == 2
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(picture))


def test_a_fault_is_decided_by_number_attempt_path_body_and_key() -> None:
    requests: list[Request] = []
    with serving(fault=requests.append) as (_, client):
        draw(client, "a", key="k")
        draw(client, "b", key="k")
        draw(client, "a")
        draw(client, "a")
        ask(client, key="k")
    assert [request.number for request in requests] == [0, 1, 2, 3, 4]
    assert [request.attempt for request in requests] == [0, 1, 0, 1, 0]
    assert [request.idempotency_key for request in requests] == ["k", "k", None, None, "k"]
    assert [request.path for request in requests] == [IMAGES] * 4 + [CHAT]
    assert [request.body.get("prompt") for request in requests] == ["a", "b", "a", "a", None]


# Log


def test_the_log_is_complete_when_the_answer_is(tmp_path: Path) -> None:
    with serving(log_path=tmp_path / "log.jsonl", latency=0.05) as (server, client):
        for number in range(8):
            draw(client.with_options(timeout=TIMEOUT), f"picture {number}", key=str(number))
            assert len(server.entries) == len(read_log(tmp_path / "log.jsonl")) == number + 1
        ask(client)
        assert server.peak == 1
    assert read_log(tmp_path / "log.jsonl") == server.entries
    image, chat = server.entries[0], server.entries[-1]
    assert (image.path, image.key, image.status, image.subject, image.completed) == (
        IMAGES,
        "0",
        200,
        "picture 0",
        True,
    )
    assert (chat.path, chat.subject, chat.categories) == (CHAT, "descriptions", ("red panda", "desk"))
    assert image.ended - image.started >= 0.05
    assert server.sold(IMAGES) == Counter(entry.key for entry in server.entries if entry.path == IMAGES)


def test_counts_requests_at_once() -> None:
    together = threading.Barrier(5, timeout=TIMEOUT)

    def meet(request: Request) -> None:
        together.wait()

    with serving(fault=meet) as (server, client), ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda number: draw(client, f"picture {number}"), range(10)))
        assert server.peak == 5


def test_clients_that_vanish_make_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    def large(body: dict[str, Any]) -> bytes:
        return bytes(20_000_000)

    with FakeOpenAI(draw=large, latency=0.1) as server:
        for _ in range(3):
            with client_of(server, timeout=0.05) as client, pytest.raises(openai.APITimeoutError):
                draw(client)
        host, port = server.url.removeprefix("http://").removesuffix("/v1").split(":")
        body = b'{"prompt": "a desk"}'
        head = f"POST {IMAGES} HTTP/1.1\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection((host, int(port)), timeout=TIMEOUT) as connection:
            connection.sendall(head.encode() + body)
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT) as connection:
            connection.sendall(head.encode() + body[:5])
        while len(server.entries) < 4:
            time.sleep(0.01)
    assert [entry.status for entry in server.entries] == [200] * 4
    assert not any(entry.completed for entry in server.entries)
    assert capfd.readouterr() == ("", "")


def test_what_is_sold_to_a_client_that_is_killed_is_in_the_log() -> None:
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
