"""The client of the service: requests, repetitions, refusals, errors, and the secrecy of the key."""

from __future__ import annotations

import base64
import json
import math
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import formatdate
from itertools import product
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.generation.fake_openai import CHAT, IMAGES, KEY, FakeOpenAI, Fault, Request, noise
from tests.generation.scripted import Reply, Scripted, Sent, chat, pictures, scripted
from zsvec.errors import GenerationError, GenerationUnavailableError
from zsvec.generation import client as module
from zsvec.generation import prompts
from zsvec.generation.access import KEY_VARIABLE, MAX_TEXT_CHARS, host_of
from zsvec.generation.client import MAX_TOKENS, Answer, Client, Declined, Picture
from zsvec.generation.prices import Usage, image_cost
from zsvec.generation.prompts import Description, Descriptions
from zsvec.settings.settings import GenerationSettings

QUESTION = prompts.describe(["lion"])
PROMPT = "a lion in a meadow"
DRAWN = noise("a picture")
PATIENCE = 60.0  # seconds until a test that hangs fails

Call = Callable[[Client, str], Any]


def ask(client: Client, key: str) -> Answer[Descriptions] | Declined:
    return client.ask(QUESTION, key)


def draw(client: Client, key: str) -> Picture | Declined:
    return client.draw(PROMPT, key)


both = pytest.mark.parametrize("call", [ask, draw])


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of the usual back-off, above the minimum."""
    monkeypatch.setattr(module._BACK_OFF, "multiplier", 0.005)


@contextmanager
def serving(*faults: Fault | None, **options: Any) -> Iterator[tuple[FakeOpenAI, Client]]:
    """A server with faults for the first requests, or chosen by ``fault``; and a client.

    Options that the server does not have are settings.
    """
    chosen = {name: options.pop(name) for name in [*options] if name in GenerationSettings.model_fields}
    settings: dict[str, Any] = {"deadline": PATIENCE, **chosen}
    if faults:
        options["fault"] = lambda request: faults[request.number] if request.number < len(faults) else None
    with FakeOpenAI(**options) as server, Client(GenerationSettings(base_url=server.url, **settings)) as client:
        yield server, client


@contextmanager
def script(respond: Callable[[Scripted, Sent], Reply], **settings: Any) -> Iterator[tuple[Scripted, Client]]:
    with scripted(respond) as server:
        chosen: dict[str, Any] = {"base_url": server.url, "deadline": PATIENCE, **settings}
        with Client(GenerationSettings(**chosen)) as client:
            yield server, client


def always(fault: Fault) -> Callable[[Request], Fault]:
    return lambda request: fault


def keys(server: FakeOpenAI) -> list[str | None]:
    """The idempotency key of each request, in order."""
    return [entry.key for entry in sorted(server.entries, key=lambda entry: entry.number)]


def whole_traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


# Answers and pictures


def test_asks() -> None:
    with serving(appearances={"lion": "large and tawny"}) as (_, client):
        answer = client.ask(QUESTION, "k")
    assert isinstance(answer, Answer)
    assert isinstance(answer.value, Descriptions)
    (lion,) = answer.value.categories
    assert (lion.name, lion.appearance, len(lion.scenes)) == ("lion", "large and tawny", 4)
    assert answer.response == "chatcmpl-0"
    read = len(QUESTION.instructions) + len('{"categories": ["lion"]}')
    assert answer.usage == Usage(read // 4, len(json.dumps(answer.value.model_dump())) // 4)


def test_draws() -> None:
    with serving(draw=lambda body: DRAWN) as (_, client):
        assert client.draw(PROMPT, "k") == Picture(DRAWN, "req_0", Usage(len(PROMPT) // 4, 196))


def test_requests_of_questions() -> None:
    questions: list[prompts.Question[Any]] = [
        QUESTION,
        prompts.group(["grey cat"], ["grey cat", "red cat", "dog"]),
        prompts.compare([("grey cat", "red cat")], {"grey cat": "grey", "red cat": "„rötlich“"}),
    ]
    for question in questions:
        sent: list[Request] = []
        with serving(fault=sent.append, language_model="a-model") as (_, client):
            answer = client.ask(question, "the key of the request")
        assert isinstance(answer, Answer)  # the server takes strict schemas only
        (request,) = sent
        assert (request.path, request.idempotency_key) == (CHAT, "the key of the request")
        system, user = request.body["messages"]
        assert system == {"role": "system", "content": question.instructions}
        assert (user["role"], json.loads(user["content"])) == ("user", json.loads(json.dumps(question.data)))
        assert request.body == {
            "model": "a-model",
            "messages": [system, user],
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": question.step, "schema": question.form.model_json_schema(), "strict": True},
            },
        }


def test_requests_of_images() -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"model": "gpt-image-2.6-flare", "size": "1024x1024", "quality": "low"}),
        (
            {"image_model": "other", "image_size": "512x256", "image_quality": "high"},
            {"model": "other", "size": "512x256", "quality": "high"},
        ),
        ({"image_model": "mine", "image_quality": None}, {"model": "mine", "size": "1024x1024"}),
    ]
    for settings, options in cases:
        sent: list[Request] = []
        with serving(fault=sent.append, **settings) as (_, client):
            assert isinstance(client.draw(PROMPT, "the key of the request"), Picture)
        (request,) = sent
        assert (request.path, request.idempotency_key) == (IMAGES, "the key of the request")
        assert request.body == {"prompt": PROMPT, "n": 1, **options}


def test_the_key_is_sent_to_the_service_and_not_to_where_its_images_are() -> None:
    def elsewhere(server: Scripted, sent: Sent) -> Reply:
        return Reply(DRAWN)

    with scripted(elsewhere) as files:

        def answer(server: Scripted, sent: Sent) -> Reply:
            return pictures({"url": f"{files.base}/a.png"})

        with script(answer) as (server, client):
            picture = client.draw(PROMPT, "k")
    assert isinstance(picture, Picture)
    assert picture.data == DRAWN
    assert [sent.headers["authorization"] for sent in server.seen] == [f"Bearer {KEY}"]
    (fetched,) = files.seen
    assert KEY not in str(fetched)


def test_optional_fields_of_responses() -> None:
    data = base64.b64encode(DRAWN).decode()
    with script(lambda *_: pictures({"b64_json": data, "revised_prompt": "a lion, revised"})) as (_, client):
        assert client.draw(PROMPT, "k") == Picture(DRAWN, "req-1", None, "a lion, revised")
    with script(lambda *_: pictures({"b64_json": data}, input_tokens=3, output_tokens=5)) as (_, client):
        assert client.draw(PROMPT, "k") == Picture(DRAWN, "req-1", Usage(3, 5), None)
    with script(lambda *_: chat({"categories": []})) as (_, client):
        assert client.ask(QUESTION, "k") == Answer(Descriptions(categories=[]), "chatcmpl-1", Usage())


def test_asks_and_draws_from_many_threads_at_once() -> None:
    everyone = threading.Barrier(16)

    def meet(request: Request) -> None:
        everyone.wait(PATIENCE)

    def work(client: Client, number: int) -> str:
        if number % 2:
            picture = client.draw(f"thing {number}", f"k{number}")
            assert isinstance(picture, Picture)
            return picture.data.decode()
        answer = client.ask(prompts.describe([f"thing {number}"]), f"k{number}")
        assert isinstance(answer, Answer)
        return answer.value.categories[0].name

    with (
        serving(fault=meet, draw=lambda body: body["prompt"].encode()) as (server, client),
        ThreadPoolExecutor(16) as pool,
    ):
        assert list(pool.map(lambda number: work(client, number), range(16))) == [f"thing {n}" for n in range(16)]
    assert sorted(filter(None, keys(server))) == sorted(f"k{number}" for number in range(16))


# Temporary failures


@both
def test_a_temporary_failure_is_repeated_with_the_same_key(call: Call) -> None:
    errors = [Fault.error(status) for status in (408, 409, 429, 500, 502, 503, 529)]
    for fault in (*errors, Fault.rate_limited(), Fault.cut()):
        with serving(fault, draw=lambda body: DRAWN) as (server, client):
            assert isinstance(call(client, "k"), Answer | Picture), fault
        assert keys(server) == ["k", "k"], fault
        assert server.sold() == {"k": 1}, fault


@both
def test_a_late_response_is_requested_again_with_the_same_key(call: Call) -> None:
    with serving(Fault.delay(PATIENCE), timeout=0.3) as (server, client):
        assert isinstance(call(client, "k"), Answer | Picture)
        sold = server.sold()
    assert set(keys(server)) == {"k"}
    assert sold == {"k": 1}


def test_a_failed_download_is_repeated_and_nothing_is_bought_again() -> None:
    def answer(server: Scripted, sent: Sent) -> Reply:
        if sent.path == "/a.png":
            failed = [each.path for each in server.seen].count("/a.png") == 1
            return Reply(b"", 503) if failed else Reply(DRAWN)
        return pictures({"url": f"{server.base}/a.png"})

    with script(answer) as (server, client):
        picture = client.draw(PROMPT, "k")
    assert isinstance(picture, Picture)
    assert picture.data == DRAWN
    assert [sent.path for sent in server.seen] == ["/v1/images/generations", "/a.png", "/a.png"]


def test_the_seconds_of_a_retry_after_are_waited() -> None:
    with serving(Fault.rate_limited(0.3)) as (server, client):
        assert isinstance(ask(client, "k"), Answer)
    refused, answered = server.entries
    assert answered.started - refused.ended > 0.29


def test_the_date_of_a_retry_after_is_waited_for() -> None:
    came: list[float] = []
    due: list[int] = []

    def refuse_first(request: Request) -> Fault | None:
        came.append(time.time())
        if request.number:
            return None
        due.append(math.ceil(time.time() + 0.2))
        return Fault.rate_limited(formatdate(due[0], usegmt=True))

    with serving(fault=refuse_first) as (_, client):
        assert isinstance(ask(client, "k"), Answer)
    _, again = came
    assert again > due[0] - 0.01


def test_an_unusable_retry_after_is_no_leave_to_repeat_at_once() -> None:
    for wait in (
        *("0", "-1", "0.001", "nan", "-inf", "soon", "", formatdate(0, usegmt=True)),
        "Mon, 01 Jan 2024 00:00:00 +99999999999999999",
        f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT",
    ):
        with serving(Fault.rate_limited(wait)) as (server, client):
            assert isinstance(ask(client, "k"), Answer), wait
        refused, answered = server.entries
        assert answered.started - refused.ended > 0.09, wait


def test_a_retry_after_beyond_the_deadline_ends_it_at_once() -> None:
    start = time.monotonic()
    for wait, deadline in (
        ("2", 1),
        *((wait, 600) for wait in ("601", "inf", "9" * 20, "9" * 5000)),
        ("Fri, 31 Dec 2100 23:59:59 GMT", 600),
        ("Fri, 31 Dec 2100 23:59:59 -0000", 600),
        (f"Mon, 01 Jan 2024 {'9' * 20}:00:00 GMT", 600),
    ):
        with (
            serving(fault=always(Fault.rate_limited(wait)), deadline=deadline) as (server, client),
            pytest.raises(GenerationUnavailableError, match=r"HTTP 429.*Rate limit reached"),
        ):
            ask(client, "k")
        assert keys(server) == ["k"], wait
    assert time.monotonic() - start < PATIENCE


@both
def test_a_deadline_ends_it(call: Call) -> None:
    for fault, problem in (
        (Fault.error(503, "All servers are busy."), "HTTP 503: .*All servers are busy"),
        (Fault.rate_limited(), "HTTP 429: .*Rate limit reached"),
        (Fault.cut(), "RemoteProtocolError"),
        (Fault.delay(PATIENCE), "timed out"),
    ):
        timeout = 0.1 if fault.name == "delay" else 180
        with (
            serving(fault=always(fault), deadline=0.1, timeout=timeout) as (server, client),
            pytest.raises(GenerationUnavailableError, match=f"{server.url}/? is not available: .*{problem}"),
        ):
            call(client, "k")
        assert set(keys(server)) <= {"k"}


def test_stop_ends_all_waits() -> None:
    with (
        serving(fault=always(Fault.rate_limited(PATIENCE)), deadline=600) as (server, client),
        ThreadPoolExecutor(4) as pool,
    ):
        waiting = [pool.submit(ask, client, f"k{number}") for number in range(4)]
        end = time.monotonic() + PATIENCE
        while len(server.entries) < 4 and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.2)  # until all wait
        client.stop()
        for future in waiting:
            with pytest.raises(GenerationUnavailableError):
                future.result(PATIENCE / 2)
    assert sorted(filter(None, keys(server))) == ["k0", "k1", "k2", "k3"]


# Unusable responses

UNUSABLE = [
    (Fault.malformed_content("Sure! Here you are."), "Invalid JSON"),
    (Fault.malformed_content('{"categories": [{"name": "lion"'), "Invalid JSON"),
    (Fault.malformed_content('{"categories": [{"name": "lion"}]}'), "appearance: Field required"),
    (Fault.malformed_content('{"categories": [], "note": ""}'), "note: Extra inputs"),
    (Fault.malformed_content('{"categories": "lion"}'), "categories: .*array"),
    (Fault.malformed_content(""), "Invalid JSON"),
]


def test_an_unusable_answer_is_requested_again_with_another_key_three_times_in_all() -> None:
    with serving() as (_, client):
        good = client.ask(QUESTION, "k")
    assert isinstance(good, Answer)
    for fault, problem in UNUSABLE:
        with serving(fault) as (server, client):
            answer = client.ask(QUESTION, "k")
        assert isinstance(answer, Answer)
        assert answer.value == good.value
        assert keys(server) == ["k", "k-1"]
        assert answer.usage == Usage(2 * good.usage.input, good.usage.output + len(fault.message) // 4)
        with serving(fault=always(fault)) as (server, client):
            declined = client.ask(QUESTION, "k")
        assert isinstance(declined, Declined)
        assert declined.code == "unusable"
        assert keys(server) == ["k", "k-1", "k-2"]
        assert declined.usage == Usage(3 * good.usage.input, 3 * (len(fault.message) // 4))
        assert re.search(problem, declined.reason)


@both
def test_an_unusable_body_is_requested_again_with_another_key(call: Call) -> None:
    fault = Fault.malformed_body()
    with serving(fault, draw=lambda body: DRAWN) as (server, client):
        assert isinstance(call(client, "k"), Answer | Picture)
    assert keys(server) == ["k", "k-1"]
    with serving(fault=always(fault)) as (server, client):
        declined = call(client, "k")
    assert declined.code == "unusable"
    assert keys(server) == ["k", "k-1", "k-2"]


def test_the_tokens_of_unusable_images_are_counted() -> None:
    each = Usage(len(PROMPT) // 4, 196)
    with serving(fault=always(Fault.no_image())) as (_, client):
        declined = client.draw(PROMPT, "k")
    assert declined == Declined(
        "unusable", "none of 3 responses could be used: there was no image in the response", each + each + each, 3
    )
    with serving(Fault.no_image(), draw=lambda body: DRAWN) as (_, client):
        assert client.draw(PROMPT, "k") == Picture(DRAWN, "req_1", each + each, unusable=1)


def test_stop_ends_requests_with_unusable_responses() -> None:
    asked: list[Client] = []

    def answer(server: Scripted, sent: Sent) -> Reply:
        asked[0].stop()
        return pictures({})

    with script(answer) as (server, client):
        asked.append(client)
        declined = client.draw(PROMPT, "k")
    problem = "none of 1 responses could be used: there was no image in the response"
    assert declined == Declined("unusable", problem, unusable=1)
    assert len(server.seen) == 1


def test_the_check_of_a_response_ends_at_the_first_error_of_a_list() -> None:
    forms: list[tuple[type[BaseModel], str]] = [
        (module._Images, '{"data": [1, 1]}'),
        (module._Reply, '{"choices": [1, 1]}'),
        (Descriptions, '{"categories": [1, 1]}'),
        (prompts.Groups, '{"groups": [[1, 1]]}'),
    ]
    for form, body in forms:
        with pytest.raises(ValidationError) as caught:
            form.model_validate_json(body)
        assert caught.value.error_count() == 1


def test_impossible_counts_of_tokens_are_clipped() -> None:
    image = {"b64_json": base64.b64encode(DRAWN).decode()}
    for count, counted in ((-5, 0), (10**4000, MAX_TOKENS)):
        with script(lambda *_, n=count: pictures(image, input_tokens=n, output_tokens=n)) as (_, client):
            picture = client.draw(PROMPT, "k")
        assert isinstance(picture, Picture)
        assert picture.usage == Usage(counted, counted)
        assert image_cost(picture.usage, GenerationSettings()) is not None


def test_invalid_images() -> None:
    images: list[tuple[dict[str, Any], str]] = [
        ({"b64_json": "no base64!"}, "not in base64"),
        ({"b64_json": "é"}, "not in base64"),
        ({"b64_json": 7}, "data.0.b64_json"),
        ({"b64_json": "", "url": None}, "no image"),
        ({}, "no image"),
    ]
    for image, problem in images:
        with script(lambda *_, image=image: pictures(image)) as (server, client):
            declined = client.draw(PROMPT, "k")
        assert isinstance(declined, Declined)
        assert declined.code == "unusable"
        assert problem in declined.reason
        assert [sent.headers["idempotency-key"] for sent in server.seen] == ["k", "k-1", "k-2"]


def test_invalid_answers() -> None:
    bodies: list[Any] = [{}, {"choices": []}, {"choices": None}, {"choices": [{}]}, {"choices": [{"message": {}}]}]
    for body in (*bodies, [], "yes", 7, None):
        with script(lambda *_, body=body: Reply(body)) as (server, client):
            declined = client.ask(QUESTION, "k")
        assert isinstance(declined, Declined)
        assert (declined.code, declined.usage) == ("unusable", Usage())
        assert len(server.seen) == 3


@both
def test_the_charset_of_a_response_is_ignored(call: Call) -> None:
    usual = pictures({"b64_json": base64.b64encode(DRAWN).decode()}) if call is draw else chat({"categories": []})
    for charset, status in product(("punycode", "zlib", "idna"), (200, 400)):
        body = usual.body if status == 200 else {"error": {"message": "no", "code": "content_policy"}}
        reply = Reply(body, status, {"Content-Type": f"application/json; charset={charset}"})
        with script(lambda *_, reply=reply: reply) as (server, client):
            outcome = call(client, "k")
        assert isinstance(outcome, Answer | Picture if status == 200 else Declined)
        assert len(server.seen) == 1


# Long texts

LONG = "A" * 1_000_000


@both
def test_a_long_message_is_cut(call: Call) -> None:
    for status in (400, 403, 404, 503):
        reply = Reply({"error": {"message": LONG}}, status)
        with (
            script(lambda *_, reply=reply: reply, deadline=0.1) as (_, client),
            pytest.raises(GenerationError) as raised,
        ):
            call(client, "k")
        assert MAX_TEXT_CHARS < len(str(raised.value)) < 2 * MAX_TEXT_CHARS
        assert len(whole_traceback(raised.value)) < 10 * MAX_TEXT_CHARS


def test_a_long_address_of_a_redirection_is_cut() -> None:
    reply = Reply({}, 302, {"Location": f"http://127.0.0.1/{LONG[:50_000]}"})
    with script(lambda *_: reply) as (_, client), pytest.raises(GenerationError) as raised:
        ask(client, "k")
    assert MAX_TEXT_CHARS < len(str(raised.value)) < 2 * MAX_TEXT_CHARS


def test_a_long_reason_is_cut() -> None:
    policy = Reply({"error": {"message": LONG, "code": "content_policy"}}, 400)
    refusal = Reply({"choices": [{"message": {"refusal": LONG}}]})
    for reply, call in ((policy, draw), (policy, ask), (refusal, ask)):
        with script(lambda *_, reply=reply: reply) as (_, client):
            declined = call(client, "k")
        assert isinstance(declined, Declined)
        assert len(declined.reason) == MAX_TEXT_CHARS
    with script(lambda *_: chat({LONG: 1})) as (_, client):
        declined = ask(client, "k")
    assert isinstance(declined, Declined)
    assert len(declined.reason) < 2 * MAX_TEXT_CHARS


def test_long_texts_of_an_image_or_an_answer_are_cut() -> None:
    image = {"b64_json": base64.b64encode(DRAWN).decode(), "revised_prompt": LONG}
    with script(lambda *_: Reply({"data": [image]}, headers={"x-request-id": LONG[:50_000]})) as (_, client):
        picture = draw(client, "k")
    assert isinstance(picture, Picture)
    assert (picture.data, len(picture.response)) == (DRAWN, MAX_TEXT_CHARS)
    assert len(picture.revised_prompt or "") == MAX_TEXT_CHARS
    with script(lambda *_: Reply({**chat({"categories": []}).body, "id": LONG})) as (_, client):
        answer = ask(client, "k")
    assert isinstance(answer, Answer)
    assert len(answer.response) == MAX_TEXT_CHARS


def test_no_part_of_a_key_is_left_where_a_text_is_cut() -> None:
    error = {"message": KEY * MAX_TEXT_CHARS, "code": "moderation"}
    with script(lambda *_: Reply({"error": error}, 400)) as (_, client):
        declined = ask(client, "k")
    assert isinstance(declined, Declined)
    assert KEY[:3] not in declined.reason


# Declined requests


def test_a_declined_answer_is_paid_for_once() -> None:
    for fault, code, reason in (
        (Fault.refusal("I would rather not."), "refusal", "I would rather not."),
        (Fault.content_filter(), "policy", "content filter"),
        (Fault.length(), "length", "cut off"),
    ):
        with serving(fault=always(fault)) as (server, client):
            declined = client.ask(QUESTION, "k")
        assert isinstance(declined, Declined)
        assert declined.code == code
        assert reason in declined.reason
        assert declined.usage.input == (len(QUESTION.instructions) + len('{"categories": ["lion"]}')) // 4
        assert (declined.usage.output > 0) == (code != "policy")
        assert keys(server) == ["k"]


@both
def test_a_violation_of_the_policy_is_declined(call: Call) -> None:
    codes = ("content_policy_violation", "moderation_blocked", "content_filter")
    for status, code in product((400, 403, 422), codes):
        fault = Fault.error(status, "Your request was rejected by the safety system.", code)
        with serving(fault=always(fault)) as (server, client):
            declined = call(client, "k")
        assert isinstance(declined, Declined)
        assert (declined.code, declined.usage) == ("policy", Usage())
        assert "rejected by the safety system" in declined.reason
        assert keys(server) == ["k"]


def test_a_violation_of_the_policy_after_an_unusable_response_has_its_cost() -> None:
    with serving(Fault.no_image(), Fault.blocked()) as (server, client):
        declined = client.draw(PROMPT, "k")
    assert isinstance(declined, Declined)
    assert (declined.code, declined.usage, declined.unusable) == ("policy", Usage(len(PROMPT) // 4, 196), 1)
    assert keys(server) == ["k", "k-1"]


# Errors


@both
def test_an_error_ends_it_at_once(call: Call) -> None:
    for fault, says in (
        (Fault.out_of_quota(), "out of credit"),
        (Fault.error(429, "Out of credit.", type="insufficient_quota"), "out of credit"),
        (Fault.unauthorized(), "refuses the key in OPENAI_API_KEY"),
        (Fault.error(403, "Country not supported."), "key in OPENAI_API_KEY do this: .*Country not supported"),
        (Fault.unknown_model(), "'a-language-model', generation.image_model 'an-image-model'"),
        (Fault.error(400, "Invalid size."), r"Invalid size\.; check the models, the size and the quality"),
        (Fault.error(422, "Unknown field."), r"Unknown field\.; check the models, the size and the quality"),
    ):
        models = {"language_model": "a-language-model", "image_model": "an-image-model"}
        with (
            serving(fault=always(fault), **models) as (server, client),
            pytest.raises(GenerationError, match=rf"^{server.url}/? \(HTTP {fault.status}\): .*{says}") as raised,
        ):
            call(client, "k")
        assert not isinstance(raised.value, GenerationUnavailableError)
        assert keys(server) == ["k"]


@both
def test_redirections_are_not_followed(call: Call) -> None:
    with scripted(lambda *_: Reply({})) as elsewhere:
        to = f"{elsewhere.base}/v1/chat/completions"
        for status in (301, 302, 303, 307, 308):
            with (
                serving(fault=always(Fault.error(status, headers={"Location": to}))) as (server, client),
                pytest.raises(GenerationError, match=f"redirects to {to}"),
            ):
                call(client, "k")
            assert keys(server) == ["k"]
    assert elsewhere.seen == []


def test_redirections_of_images_are_not_followed() -> None:
    with scripted(lambda *_: Reply(DRAWN)) as elsewhere:

        def answer(server: Scripted, sent: Sent) -> Reply:
            if sent.path == "/a.png":
                return Reply(b"", 302, {"Location": f"{elsewhere.base}/b.png"})
            return pictures({"url": f"{server.base}/a.png"})

        with script(answer, deadline=0.3) as (_, client), pytest.raises(GenerationUnavailableError, match="302"):
            client.draw(PROMPT, "k")
    assert elsewhere.seen == []


def test_an_image_at_an_invalid_address_ends_it_at_once() -> None:
    for url in (
        *("a.png", "ftp://127.0.0.1/a.png", "file:///etc/passwd", "http://", "http://x:y/", "http://[x"),
        *("http://xn--/", "http://127.0.0.1/" + "a" * 70_000),
    ):
        with (
            script(lambda *_, url=url: pictures({"url": url})) as (server, client),
            pytest.raises(GenerationError) as raised,
        ):
            client.draw(PROMPT, "k")
        assert not isinstance(raised.value, GenerationUnavailableError)
        assert len(str(raised.value)) < 500
        assert len(server.seen) == 1


def test_a_host_that_no_resolver_takes_is_none() -> None:
    for url in ("http://xn--/", "http://xn--a/", "http://a..b/", f"http://{'a' * 300}/", f"http://{'a.' * 150}b/"):
        assert host_of(url) is None, url


def test_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "", "  \n"):
        monkeypatch.delenv(KEY_VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(KEY_VARIABLE, value)
        with pytest.raises(GenerationError, match=r"there is no key .* set OPENAI_API_KEY"):
            Client(GenerationSettings())


def test_a_key_that_cannot_be_sent_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("sk-first\nsk-second", "sk-schlüssel", "sk-\x1b[0m", "sk-\udcff"):
        monkeypatch.setenv(KEY_VARIABLE, value)
        with pytest.raises(GenerationError, match="OPENAI_API_KEY is no key") as raised:
            Client(GenerationSettings())
        assert "sk-" not in whole_traceback(raised.value)


def test_whitespace_around_the_key_is_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\r\n")
    with serving() as (_, client):
        assert isinstance(ask(client, "k"), Answer)


def test_invalid_addresses_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ("localhost:8000/v1", "ftp://localhost/v1", "http://", "http://localhost:port/v1", "/v1")
    for url in (*addresses, "http://xn--/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        with pytest.raises(GenerationError, match=f"'{url}' is not the address of a service.*OPENAI_BASE_URL"):
            Client(GenerationSettings())


def test_the_address_of_the_environment_and_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeOpenAI() as one, FakeOpenAI() as other:
        monkeypatch.setenv("OPENAI_BASE_URL", one.url)
        with Client(GenerationSettings()) as client:
            ask(client, "k")
        with Client(GenerationSettings(base_url=other.url)) as client:
            ask(client, "j")
        assert (keys(one), keys(other)) == (["k"], ["j"])


# The key


@both
def test_no_error_says_the_key(call: Call) -> None:
    statuses = (400, 401, 403, 404, 422, 429, 500, 503)
    for fault in (
        *(Fault.error(status, "You sent {key}, which is wrong.") for status in statuses),
        Fault.error(429, "{key} has no credit.", "insufficient_quota"),
        Fault.error(307, "{key} has moved.", headers={"Location": f"http://127.0.0.1:1/?key={KEY}"}),
        Fault.error(400, "{key}", "{key}", "{key}"),
    ):
        with serving(fault=always(fault), deadline=0.1) as (server, client), pytest.raises(GenerationError) as raised:
            call(client, "k")
        assert KEY not in whole_traceback(raised.value)
        assert server.entries


@both
def test_no_reason_says_the_key(call: Call) -> None:
    with serving(fault=always(Fault.error(400, "{key} is forbidden.", "moderation_blocked"))) as (_, client):
        declined = call(client, "k")
    assert declined.reason.endswith("*** is forbidden.")


def test_no_answer_says_the_key() -> None:
    look = {"name": "lion", "appearance": f"like {KEY}", "scenes": [KEY]}
    with script(lambda *_: chat({"categories": [look]})) as (_, client):
        answer = client.ask(QUESTION, "k")
    assert isinstance(answer, Answer)
    assert answer.value == Descriptions(
        categories=[Description(name="lion", appearance="like ***", scenes=["***"])],
    )
    with script(lambda *_: chat({KEY: "lion"})) as (_, client):
        assert KEY not in str(client.ask(QUESTION, "k"))
    with serving(fault=always(Fault.refusal(f"I will not, {KEY}."))) as (_, client):
        declined = client.ask(QUESTION, "k")
    assert isinstance(declined, Declined)
    assert declined.reason == "I will not, ***."


def test_no_picture_says_the_key() -> None:
    image = {"b64_json": base64.b64encode(DRAWN).decode(), "revised_prompt": f"a lion and {KEY}"}
    with script(lambda *_: Reply({"data": [image]}, headers={"x-request-id": KEY})) as (_, client):
        assert client.draw(PROMPT, "k") == Picture(DRAWN, "***", None, "a lion and ***")


def test_no_download_says_the_key() -> None:
    def answer(server: Scripted, sent: Sent) -> Reply:
        return (
            Reply(b"", 500) if sent.path.startswith("/a.png") else pictures({"url": f"{server.base}/a.png?key={KEY}"})
        )

    with script(answer, deadline=0.2) as (server, client), pytest.raises(GenerationUnavailableError) as raised:
        client.draw(PROMPT, "k")
    assert KEY in server.seen[1].path
    assert "500" in str(raised.value)
    assert KEY not in whole_traceback(raised.value)


def test_a_short_key_is_left_in_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "none")
    with serving(key="none", appearances={"lion": "one with none of the spots"}) as (_, client):
        answer = client.ask(QUESTION, "k")
    assert isinstance(answer, Answer)
    assert answer.value.categories[0].appearance == "one with none of the spots"
