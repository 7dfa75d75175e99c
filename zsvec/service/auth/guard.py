"""Who is let in: addresses of this machine, pages of this service, and keys with the right for what is asked.

A request is refused where it

- gives the length of its body twice, so that a proxy may read another length (request smuggling);
- names a host that is not this machine, while no key is asked for: a page elsewhere could have had its own name point
  here (DNS rebinding); or names two;
- bears the mark of a reverse proxy, while no key is asked for: any client may be behind a proxy. Health checks are
  answered all the same, for some probes speak HTTP/1.0;
- comes from a page of another origin, whatever key the browser has for us. Browsers say so, by ``Sec-Fetch-Site`` or by
  ``Origin``; a request that changes something and has a cookie must have one of them;
- has no key, where there are keys, but for what is open to all: the page that asks for a key, its files, and whether
  the service is alive;
- would change something, and has a key that may only read.

Whatever is not a ``GET`` changes something, but for what classifies. A new route is so until it is named here.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from zsvec.service.auth.keys import VARIABLE, Key, Keys
from zsvec.service.problems import Problem, answer

COOKIE = "zsvec_key"
"""Name of the cookie that has a browser's key."""
LOGIN = "/login"
"""Where a browser is asked for its key."""
FOR_WRITERS = ("/live",)
"""What only keys that may write see: it shows images of others."""

# Paths are compared as they were sent, as the routes compare them: what is encoded another way is another path.
_OPEN = (LOGIN, "/logout", "/health/live", "/health/ready")
_OPEN_FOLDER = "/static/"
_READING = ("/v1/classify", "/classify")  # by POST
_HEALTH = "/health/"
# Headers that reverse proxies, load balancers and content delivery networks add; what clients send has other names.
_OF_PROXIES = re.compile(
    r"(x-)?via|cdn-loop|(.+-)?forwarded(-.+)?|remote-user|max-forwards"
    r"|(.+-)?(client|connecting|connection|originating|src|user|remote|peer|viewer)-?(ip|ipv6|addr|address)"
    r"|x-(akamai|amzn?|appengine|appgw|arr|auth-request|azure|client|consumer|envoy|goog|kong|ms-client|nf|original)-.+"
    r"|x-(proxy|proxyuser|real|remote|vercel)-.+|(akamai|ali|cf|cloudfront|do|fastly|fly|ngrok|surrogate|tailscale)-.+"
    r"|x-rewrite-url|x-host|x-scheme|x-varnish|x-cloud-trace-context|front-end-https|disguised-host"
)
_SAFE = ("GET", "HEAD", "OPTIONS")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]*)?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Guard:
    """Lets requests in, and tells the application who asks: ``request.state.key``, ``None`` where nobody is asked.

    Args:
        app: What is guarded.
        keys: Those that may.
    """

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or answer why not."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        try:
            key = self._checked(scope)
        except Problem as problem:
            response: Response = answer(problem)
            if problem.status == 401 and _is_a_page(scope):
                response = RedirectResponse(LOGIN, 303)
            await response(scope, receive, send)
            return
        scope.setdefault("state", {})["key"] = key
        await self._app(scope, receive, send)

    def _checked(self, scope: Scope) -> Key | None:
        """The key of a request that is let in; raises a Problem for any other."""
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        if "transfer-encoding" in headers and ("content-length" in headers or scope["http_version"] == "1.0"):
            detail = "the length of a body must be clear, got Transfer-Encoding beside Content-Length or in HTTP/1.0"
            raise Problem(400, f"{detail}. Send one of both, by HTTP/1.1", {"Connection": "close"})
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            raise Problem(400, f"a request is for one host. Got {len(hosts)}")
        host = hosts[0] if hosts else ""
        if not self._keys and not _is_this_machine(host):
            raise Problem(403, f"without keys only this machine is served, by its own names. Got the host {host!r}")
        if not self._keys and not path.startswith(_HEALTH) and (mark := _mark_of_a_proxy(scope, headers)):
            raise Problem(403, f"a request by a proxy needs a key, got {mark}. Set {VARIABLE}")
        _check_origin(headers, method, host)
        if not self._keys or is_open(path):
            return None
        given = _given(headers)
        if given is None:
            raise Problem(401, "a key is needed: Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
        key = self._keys.find(given)
        if key is None:
            wrong = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            raise Problem(401, "the key is none of this service", wrong)
        changes = method not in _SAFE and not (method == "POST" and path in _READING)
        if key.right != "write" and (changes or path.startswith(FOR_WRITERS)):
            raise Problem(403, f"the key {key.name!r} may only read: {method} of this needs one that may write")
        return key


def _mark_of_a_proxy(scope: Scope, headers: Headers) -> str | None:
    """Returns a mark that only proxies leave, if there is one. Proxies with HTTP/1.1 and no such header leave none."""
    if (version := scope["http_version"]) != "1.1":
        return f"HTTP/{version}"
    return next((f"the header {name!r}" for name in headers if _OF_PROXIES.fullmatch(name.replace("_", "-"))), None)


def is_open(path: str) -> bool:
    """Whether a path is open to all, with a key or without."""
    return path in _OPEN or path.startswith(_OPEN_FOLDER)


def _given(headers: Headers) -> str | None:
    """The key that a request has, in its header or in its cookie."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return cookie_of(headers)


def cookie_of(headers: Headers) -> str | None:
    """The key in the cookie of a request, if it has one."""
    return cookie_parser(headers.get("cookie", "")).get(COOKIE) or None


def _check_origin(headers: Headers, method: str, host: str) -> None:
    """Refuse what a page of another origin asks for; raises a Problem."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    opened = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    framed = headers.get("sec-fetch-dest") in ("iframe", "frame", "embed", "object")
    if site not in (None, "same-origin", "none") and (not opened or framed):
        raise Problem(403, "a page of another origin asks for this")
    if origin is not None and not _is_of(origin, host):
        raise Problem(403, f"a page of another origin asks for this: {origin!r} is not {host!r}")
    if method not in _SAFE and site is None and origin is None and headers.get("cookie"):
        raise Problem(403, "a browser changes nothing without saying which page asks: Origin is missing")


def _is_of(origin: str, host: str) -> bool:
    """Whether an origin is that of pages of a host; ``null`` is that of none."""
    scheme, _, named = origin.lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    return port is not None and host != "" and named == host.lower().removesuffix(port)


def _is_this_machine(host: str) -> bool:
    found = _HOST.fullmatch(host)
    return found is not None and is_loopback(found[1].strip("[]"))


def is_loopback(name: str) -> bool:
    """Whether a name or an address is this machine's own."""
    try:
        return name.lower() == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _is_a_page(scope: Scope) -> bool:
    """Whether somebody opens a page."""
    headers = Headers(scope=scope)
    is_page = "text/html" in headers.get("accept", "") and "hx-request" not in headers
    return is_page and not scope["path"].startswith("/v1/")


def is_encrypted(request: HTTPConnection) -> bool:
    """Whether the browser's side of a connection is, so that a cookie may insist on it."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
