"""The compose files, and the Dockerfile as far as its text can be checked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.qdrant import COMPOSE_FILE, composed, running_server
from tests.store.support import fast_folder
from zsvec.errors import StoreUnavailableError
from zsvec.service.auth.keys import Keys
from zsvec.service.server import LAST_RESPONSES_S, NOT_READY_NOTICE_S
from zsvec.settings.settings import OTHER_VARIABLES, load_settings
from zsvec.store.backends.server.backend import connect

SERVICE_FILE = COMPOSE_FILE.with_name("docker-compose.yml")
KEY = "s3cr3t-k3y"

yaml = pytest.importorskip("yaml")


def three_nodes() -> str:
    """The file with the commented block of three nodes instead of one."""
    shared, _, rest = SERVICE_FILE.read_text().partition("\nservices:\n")
    return shared + re.sub("^# ?", "", rest[rest.index("\n# services:\n") :], flags=re.MULTILINE)


FILES: Mapping[str, Any] = {"one": yaml.safe_load(SERVICE_FILE.read_text()), "three": yaml.safe_load(three_nodes())}


def nodes_of(nodes: str) -> Mapping[str, Any]:
    """The services that are Qdrant servers."""
    return {name: service for name, service in FILES[nodes]["services"].items() if name != "zsvec"}


@pytest.mark.parametrize("nodes", FILES)
def test_servers_listen_on_this_machine_and_need_a_key(nodes: str) -> None:
    services = nodes_of(nodes).values()
    assert len(services) == {"one": 1, "three": 3}[nodes]
    for service in services:
        assert [port.rpartition(":")[2] for port in service["ports"]] == ["6333", "6334"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["environment"]["QDRANT__SERVICE__API_KEY"].startswith("${ZSVEC_API_KEY:?")
        assert service["environment"]["QDRANT__TELEMETRY_DISABLED"] == "true"
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("nodes", FILES)
def test_containers_are_confined(nodes: str) -> None:
    for name, service in FILES[nodes]["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert re.fullmatch(r"\$\{ZSVEC_(QDRANT|SERVE)_MEMORY:-\d+g\}", service["mem_limit"])
        assert 0 < service["pids_limit"] <= 4096
        assert 0 < service["cpu_shares"] < 1024  # less than anything else on the host
        assert not service.get("privileged")


@pytest.mark.parametrize("nodes", FILES)
def test_servers_run_unprivileged_with_volumes_of_their_own(nodes: str) -> None:
    """The image makes its user the owner of both folders, and Docker copies the owner to new volumes."""
    for service in nodes_of(nodes).values():
        assert service["image"].endswith("-unprivileged")
        folders = {path for _, path in (volume.split(":") for volume in service["volumes"])}
        assert folders <= {"/qdrant/storage", "/qdrant/snapshots"}
    mounted = [volume.split(":") for service in FILES[nodes]["services"].values() for volume in service["volumes"]]
    assert sorted(name for name, _ in mounted) == sorted(FILES[nodes]["volumes"])
    assert len([path for _, path in mounted if path == "/qdrant/storage"]) == len(nodes_of(nodes))


def test_the_service_listens_on_this_machine_and_needs_a_key() -> None:
    service = FILES["one"]["services"]["zsvec"]
    assert service["ports"] == ["127.0.0.1:${ZSVEC_SERVE_PORT:-8000}:8000"]
    assert service["environment"]["ZSVEC_SERVE_KEYS"].startswith("${ZSVEC_SERVE_KEYS:?")
    assert (
        service["environment"]["ZSVEC_API_KEY"] == nodes_of("one")["qdrant"]["environment"]["QDRANT__SERVICE__API_KEY"]
    )
    assert service["depends_on"] == {"qdrant": {"condition": "service_healthy"}}
    assert service["build"]["target"] in STAGES


def test_the_grace_period_is_longer_than_a_shutdown() -> None:
    seconds = int(FILES["one"]["services"]["zsvec"]["stop_grace_period"].removesuffix("s"))
    assert seconds > NOT_READY_NOTICE_S + LAST_RESPONSES_S + 3


def test_the_environment_of_the_service_is_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings about unknown variables are errors in tests."""
    for name, value in FILES["one"]["services"]["zsvec"]["environment"].items():
        monkeypatch.setenv(name, value if "$" not in value else KEY)
    monkeypatch.setenv("ZSVEC_PROFILE", "offline")  # the image has /encoders
    monkeypatch.setenv("ZSVEC_SERVE_PORT", "8000")
    settings = load_settings()
    assert (settings.store, settings.allow_http, settings.keep) == ("http://qdrant:6333", True, "uncertain")


def test_the_documented_command_creates_keys(tmp_path: Path) -> None:
    page = (ROOT / "zsvec/docs/service.md").read_text()
    (line,) = re.findall(r"^\$ (\{ echo .*\}) > docker/.env$", page, re.MULTILINE)
    made = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    variables = dict(entry.split("=", 1) for entry in made.splitlines())
    assert variables.keys() == {"ZSVEC_API_KEY", "ZSVEC_SERVE_KEYS"}
    name, right, secret = variables["ZSVEC_SERVE_KEYS"].split(":")
    key = Keys.from_environment(variables).find(secret)
    assert key is not None
    assert (key.name, key.right, right) == (name, "write", "write")
    assert len(secret) == len(variables["ZSVEC_API_KEY"]) == 64


def test_variables_of_the_file_are_known() -> None:
    assert set(re.findall(r"\$\{(ZSVEC_\w+)", SERVICE_FILE.read_text())) - {"ZSVEC_API_KEY"} <= OTHER_VARIABLES.keys()


def test_tests_use_the_same_version_of_the_server() -> None:
    assert yaml.safe_load(COMPOSE_FILE.read_text())["services"]["qdrant"]["image"] == FILES["one"]["x-qdrant"]["image"]


def health_check(port: int = 6333) -> list[str]:
    kind, *command, script = FILES["one"]["x-qdrant"]["healthcheck"]["test"]
    assert kind == "CMD"
    assert script.count("/6333\n") == 1
    return [*command, script.replace("/6333\n", f"/{port}\n").replace("$$", "$")]


def test_the_health_check_of_the_server() -> None:
    with fast_folder() as folder, running_server(folder, QDRANT__SERVICE__API_KEY=KEY) as node:
        check = health_check(int(node.url.rpartition(":")[2]))
        assert subprocess.run(check, timeout=120).returncode == 0
        node.kill()
        assert subprocess.run(check, timeout=120, stderr=subprocess.DEVNULL).returncode != 0


def test_the_file_starts_a_server_that_needs_the_key() -> None:
    with composed(SERVICE_FILE, ZSVEC_API_KEY=KEY, ZSVEC_SERVE_KEYS=f"me:write:{KEY}") as url:
        with pytest.raises(StoreUnavailableError, match="ZSVEC_API_KEY"):
            connect([url], api_key="another key", timeout=60)
        backend = connect([url], api_key=KEY, timeout=60)
        assert not backend.exists("zsvec__catalog")
        backend.close()


def test_the_file_starts_nothing_without_a_key() -> None:
    with pytest.raises(Exception, match="is the key of the server"), composed(SERVICE_FILE, ZSVEC_API_KEY=""):
        pass


# Images of zsvec

ROOT = COMPOSE_FILE.parents[1]
DOCKERFILE = COMPOSE_FILE.with_name("Dockerfile")


def stages() -> dict[str, list[str]]:
    """Instructions of each stage and its base stages, by name."""
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n", "", DOCKERFILE.read_text()).splitlines():
        if begin := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            base, name = begin.groups()
            found[name] = [*found.get(base, [])]
        elif found and line and not line.startswith("#"):
            found[name].append(line)
    return found


STAGES = stages()


def test_images_run_as_a_user_without_rights() -> None:
    """By number, so that an orchestrator can verify that the user is not root."""
    for image in ("slim", "service", "full"):
        last = [line for line in STAGES[image] if line.startswith("USER ")][-1]
        assert re.fullmatch(r"USER (\d+):\1", last)
        assert f"--uid {last.rpartition(':')[2]} " in " ".join(STAGES[image])


def test_images_install_tested_versions_and_slim_has_no_torch() -> None:
    slim, full = (
        [line for line in STAGES[name] if line.startswith("RUN pip install ")] for name in ("build-slim", "build-full")
    )
    assert all("--constraint constraints.txt" in line for line in slim + full)
    assert [re.findall(r'"\.\[(\S+)\]"', line) for line in slim] == [["offline,serve"]]
    assert any('".[all]"' in line for line in full)
    assert [line for line in STAGES["slim"] if "--from=" in line] == ["COPY --from=build-slim /opt/zsvec /opt/zsvec"]


def test_copied_files_exist_and_are_in_the_build_context() -> None:
    copied = {
        source
        for lines in STAGES.values()
        for line in lines
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
    }
    sent = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert sent[0] == "*"
    assert all((ROOT / source).exists() and {f"!{source}", f"!{source.split('/')[0]}"} & {*sent} for source in copied)
    assert {"zsvec", "pyproject.toml", "README.md", "LICENSE"} <= copied


def test_the_health_check_of_the_image() -> None:
    """Against a server that is ready, one that is not, and none."""
    (check,) = [line for line in STAGES["service"] if line.startswith("HEALTHCHECK ")]
    program = json.loads(check[check.index("[") :])[2]
    assert "8000" in program
    statuses = [200, 503]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health/ready"
            self.send_response(statuses.pop(0))
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [sys.executable, "-c", program.replace("8000", str(server.server_port))]
        codes = [subprocess.run(command, timeout=120).returncode for _ in range(2)]
        server.shutdown()
    gone = subprocess.run(command, timeout=120, stderr=subprocess.DEVNULL).returncode
    assert (codes, gone) == ([0, 1], 1)


def test_the_service_image_serves() -> None:
    command = json.loads([line for line in STAGES["service"] if line.startswith("CMD ")][-1].removeprefix("CMD "))
    assert command == ["serve", "--host", "0.0.0.0"]


@pytest.mark.parametrize("image", ["full", "service", "slim"])
def test_the_environment_of_the_images_is_valid(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in STAGES[image]:
        if line.startswith("ENV "):
            for name, value in re.findall(r"(ZSVEC_\w+)=(\S+)", line):
                monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.profile, settings.store) == ("offline", "/store")
    assert settings.encoder_specs().keys() == {"conse", "efficientnet"}
