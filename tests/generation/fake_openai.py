"""An OpenAI-compatible server on the loopback that describes, draws, fails on demand and counts sales."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import random
import select
import socket
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

KEY = "sk-test-key-of-the-fake-server"
CHAT = "/v1/chat/completions"
IMAGES = "/v1/images/generations"

Body = dict[str, Any]
Draw = Callable[[Body], bytes]


# Requests, faults, and the log


@dataclass(frozen=True)
class Request:
    """A request, from which a test chooses a fault.

    Attributes:
        number: Number of requests before this one.
        attempt: Number of earlier requests with the same idempotency key, or else the same body.
        path: `CHAT` or `IMAGES`.
        body: JSON object.
        idempotency_key: Value of the header.
    """

    number: int
    attempt: int
    path: str
    body: Body
    idempotency_key: str | None


@dataclass(frozen=True)
class Fault:
    """A failure of a request.

    With a status other than 200 nothing is sold. A delay, a cut and a malformed body happen to an answer on its way;
    other faults are part of the answer, and a repeated idempotency key gets the same answer.
    """

    name: str
    status: int = 200
    message: str = ""
    code: str | None = None
    type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @staticmethod
    def error(
        status: int,
        message: str = "The fake server failed on demand.",
        code: str | None = None,
        type: str | None = None,  # noqa: A002
        headers: Mapping[str, str] | None = None,
    ) -> Fault:
        """An HTTP error; ``{key}`` in the message stands for the API key that was sent."""
        return Fault(code or str(status), status, message, code, type, headers or {})

    @staticmethod
    def rate_limited(retry_after: float | str | None = None) -> Fault:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        return Fault.error(429, "Rate limit reached.", "rate_limit_exceeded", "requests", headers)

    @staticmethod
    def out_of_quota() -> Fault:
        return Fault.error(429, "You exceeded your current quota.", "insufficient_quota", "insufficient_quota")

    @staticmethod
    def unauthorized() -> Fault:
        return Fault.error(401, "Incorrect API key provided: {key}.", "invalid_api_key")

    @staticmethod
    def unknown_model() -> Fault:
        return Fault.error(404, "The model does not exist or you do not have access to it.", "model_not_found")

    @staticmethod
    def blocked(code: str = "moderation_blocked") -> Fault:
        """Blocked by the safety system; older models use the code ``content_policy_violation``."""
        return Fault.error(400, "Your request was rejected by the safety system.", code, "image_generation_user_error")

    @staticmethod
    def delay(seconds: float) -> Fault:
        """Sells the answer at once, and sends it late."""
        return Fault("delay", seconds=seconds)

    @staticmethod
    def cut() -> Fault:
        """The connection ends in the middle of the body."""
        return Fault("cut")

    @staticmethod
    def malformed_body() -> Fault:
        """A body that is no JSON, with the type of JSON."""
        return Fault("malformed_body")

    @staticmethod
    def malformed_content(content: str = "Sure! Here you are.") -> Fault:
        """Chat: another content than JSON."""
        return Fault("malformed_content", message=content)

    @staticmethod
    def refusal(text: str = "I'm sorry, I can't help with that.") -> Fault:
        return Fault("refusal", message=text)

    @staticmethod
    def length() -> Fault:
        """Chat: the content is cut at the limit of tokens."""
        return Fault("length")

    @staticmethod
    def content_filter() -> Fault:
        return Fault("content_filter")

    @staticmethod
    def no_image() -> Fault:
        return Fault("no_image")

    @staticmethod
    def not_an_image() -> Fault:
        return Fault("not_an_image")


ON_THE_WAY = ("delay", "cut", "malformed_body")


class RefusedError(Exception):
    """The request gets an error; a ``draw`` may raise it too."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


@dataclass(frozen=True)
class Entry:
    """A finished request.

    Attributes:
        number: Of the request.
        path: Of the request.
        key: Idempotency key.
        subject: Prompt of an image, or name of the schema of a chat.
        categories: Names in a chat.
        sold: Whether the server would charge the request.
        started: Time of the request, by the monotonic clock.
        ended: Time of the last byte of the answer.
        completed: Whether a connected client got the whole answer.
    """

    number: int
    path: str
    key: str | None
    subject: str | None
    categories: tuple[str, ...]
    sold: bool
    started: float
    ended: float
    completed: bool


# Pictures


def noise(seed: str) -> bytes:
    """A PNG of random pixels, the same for the same seed."""
    pixels = random.Random(hashlib.sha256(seed.encode()).digest()).randbytes(64 * 64 * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (64, 64), pixels).save(buffer, "PNG")
    return buffer.getvalue()


def folder_artist(folder: Path) -> Draw:
    """Draws the images of the sub-folder with the longest name in the prompt, one after the other."""
    images = {
        category.name.replace("_", " ").lower(): sorted(path for path in category.iterdir() if path.is_file())
        for category in folder.iterdir()
        if category.is_dir()
    }
    turns = {name: itertools.cycle(paths) for name, paths in images.items() if paths}

    def draw(body: Body) -> bytes:
        names = [name for name in turns if name in body["prompt"].lower()]
        if not names:
            raise RefusedError(Fault.error(400, f"The prompt names no sub-folder of {folder}.", "invalid_value"))
        return next(turns[max(names, key=len)]).read_bytes()

    return draw


# The server


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})
    sold: bool = False


class FakeOpenAI:
    """Answers like OpenAI until closed.

    Attributes:
        url: Base URL for a client.

    Args:
        key: Accepted API key.
        appearances: Appearances of categories, instead of invented ones.
        groups: Groups in answers, besides groups of names with the same last word.
        draw: Makes the picture for the body of a request, instead of `noise`.
        honours_idempotency: Whether a repeated idempotency key gets the sold answer again.
        fault: Chooses the fault of a request.
        latency: Seconds of each answer.
    """

    def __init__(
        self,
        *,
        key: str = KEY,
        appearances: Mapping[str, str] | None = None,
        groups: Iterable[Sequence[str]] = (),
        draw: Draw | None = None,
        honours_idempotency: bool = True,
        fault: Callable[[Request], Fault | None] | None = None,
        latency: float = 0.0,
    ) -> None:
        self.key = key
        self._appearances = dict(appearances or {})
        self._groups = [list(group) for group in groups]
        self._draw = draw
        self._honours_idempotency = honours_idempotency
        self._fault = fault
        self._latency = latency

        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._attempts: Counter[tuple[str, str | bytes]] = Counter()
        self._busy: set[int] = set()
        self._peak = 0
        self._entries: list[Entry] = []
        self._sold: Counter[tuple[str, str | None]] = Counter()
        self._stored: dict[tuple[str, str], _Answer] = {}
        self._selling: defaultdict[tuple[str, str], threading.Lock] = defaultdict(threading.Lock)

        self._server = _Server(self)
        self._base = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self._base}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeOpenAI:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop all connections; requests in progress are logged as not completed."""
        self._closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    @property
    def entries(self) -> list[Entry]:
        """Finished requests, in the order of their ends; a request is added before its client has the whole answer."""
        with self._lock:
            return list(self._entries)

    @property
    def peak(self) -> int:
        """Maximum number of concurrent requests."""
        with self._lock:
            return self._peak

    def sold(self, path: str | None = None) -> Counter[str | None]:
        """Returns how often each idempotency key was sold, including answers on their way."""
        sold: Counter[str | None] = Counter()
        with self._lock:
            for (where, key), times in self._sold.items():
                if path in (None, where):
                    sold[key] += times
        return sold

    # From a request to its entry, in the thread of its connection

    def _begin(self, path: str, raw: bytes, key: str | None) -> Request:
        body = None
        with suppress(ValueError):
            body = json.loads(raw)
        with self._lock:
            number = next(self._numbers)
            attempt = self._attempts[path, key or raw]
            self._attempts[path, key or raw] += 1
            self._busy.add(number)
            self._peak = max(self._peak, len(self._busy))
        return Request(number, attempt, path, body if isinstance(body, dict) else {}, key)

    def _end(self, number: int, entry: Entry | None = None) -> None:
        with self._lock:
            self._busy.discard(number)
            if entry is not None:
                self._entries.append(entry)

    def _answer(self, method: str, request: Request, fault: Fault | None, sent_key: str) -> _Answer:
        if fault is not None and fault.status != 200:
            return _error(fault, sent_key)
        if method != "POST" or request.path not in (CHAT, IMAGES):
            return _error(Fault.error(404, f"Invalid URL ({method} {request.path})"), sent_key)
        if sent_key != self.key:
            return _error(Fault.unauthorized(), sent_key)
        try:
            return self._sell(request, fault)
        except RefusedError as refused:
            return _error(refused.fault, sent_key)

    def _sell(self, request: Request, fault: Fault | None) -> _Answer:
        key = request.idempotency_key if self._honours_idempotency else None
        with self._lock:
            selling = threading.Lock() if key is None else self._selling[request.path, key]
        with selling:
            if key is not None and (request.path, key) in self._stored:
                return replace(self._stored[request.path, key], sold=False)
            content = (self._chat if request.path == CHAT else self._image)(request, fault)
            answer = _Answer(200, json.dumps(content).encode(), sold=True)
            if key is not None:
                self._stored[request.path, key] = answer
            with self._lock:
                self._sold[request.path, request.idempotency_key] += 1
            return answer

    # Chat

    def _chat(self, request: Request, fault: Fault | None) -> Body:
        name, asked = _asked(request.body)
        tell = {"descriptions": self._describe, "groups": self._group, "features": self._distinguish}.get(name)
        if tell is None:
            raise RefusedError(Fault.error(400, f"This fake server knows no schema {name!r}."))
        try:
            content: str | None = json.dumps(tell(asked))
        except (AttributeError, KeyError, TypeError) as error:
            raise RefusedError(Fault.error(400, f"{name}: {asked} is not what is expected: {error!r}")) from error
        assert content is not None
        refusal, reason = None, "stop"
        if fault is not None and fault.name not in ON_THE_WAY:
            if fault.name == "malformed_content":
                content = fault.message
            elif fault.name == "refusal":
                content, refusal = None, fault.message
            elif fault.name == "length":
                content, reason = content[: len(content) // 2], "length"
            elif fault.name == "content_filter":
                content, reason = "", "content_filter"
            else:
                raise ValueError(f"{fault.name} is no fault of a chat")
        read = sum(len(str(message.get("content"))) for message in request.body["messages"]) // 4
        written = len(content or refusal or "") // 4
        message = {"role": "assistant", "content": content, "refusal": refusal}
        return {
            "id": f"chatcmpl-{request.number}",
            "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": read, "completion_tokens": written},
        }

    def _describe(self, asked: Body) -> Body:
        return {
            "categories": [
                {
                    "name": name,
                    "appearance": self._appearances.get(name)
                    or f"A {_pick(COLOURS, name)} {name} with a {_pick(SURFACES, name)} surface.",
                    "scenes": _some(SCENES, name, 4),
                }
                for name in asked["categories"]
            ]
        }

    def _group(self, asked: Body) -> Body:
        by_last_word: dict[str, list[str]] = {}
        for name in asked["all"]:
            by_last_word.setdefault(name.replace("_", " ").lower().rpartition(" ")[2], []).append(name)
        told = [[name for name in group if name in asked["all"]] for group in self._groups]
        focus = set(asked["categories"])
        groups = [group for group in [*by_last_word.values(), *told] if len(group) > 1 and focus.intersection(group)]
        return {"groups": groups}

    def _distinguish(self, asked: Body) -> Body:
        return {
            "groups": [
                {
                    "common": _some(FEATURES, "".join(member["name"] for member in group), 2),
                    "members": [
                        {
                            "name": member["name"],
                            "distinguishing": [
                                f"{feature} as only a {member['name']} has"
                                for feature in _some(FEATURES, member["name"] + member["appearance"], 2)
                            ],
                        }
                        for member in group
                    ],
                }
                for group in asked["groups"]
            ]
        }

    # Images

    def _image(self, request: Request, fault: Fault | None) -> Body:
        body = request.body
        prompt = body.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise RefusedError(Fault.error(400, "Missing required parameter: 'prompt'.", "missing_required_parameter"))
        count = body.get("n") or 1
        if fault is None or fault.name in ON_THE_WAY:
            pictures = [self._picture(request, index) for index in range(count)]
        elif fault.name == "no_image":
            pictures = []
        elif fault.name == "not_an_image":
            pictures = [b"This is not an image."] * count
        else:
            raise ValueError(f"{fault.name} is no fault of an image")
        return {
            "data": [{"b64_json": base64.b64encode(picture).decode()} for picture in pictures],
            "usage": {"input_tokens": len(prompt) // 4, "output_tokens": 196},
        }

    def _picture(self, request: Request, index: int) -> bytes:
        if self._draw is not None:
            return self._draw(request.body)
        return noise(repr((request.body["prompt"], request.idempotency_key or request.number, index)))


class _Server(ThreadingHTTPServer):
    """Can end the connections that clients keep open."""

    daemon_threads = False  # others are not joined
    request_queue_size = 128

    def __init__(self, fake: FakeOpenAI) -> None:
        self.fake = fake
        self.connections: set[Any] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or the last byte of an answer waits for an acknowledgement
    server: _Server

    def respond(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        raw = self.rfile.read(size)
        if len(raw) < size:
            self.close_connection = True
            return
        started = time.monotonic()
        fake = self.server.fake
        request = fake._begin(self.path.partition("?")[0], raw, self.headers.get("Idempotency-Key"))
        try:
            fault = fake._fault(request) if fake._fault is not None else None
            sent_key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            answer = fake._answer(self.command, request, fault, sent_key)
            self._deliver(request, fault, answer, started)
        finally:
            fake._end(request.number)

    do_GET = do_POST = respond  # noqa: N815

    def _deliver(self, request: Request, fault: Fault | None, answer: _Answer, started: float) -> None:
        fake = self.server.fake
        body = answer.body
        if fault is not None and fault.name == "malformed_body":
            body = b"upstream connect error or disconnect before headers"
        seconds = fake._latency + (fault.seconds if fault is not None else 0.0)
        completed = not fake._closed.wait(seconds) and not self._is_left()
        if completed:
            kept = len(body) // 2 if fault is not None and fault.name == "cut" else len(body) - 1
            completed = self._write(answer, len(body), body[:kept], request.number) and kept == len(body) - 1
        subject, categories = _about(request)
        entry = Entry(
            number=request.number,
            path=request.path,
            key=request.idempotency_key,
            subject=subject,
            categories=categories,
            sold=answer.sold,
            started=started,
            ended=time.monotonic(),
            completed=completed,
        )
        # Before the last byte, so that a client with the answer finds the request in `entries`.
        fake._end(request.number, entry)
        if completed:
            self.wfile.write(body[-1:])
        else:
            self.close_connection = True

    def _write(self, answer: _Answer, size: int, part: bytes, number: int) -> bool:
        """Returns whether the client was connected."""
        try:
            self.send_response(answer.status)
            headers = {"Content-Length": str(size), "x-request-id": f"req_{number}", **answer.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(part)
        except ConnectionError:
            return False
        return True

    def _is_left(self) -> bool:
        """Returns whether the client has closed the connection, also where the first bytes could still be written."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except ConnectionError:  # it was killed with something unread
            return True

    def log_message(self, *_: Any) -> None:
        pass


# Reading requests, inventing answers

COLOURS = ("red", "grey", "brown", "white", "black", "green", "yellow", "striped", "spotted")
SURFACES = ("smooth", "rough", "shiny", "furry", "wooden", "soft", "wrinkled")
SCENES = ("in a meadow", "by a river", "in a kitchen", "on a street", "at night", "in snow", "in fog", "on a table")
FEATURES = ("a round outline", "a long neck", "a broad base", "a pointed tip", "a dark edge", "a bright centre")


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def _pick(words: Sequence[str], text: str) -> str:
    return words[_seed(text) % len(words)]


def _some(words: Sequence[str], text: str, count: int) -> list[str]:
    return random.Random(_seed(text)).sample(words, count)


def _asked(body: Body) -> tuple[str, Body]:
    """Returns the name of the schema, and the data of the last message."""
    try:
        wanted = body["response_format"]["json_schema"]
        name, schema, strict = wanted["name"], wanted["schema"], wanted["strict"]
        asked = json.loads(body["messages"][-1]["content"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise RefusedError(Fault.error(400, f"No JSON object, or no schema for its answer: {error!r}")) from error
    if not strict or not _is_strict(schema):
        raise RefusedError(Fault.error(400, f"Invalid schema for response_format {name!r}."))
    return name, asked


def _is_strict(schema: Any) -> bool:
    """Returns whether all properties are required, and no others allowed, as OpenAI demands."""
    if isinstance(schema, list):
        return all(map(_is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") == "object" and (
        schema.get("additionalProperties") is not False or set(schema.get("required", ())) != set(schema["properties"])
    ):
        return False
    return all(map(_is_strict, schema.values()))


def _about(request: Request) -> tuple[str | None, tuple[str, ...]]:
    """Returns subject and categories of an entry."""
    if request.path != CHAT:
        return request.body.get("prompt"), ()
    try:
        name, asked = _asked(request.body)
        if name == "features":
            return name, tuple(member["name"] for group in asked["groups"] for member in group)
        return name, tuple(asked["categories"])
    except (KeyError, TypeError, RefusedError):
        return None, ()


def _error(fault: Fault, sent_key: str) -> _Answer:
    error = {
        "message": fault.message.replace("{key}", sent_key),
        "type": fault.type or ("server_error" if fault.status >= 500 else "invalid_request_error"),
        "param": None,
        "code": fault.code,
    }
    headers = {"Content-Type": "application/json", **fault.headers}
    return _Answer(fault.status, json.dumps({"error": error}).encode(), headers)
