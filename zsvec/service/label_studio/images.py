"""Fetches the images of tasks from one Label Studio, and from nowhere else.

Any user with the right to import tasks chooses URLs. So a URL must have the origin of the configured Label Studio and a
path of its files, redirects are not followed, and time and size are bounded. The token is sent to this origin alone. No
file of this machine is read: images in local storage come from Label Studio as well.

Label Studio takes two kinds of tokens. A legacy token stands in each request. A personal access token is a JSON web
token, which the service exchanges for an access token, valid for some minutes.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
from base64 import b64decode
from binascii import Error as Base64Error
from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import unquote

import httpx
from pydantic import BaseModel, Field, ValidationError

from zsvec.errors import ImageError, InvalidInputError
from zsvec.service.problems import Problem
from zsvec.service.uploads import Upload
from zsvec.settings.trust import is_private

_log = logging.getLogger(__name__)

_MAX_BYTES = 16 * 2**20  # of an image
_MAX_ACCESS_BYTES = 64 * 2**10  # of an answer with an access token
_TIMEOUT_S = 20.0  # of an image
_MAX_AT_ONCE = 2  # groups of images to classify, and as many annotations
_MAX_LEARNED = 100_000  # times of annotations that are remembered
_MAX_CLOCK_SKEW = timedelta(minutes=5)  # of Label Studio's clock, ahead of the clock of the service
_FILES = ("data/", "storage-data/")  # where Label Studio serves the files of tasks
_DATA_URI = re.compile(r"data:image/[\w.+-]{1,50};base64,", re.ASCII | re.IGNORECASE)
_REFRESH = "api/token/refresh/"  # exchanges a personal access token for an access token


class _Access(BaseModel):
    access: Annotated[str, Field(max_length=8192, pattern=r"^[\x21-\x7e]+$")]


class LabelStudio:
    """A Label Studio server.

    Args:
        url: URL of the server, such as ``https://label.example.org``.
        token: Personal access token or legacy token of a user with the right to read the tasks, if needed.
        allow_http: Whether to send the token unencrypted to another machine.

    Attributes:
        groups: Bounds the number of groups of images to classify that are in memory.
        annotations: Bounds the number of images of annotations that are in memory. Annotations do not wait for
            predictions.
        correcting: Held from reading the categories of an image until they are changed. Otherwise, annotations of the
            same image in two projects could delete the choice of each other.

    Raises:
        InvalidInputError: The URL is not one of a server, or the token would be sent unencrypted.
    """

    def __init__(self, url: str, token: str | None = None, *, allow_http: bool = False) -> None:
        try:
            self._base = httpx.URL(url.rstrip("/") + "/")
        except httpx.InvalidURL as exc:
            raise InvalidInputError(f"the URL of Label Studio cannot be read: {exc}") from exc
        if self._base.scheme not in ("http", "https") or not self._base.host or self._base.query or self._base.userinfo:
            raise InvalidInputError("the URL of Label Studio must be http:// or https:// with a host and no password")
        if token is not None and not allow_http and not is_private(url):
            raise InvalidInputError(
                f"others on the way to {url!r} could read the token: use https://, or set allow_http "
                "(ZSVEC_ALLOW_HTTP=true) where the network is private"
            )
        if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
            raise InvalidInputError("label_studio_token must be visible ASCII: copy it from Label Studio again")
        self._tls = httpx.create_ssl_context()  # reads certificates, which is too slow for each image
        self.groups = asyncio.Semaphore(_MAX_AT_ONCE)
        self.annotations = asyncio.Semaphore(_MAX_AT_ONCE)
        self.correcting = asyncio.Lock()
        json_web_token = token is not None and token.startswith("eyJ") and token.count(".") == 2
        self._personal = token if json_web_token else None
        self._authorization = None if token is None or self._personal else f"Token {token}"
        self._renewing = asyncio.Lock()
        self._learned: dict[tuple[str, int], datetime] = {}

    async def image(self, value: object, seconds: float = math.inf) -> Upload:
        """Returns the image of a task.

        Args:
            value: A data URI, or the URL of a file of this Label Studio, which may be without the origin.
            seconds: Maximum seconds to fetch the image; never more than 20.

        Raises:
            ImageError: The value is another one, or the image cannot be fetched.
            Problem: Label Studio refuses the token, or cannot exchange it now.
        """
        if not isinstance(value, str):
            raise ImageError("the image of a task must be a URL")
        if found := _DATA_URI.match(value):
            try:
                return Upload(b64decode(value[found.end() :], validate=True), None)
            except Base64Error as exc:
                raise ImageError("a data URI must have valid base64") from exc
        url = self._checked(value)
        name = re.split(r"[/=]", unquote(url.raw_path.decode("ascii")))[-1]
        try:
            async with asyncio.timeout(min(_TIMEOUT_S, seconds)):
                return Upload(await self._fetched(url), name)
        except (httpx.HTTPError, TimeoutError) as exc:
            raise ImageError(f"{name}: Label Studio does not send the image: {type(exc).__name__}") from exc

    def counted(self, at: datetime | None) -> datetime | None:
        """Returns the time that counts for an annotation that arrives now: now, if its date is in the future.

        A date of the next five minutes stays, since the clocks may differ.

        Otherwise, such a date would make all later annotations of the image late.
        """
        now = datetime.now(UTC)
        return now if at is not None and at > now + _MAX_CLOCK_SKEW else at

    def is_late(self, decided: tuple[str, int], at: datetime | None) -> bool:
        """Returns whether a newer annotation that decides the same categories of the same image was learned."""
        return at is not None and decided in self._learned and at < self._learned[decided]

    def learned(self, decided: tuple[str, int], at: datetime | None) -> None:
        """Remembers the time of an annotation, in this process alone. The oldest of many memories are dropped."""
        if at is not None:
            self._learned.pop(decided, None)
            self._learned[decided] = at
            if len(self._learned) > _MAX_LEARNED:
                del self._learned[next(iter(self._learned))]

    def _checked(self, value: str) -> httpx.URL:
        """Returns the URL of a file of this Label Studio."""
        try:
            prefix = self._base.path
            within = value if value.startswith(prefix) or not re.match(r"/[^/\\]", value) else prefix + value[1:]
            url = self._base.join(within)
        except (httpx.InvalidURL, ValueError) as exc:
            raise ImageError("the image of a task must be a valid URL") from exc
        ours = _origin(url) == _origin(self._base)
        path = unquote(url.path)
        if (
            not ours
            or not path.startswith(tuple(prefix + files for files in _FILES))
            or ".." in re.split(r"[/\\]", path)
        ):
            raise ImageError(
                "the image of a task must be a data URI or a file that Label Studio serves below /data/, got a URL of "
                f"{url.host[:100] or 'no host'!r}"
            )
        return url

    async def _fetched(self, url: httpx.URL) -> bytes:
        headers = {"Accept-Encoding": "identity"}
        # A proxy of the environment would read the token in requests by http.
        async with httpx.AsyncClient(headers=headers, verify=self._tls, timeout=_TIMEOUT_S, trust_env=False) as client:
            used = self._authorization
            content = await _content(client, url, used)
            if content is None and self._personal is not None:
                content = await _content(client, url, await self._renewed(client, used))
        if content is None:
            raise _refused()
        return content

    async def _renewed(self, client: httpx.AsyncClient, used: str | None) -> str | None:
        """Returns the authorization with a new access token, unless another request has renewed the used one."""
        async with self._renewing:
            if self._authorization == used:
                url = self._base.join(_REFRESH)
                async with client.stream("POST", url, json={"refresh": self._personal}) as answer:
                    if answer.status_code == 429 or answer.status_code >= 500:
                        raise _failed(f"Label Studio answers {answer.status_code} when the token is exchanged")
                    content = await _body(answer, _MAX_ACCESS_BYTES) if answer.status_code == 200 else None
                try:
                    access = _Access.model_validate_json(content or b"")
                except ValidationError as exc:
                    raise _refused() from exc
                self._authorization = f"Bearer {access.access}"
            return self._authorization


async def _content(client: httpx.AsyncClient, url: httpx.URL, authorization: str | None) -> bytes | None:
    """Returns an image, or ``None`` if Label Studio refuses the authorization."""
    headers = {} if authorization is None else {"Authorization": authorization}
    async with client.stream("GET", url, headers=headers, follow_redirects=False) as answer:
        if answer.status_code == 401:
            return None
        if answer.status_code != 200:
            raise ImageError(f"Label Studio answers {answer.status_code} instead of the image {url.path[:200]!r}")
        content = await _body(answer, _MAX_BYTES)
    if content is None:
        raise ImageError(f"an image must have at most {_MAX_BYTES:,} bytes, got more at {url.path[:200]!r}")
    return content


async def _body(answer: httpx.Response, most: int) -> bytes | None:
    """Returns the bytes of an answer as sent, or ``None`` if there are more than ``most``.

    A compressed answer stays compressed, since its content could be a thousand times larger.
    """
    content = bytearray()
    async for part in answer.aiter_raw():
        content += part
        if len(content) > most:
            return None
    return bytes(content)


def _refused() -> Problem:
    return _failed(
        "Label Studio refuses the token, or needs one: set ZSVEC_LABEL_STUDIO_TOKEN to a personal access token"
    )


def _failed(detail: str) -> Problem:
    _log.error(detail)
    return Problem(503, detail)


def _origin(url: httpx.URL) -> tuple[str, str, int | None, bytes]:
    """Returns the origin of a URL, and its user and password, which must be empty."""
    return url.scheme, url.host, url.port, url.userinfo
