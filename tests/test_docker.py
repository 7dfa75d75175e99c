"""The compose file for people: a server that only this machine and only the key reaches, and that keeps what it has.

And the images of zsvec itself, as far as their file can be read.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from tests.qdrant import COMPOSE_FILE, composed, running_server
from tests.store.support import fast_folder
from zsvec.config import load_settings
from zsvec.errors import StoreUnavailableError, WeightsUnavailableError
from zsvec.store.server import connect

PEOPLES_FILE = COMPOSE_FILE.with_name("docker-compose.yml")
KEY = "s3cr3t-k3y"

yaml = pytest.importorskip("yaml")


def three_nodes() -> str:
    """The file with its commented block in the place of what that replaces."""
    shared, _, rest = PEOPLES_FILE.read_text().partition("\nservices:\n")
    return shared + re.sub("^# ?", "", rest[rest.index("\n# services:\n") :], flags=re.MULTILINE)


FILES: Mapping[str, Any] = {"one": yaml.safe_load(PEOPLES_FILE.read_text()), "three": yaml.safe_load(three_nodes())}


@pytest.mark.parametrize("nodes", FILES)
def test_every_service_is_for_this_machine_and_asks_for_a_key(nodes: str) -> None:
    services = FILES[nodes]["services"].values()
    assert len(services) == {"one": 1, "three": 3}[nodes]
    for service in services:
        assert [port.rpartition(":")[2] for port in service["ports"]] == ["6333", "6334"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["environment"]["QDRANT__SERVICE__API_KEY"].startswith("${ZSVEC_API_KEY:?")
        assert service["environment"]["QDRANT__TELEMETRY_DISABLED"] == "true"
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("nodes", FILES)
def test_every_service_keeps_its_data_in_a_volume_of_its_own(nodes: str) -> None:
    mounted = [volume.split(":") for service in FILES[nodes]["services"].values() for volume in service["volumes"]]
    assert sorted(name for name, _ in mounted) == sorted(FILES[nodes]["volumes"])
    assert len([path for _, path in mounted if path == "/qdrant/storage"]) == len(FILES[nodes]["services"])


def test_tests_have_a_server_of_the_same_version() -> None:
    assert yaml.safe_load(COMPOSE_FILE.read_text())["services"]["qdrant"]["image"] == FILES["one"]["x-qdrant"]["image"]


def health_check(port: int = 6333) -> list[str]:
    kind, *command, script = FILES["one"]["x-qdrant"]["healthcheck"]["test"]
    assert kind == "CMD"
    assert script.count("/6333\n") == 1
    return [*command, script.replace("/6333\n", f"/{port}\n").replace("$$", "$")]


def test_a_server_is_healthy_while_it_answers() -> None:
    with fast_folder() as folder, running_server(folder, QDRANT__SERVICE__API_KEY=KEY) as node:
        check = health_check(int(node.url.rpartition(":")[2]))
        assert subprocess.run(check, timeout=30).returncode == 0
        node.kill()
        assert subprocess.run(check, timeout=30, stderr=subprocess.DEVNULL).returncode != 0


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection:UserWarning")
def test_the_file_starts_a_server_that_asks_for_the_key() -> None:
    with composed(PEOPLES_FILE, ZSVEC_API_KEY=KEY) as (url, compose):
        compose("exec", "-T", "qdrant", *health_check())
        with pytest.raises(StoreUnavailableError, match="ZSVEC_API_KEY"):
            connect([url], api_key="another key", timeout=10)
        backend = connect([url], api_key=KEY, timeout=10)
        assert not backend.exists("zsvec__catalog")
        backend.close()


def test_the_file_starts_nothing_without_a_key() -> None:
    with pytest.raises(AssertionError, match="is the key of the server"), composed(PEOPLES_FILE, ZSVEC_API_KEY=""):
        pass


# Images of zsvec

ROOT = COMPOSE_FILE.parents[1]
DOCKERFILE = COMPOSE_FILE.with_name("Dockerfile")


def stages() -> dict[str, list[str]]:
    """Instructions of each stage and of those that it is built from, by its name."""
    found: dict[str, list[str]] = {}
    for line in re.sub(r"\\\n", "", DOCKERFILE.read_text()).splitlines():
        if begin := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            base, name = begin.groups()
            found[name] = [*found.get(base, [])]
        elif found and line and not line.startswith("#"):
            found[name].append(line)
    return found


STAGES = stages()


@pytest.mark.parametrize("image", ["slim", "full"])
def test_an_image_runs_as_a_user_without_rights(image: str) -> None:
    """Given as a number: an orchestrator that lets no root run sees that it is none."""
    last = [line for line in STAGES[image] if line.startswith("USER ")][-1]
    assert re.fullmatch(r"USER (\d+):\1", last)
    assert f"--uid {last.rpartition(':')[2]} " in " ".join(STAGES[image])


def test_the_slim_image_has_the_list_that_ships_and_nothing_else() -> None:
    commands = [command for line in STAGES["build-slim"] for command in line.removeprefix("RUN ").split(" && ")]
    installed = [command for command in commands if command.startswith("pip install")]
    assert installed == ["pip install --no-deps --requirement zsvec/without-torch.txt", "pip install --no-deps ."]
    assert [line for line in STAGES["slim"] if "--from=" in line] == ["COPY --from=build-slim /opt/zsvec /opt/zsvec"]


def test_what_images_are_made_of_is_there_and_sent() -> None:
    copied = {
        source
        for lines in STAGES.values()
        for line in lines
        if line.startswith("COPY ") and "--from=" not in line
        for source in line.split()[1:-1]
    }
    sent = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text().splitlines()
    assert sent[0] == "*"
    assert all((ROOT / source).exists() and f"!{source.split('/')[0]}" in sent for source in copied)
    assert {"zsvec", "pyproject.toml", "README.md", "LICENSE"} <= copied


def set_variables(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in STAGES[image]:
        if line.startswith("ENV "):
            for name, value in re.findall(r"(ZSVEC_\w+)=(\S+)", line):
                monkeypatch.setenv(name, value)


def test_what_the_full_image_sets_are_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is none would be warned of."""
    set_variables("full", monkeypatch)
    settings = load_settings()
    assert (settings.profile, settings.store) == ("offline", "/store")


def test_the_slim_image_asks_for_its_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables("slim", monkeypatch)
    with pytest.raises(WeightsUnavailableError, match="no exported encoders in /encoders"):
        load_settings()
