"""Authentication, and protection against CSRF, DNS rebinding and request smuggling.

The guard refuses a request in these cases:

- The length of the body is ambiguous, so that a proxy could read a different length (request smuggling).
- The request has several Host headers, or the service has no keys and the host is not this machine (DNS rebinding).
- A reverse proxy sent the request, and the service has no keys. A proxy forwards requests of any client. Health checks
  are exempt, because some probes use HTTP/1.0 as proxies do.
- A page of another origin sent the request (CSRF), even with a valid key. Links to pages are allowed. Browsers send
  ``Sec-Fetch-Site`` or ``Origin``. Requests with a cookie, except GET, HEAD and OPTIONS, need one of these headers.
- The service has keys, and the request has no valid key. Sign-in, sign-out, static files and health checks need no key.
- The right of the key does not allow the request (`zsvec.service.auth.keys.Key.allows`).
"""

from __future__ import annotations

import re
from base64 import b64decode
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection, cookie_parser
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from zsvec.service.auth.keys import FOR_LABEL_STUDIO, SAFE_METHODS, VARIABLE, Keys
from zsvec.service.problems import Answer, Problem

COOKIE = "zsvec_key"
"""Name of the cookie with the key."""
LOGIN = "/login"
"""Path of the sign-in page."""

# Paths are compared without percent-decoding, as in the routes: another encoding is another path.
_OPEN = (LOGIN, "/logout", "/health/live", "/health/ready")
_OPEN_FOLDER = "/static/"
_HEALTH = "/health/"
# Headers that reverse proxies, load balancers and content delivery networks send, but clients do not.
_OF_PROXIES = re.compile(
    r"(x-)?via|cdn-loop|(.+-)?forwarded(-.+)?|remote-user|max-forwards"
    r"|(.+-)?(client|connecting|connection|originating|src|user|remote|peer|viewer)-?(ip|ipv6|addr|address)"
    r"|x-(akamai|amzn?|appengine|appgw|arr|auth-request|azure|client|consumer|envoy|goog|kong|ms-client|nf|original)-.+"
    r"|x-(proxy|proxyuser|real|remote|vercel)-.+|(akamai|ali|cf|cloudfront|do|fastly|fly|ngrok|surrogate|tailscale)-.+"
    r"|x-rewrite-url|x-host|x-scheme|x-varnish|x-cloud-trace-context|front-end-https|disguised-host"
)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]*)?")
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class Guard:
    """Refuses requests, or sets ``request.state.key`` to the `Key` of the request.

    The key is ``None`` if the service has no keys, or if the path needs no key.
    """

    def __init__(self, app: ASGIApp, keys: Keys, answer: Answer) -> None:
        self._app = app
        self._answer = answer
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await WebSocketClose()(scope, receive, send)
            return
        try:
            self._check(scope)
        except Problem as problem:
            response = self._answer(scope, problem)
            if problem.status == 401 and _is_a_page(scope):
                response = RedirectResponse(LOGIN, 303)
            await response(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers, method, path = Headers(scope=scope), scope["method"], scope["path"]
        if "transfer-encoding" in headers and ("content-length" in headers or scope["http_version"] == "1.0"):
            detail = "the length of a body must be clear, got Transfer-Encoding beside Content-Length or in HTTP/1.0"
            raise Problem(400, f"{detail}. Send one of both, by HTTP/1.1", {"Connection": "close"})
        hosts = headers.getlist("host")
        if len(hosts) > 1:
            raise Problem(400, f"a request must have one Host header, got {len(hosts)}")
        host = hosts[0] if hosts else ""
        if not self._keys and not _is_this_machine(host):
            detail = f"without keys, the host must be a name of this machine, got {host!r}. Set {VARIABLE}"
            raise Problem(403, detail, error="untrusted_host")
        if not self._keys and not path.startswith(_HEALTH) and (mark := _mark_of_a_proxy(scope, headers)):
            detail = f"a request by a proxy needs a key, got {mark}. Set {VARIABLE}"
            raise Problem(403, detail, error="untrusted_host")
        _check_origin(headers, method, host)
        scope.setdefault("state", {})["key"] = None
        if not self._keys or is_open(path):
            return
        named = _of_basic_auth(headers) if path in FOR_LABEL_STUDIO else None
        given = named[1] if named else _given(headers)
        if given is None:
            raise Problem(401, "a key is needed: send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})
        key = self._keys.find(given)
        if key is None or (named and named[0] != key.name):
            wrong = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
            raise Problem(401, "invalid key: send a key of this service", wrong, "key_invalid")
        scope["state"]["key"] = key
        if not key.allows(method, path):
            said = "Your key may only read. Sign out, then sign in with a key that may write."
            detail = f"the key {key.name!r} may only read: send one that may write"
            raise Problem(403, detail, error="key_read_only", said=said)


def _mark_of_a_proxy(scope: Scope, headers: Headers) -> str | None:
    """Returns the HTTP version or header that reveals a proxy, or ``None``. Some proxies cannot be recognised."""
    if (version := scope["http_version"]) != "1.1":
        return f"HTTP/{version}"
    return next((f"the header {name!r}" for name in headers if _OF_PROXIES.fullmatch(name.replace("_", "-"))), None)


def is_open(path: str) -> bool:
    """Returns whether a path needs no key."""
    return path in _OPEN or path.startswith(_OPEN_FOLDER)


def _given(headers: Headers) -> str | None:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and secret.strip():
        return secret.strip()
    return cookie_parser(headers.get("cookie", "")).get(COOKIE) or None


def _of_basic_auth(headers: Headers) -> tuple[str, str] | None:
    """Returns the user and the password of basic authentication, which is all that Label Studio can send."""
    scheme, _, encoded = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, _, password = b64decode(encoded, validate=True).decode().partition(":")
    except ValueError:
        return "", ""
    return user, password


def _check_origin(headers: Headers, method: str, host: str) -> None:
    """Raises a Problem for a cross-origin request, except for a link to a page."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    opened = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
    framed = headers.get("sec-fetch-dest") in ("iframe", "frame", "embed", "object")
    if site not in (None, "same-origin", "none") and (not opened or framed):
        raise Problem(403, "the request must not come from a page of another origin")
    if origin is not None and not _is_of(origin, host):
        raise Problem(403, f"Origin must be the host {host!r}, got {origin!r}")
    if method not in SAFE_METHODS and site is None and origin is None and headers.get("cookie"):
        raise Problem(403, "a request with a cookie must have Origin or Sec-Fetch-Site, got neither")


def _is_of(origin: str, host: str) -> bool:
    """Returns whether an origin belongs to a host. The origin ``null`` belongs to no host."""
    scheme, _, named = origin.lower().partition("://")
    port = _DEFAULT_PORTS.get(scheme)
    return port is not None and host != "" and named == host.lower().removesuffix(port)


def _is_this_machine(host: str) -> bool:
    found = _HOST.fullmatch(host)
    return found is not None and is_loopback(found[1].strip("[]"))


def is_loopback(name: str) -> bool:
    """Returns whether a name or address belongs to the loopback interface."""
    try:
        return name.lower() == "localhost" or ip_address(name).is_loopback
    except ValueError:
        return False


def _is_a_page(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    is_page = "text/html" in headers.get("accept", "") and "hx-request" not in headers
    return is_page and not scope["path"].startswith("/v1/")


def is_encrypted(request: HTTPConnection) -> bool:
    """Returns whether the browser uses HTTPS, so that a cookie may be ``Secure``."""
    return request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
