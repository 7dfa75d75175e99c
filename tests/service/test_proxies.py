"""Reverse proxies in front of a service without keys are refused if they can be detected; also with a real nginx."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.qdrant import DEADLINE, wait_until
from tests.service.servers import head, running
from tests.service.support import KEYS, READ, asked, bearer
from zsvec.classifier import Classifier
from zsvec.service.server import listening

NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin")

OF_PROXIES = """
    Forwarded Via CDN-Loop X-Forwarded X-Forwarded-For X-Forwarded-Host X-Forwarded-Port X-Forwarded-Prefix
    X-Forwarded-Proto X-Forwarded-Server X-Forwarded-Ssl X-Forwarded-Scheme Forwarded-For X-Real-IP X-Real-Port
    X-Client-IP Client-IP X-Cluster-Client-IP True-Client-IP Fastly-Client-IP Fly-Client-IP DO-Connecting-IP
    X-Azure-ClientIP X-Azure-SocketIP X-AppEngine-User-IP X-NF-Client-Connection-IP X-ProxyUser-Ip X-Remote-Addr
    CF-Connecting-IP CF-Connecting-IPv6 CF-IPCountry CF-Ray CF-Visitor X-Original-Forwarded-For X-Original-Host
    X-Original-Remote-Addr X-Original-URL X-Rewrite-URL X-Envoy-External-Address X-Envoy-Expected-Rq-Timeout-Ms
    X-Amzn-Trace-Id X-Amz-Cf-Id X-Cloud-Trace-Context X-Vercel-Forwarded-For X-ARR-LOG-ID X-Varnish X-Proxy-Id
    X-Scheme Front-End-Https Surrogate-Capability Akamai-Origin-Hop Ali-CDN-Real-IP Cdn-Src-Ip
    CloudFront-Viewer-Address Disguised-Host Max-Forwards Ngrok-Auth-User-Email Remote-User Tailscale-User-Login
    X-Akamai-Edgescape X-AppGW-Trace-Id X-Auth-Request-User X-Consumer-Username X-Goog-Authenticated-User-Email
    X-Host X-Kong-Request-Id X-MS-Client-Principal X-Originating-IP X-Via X_Forwarded_For
"""
OF_CLIENTS = {
    "Accept-Language": "de",
    "Connection": "close",
    "HX-Request": "true",
    "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "X-Request-ID": "x",
    "X-Requested-With": "XMLHttpRequest",
    "Proxy-Connection": "keep-alive",
}


def test_a_header_of_a_proxy_is_refused_without_keys(classifier: Classifier) -> None:
    """A proxy names this machine as the host, and forwards any client."""
    with asked(classifier) as client:
        for header in OF_PROXIES.split():
            for name, value in ((header, "203.0.113.9"), (header.lower(), ""), (header.upper(), "x")):
                refused = client.get("/v1/categories", headers={name: value})
                assert (refused.status_code, "ZSVEC_SERVE_KEYS" in refused.text) == (403, True), header
            assert client.get("/health/live", headers={header: "203.0.113.9"}).status_code == 200
        for header, value in OF_CLIENTS.items():
            assert client.get("/v1/categories", headers={header: value}).status_code == 200, header


def test_a_header_of_a_proxy_is_accepted_with_a_key(classifier: Classifier) -> None:
    with asked(classifier, keys=KEYS) as client:
        for header in OF_PROXIES.split():
            assert client.get("/v1/categories", headers={header: "203.0.113.9", **bearer(READ)}).status_code == 200


def old(path: str, version: bytes = b"1.0") -> bytes:
    """A request of another HTTP version."""
    return head("GET", path).replace(b"HTTP/1.1", b"HTTP/" + version)


def test_old_http_is_refused_without_keys_but_for_health(classifier: Classifier) -> None:
    with running(classifier) as service:
        for version in (b"0.9", b"1.0"):
            assert b" 403 " in service.ask(old("/v1/categories", version)).splitlines()[0]
        assert b" 403 " in service.ask(old("/")).splitlines()[0]
        for path in ("/health/live", "/health/ready"):
            assert b" 200 " in service.ask(old(path)).splitlines()[0]
    with running(classifier, keys=KEYS) as service:
        asks = old("/v1/categories").replace(b"\r\n\r\n", f"\r\nAuthorization: Bearer {READ}\r\n\r\n".encode())
        assert b" 200 " in service.ask(asks).splitlines()[0]


@contextmanager
def nginx(folder: Path, upstream: int, directives: str = "") -> Iterator[str]:
    """The address of a reverse proxy with minimal configuration."""
    with listening("127.0.0.1", 0) as listener:  # a free port
        port = listener.getsockname()[1]
    configuration = folder / "nginx.conf"
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; location / {{\n"
        f"proxy_pass http://127.0.0.1:{upstream}; {directives} }} }} }}\n"
    )
    assert NGINX
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(configuration)], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health/live"))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(DEADLINE)


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.skipif(not NGINX, reason="there is no nginx: install it (apt-get install nginx)")
def test_a_bare_nginx_is_refused_without_keys_and_asked_for_a_key(classifier: Classifier, tmp_path: Path) -> None:
    with running(classifier) as service, nginx(tmp_path, service.port, "proxy_http_version 1.0;") as address:
        for path in ("/", "/v1/categories", "/v1/info"):
            assert httpx.get(f"{address}{path}").status_code == 403
        assert httpx.post(f"{address}/v1/undo", json={}).status_code == 403
    with running(classifier, keys=KEYS) as service, nginx(tmp_path, service.port) as address:
        assert httpx.get(f"{address}/v1/categories").status_code == 401
        assert httpx.get(f"{address}/v1/categories", headers=bearer(READ)).status_code == 200


@pytest.mark.skipif(not NGINX, reason="there is no nginx: install it (apt-get install nginx)")
def test_a_proxy_without_a_mark_cannot_be_detected(classifier: Classifier, tmp_path: Path) -> None:
    silent = 'proxy_http_version 1.1; proxy_set_header Connection "";'
    with running(classifier) as service, nginx(tmp_path, service.port, silent) as address:
        assert httpx.get(f"{address}/v1/categories").status_code == 200
