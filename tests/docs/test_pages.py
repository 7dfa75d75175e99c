"""What README and pages say is true: their code runs and prints what they state, and their links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import Block, agree, blocks
from tests.store.support import ServerDeployment
from tests.support import fast_folder, isolated  # noqa: F401
from zsvec import encoders
from zsvec.cli.commands import app
from zsvec.cli.docs import TOPICS, summary
from zsvec.encoders import EncoderSet
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.method.predict.reference_aggregation import AGGREGATIONS
from zsvec.settings.profiles import PROFILES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "zsvec" / "docs"
PAGES = {"README": ROOT / "README.md", **{topic: DOCS / f"{topic}.md" for topic in TOPICS}}

# The blocks that do not run here, by page. Whoever adds one says so.
UNRUN = {
    "README": ["needs-network"],
    "streams": ["needs-hardware", "needs-hardware"],
    "service": [*["needs-service"] * 3, "needs-docker"],
    "server": ["needs-docker", *["needs-server"] * 11],  # the latter run where there is one
    "encoders": ["needs-network", "needs-docker"],
    "evaluation": ["needs-time"],
    "generation": ["needs-key"] * 3,
    "integrations": [*["needs-cluster"] * 3, "needs-service", "needs-fiftyone"],
    "architecture": ["needs-host"],
    "measured": [
        *["needs-data"] * 14,
        "needs-time",
        "needs-data",
        "needs-time",
        "needs-data",
        "needs-time",
        *["needs-server-tests"] * 3,
        *["needs-data"] * 4,
        "needs-time",
        "needs-server-tests",
    ],
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first block of the quickstart writes."""
    folder = tmp_path_factory.mktemp("photographs")
    with contextlib.chdir(folder):
        exec(blocks(PAGES["quickstart"])[0].code, {})
    return folder


@pytest.fixture
def workplace(
    photographs: Path, load_once: Callable[..., EncoderSet], monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """A working folder with the photographs, as every page expects it."""
    monkeypatch.setattr(encoders, "load_encoders", load_once)
    with fast_folder() as folder:
        shutil.copytree(photographs, folder, dirs_exist_ok=True)
        monkeypatch.chdir(folder)
        yield monkeypatch
        monkeypatch.undo()


@contextlib.contextmanager
def captured() -> Iterator[Callable[[], list[str]]]:
    """Gives a function that says which lines were printed."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(file):
        yield lambda: file.buffer.getvalue().decode().splitlines()  # type: ignore[attr-defined]


def run_python(block: Block, page: Path, namespace: dict[str, Any]) -> list[str]:
    """Runs a block. One that begins with the name of a file is also written to the file."""
    if named := re.match(r"# (\w+\.py)\n", block.code):
        Path(named[1]).write_text(block.code, encoding="utf-8")
    code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
    with captured() as out:
        exec(code, namespace)
    return out()


def run_command(command: str, patch: pytest.MonkeyPatch) -> list[str]:
    before, piped, rest = command.rpartition(" | ")
    words = shlex.split(os.path.expandvars(rest if piped else command), comments=True)
    if words[0] == "export":
        for word in words[1:]:
            patch.setenv(*word.split("=", 1))
        return []
    if words[0] != "zsvec":
        return run_shell(command).splitlines()
    if piped:
        patch.setattr(sys, "stdin", io.StringIO(run_shell(before)))
    with captured() as out:
        code = app(words[1:], prog_name="zsvec", standalone_mode=False)
    assert not code, command
    return out()


def run_shell(command: str) -> str:
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout


def run_console(block: Block, patch: pytest.MonkeyPatch) -> None:
    commands: list[tuple[str, list[str]]] = []
    for line in block.code.splitlines():
        if line.startswith("$ "):
            commands.append((line.removeprefix("$ "), []))
        else:
            commands[-1][1].append(line)
    for command, stated in commands:
        printed = run_command(command, patch)
        if stated:
            check(stated, printed)


def check(stated: list[str], printed: list[str]) -> None:
    matched = len(stated) == len(printed) and all(map(agree, stated, printed))
    assert matched, "\n".join(["the page says", *stated, "and this is printed", *printed])


def run_page(name: str, chosen: list[Block], patch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {"__name__": name}
    for block in chosen:
        try:
            if block.language == "python":
                printed = run_python(block, PAGES[name], namespace)
                if block.output is not None:
                    check(block.output, printed)
            elif block.language == "console":
                run_console(block, patch)
        except Exception as error:
            error.add_note(f"in the block at {PAGES[name]}:{block.line}")
            raise


def test_code_runs_in_one_folder_and_prints_what_the_pages_say(workplace: pytest.MonkeyPatch) -> None:
    """In the order in which `zsvec docs` lists them, as in one shell. No page changes the photographs of the others."""
    photographs = sorted([*Path("photos").rglob("*"), *Path("new").rglob("*")])
    for name in PAGES:
        run_page(name, [block for block in blocks(PAGES[name]) if not block.needs], workplace)
        assert sorted([*Path("photos").rglob("*"), *Path("new").rglob("*")]) == photographs, name


@pytest.mark.parametrize("name", [name for name, needs in UNRUN.items() if "needs-server" in needs])
def test_code_for_a_server_runs_on_one(name: str, server: ServerDeployment, workplace: pytest.MonkeyPatch) -> None:
    def here(code: str) -> str:
        return code.replace("http://localhost:6333", server.url).replace("garden", server.namespace)

    workplace.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # `zsvec doctor` asks whether the hub is there
    chosen = [block for block in blocks(PAGES[name]) if block.needs == "needs-server"]
    run_page(name, [replace(block, code=here(block.code)) for block in chosen], workplace)


def test_blocks_that_do_not_run_are_listed() -> None:
    found = {name: [block.needs for block in blocks(page) if block.needs] for name, page in PAGES.items()}
    assert {name: needs for name, needs in found.items() if needs} == UNRUN


@pytest.mark.parametrize("name", PAGES)
def test_blocks_have_a_language_that_is_dealt_with(name: str) -> None:
    assert {block.language for block in blocks(PAGES[name])} <= {"python", "console", "text", "toml", "json"}


@pytest.mark.parametrize("name", PAGES)
def test_python_has_no_line_that_has_to_be_scrolled(name: str) -> None:
    assert [line for block in blocks(PAGES[name]) for line in block.code.splitlines() if len(line) > 120] == []


# Words and links


def anchors(page: Path) -> set[str]:
    """The names of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES.values(), ROOT / "CHANGELOG.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            file, _, anchor = target.partition("#")
            there = page.parent / file if file else page
            assert there.is_file(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(there), f"{page.name} links to {target}"


def test_topics_are_the_pages() -> None:
    assert sorted(TOPICS) == sorted(path.stem for path in DOCS.glob("*.md"))


@pytest.mark.parametrize("topic", TOPICS)
def test_a_page_begins_with_a_title_and_a_sentence(topic: str) -> None:
    text = PAGES[topic].read_text(encoding="utf-8")
    assert re.match(r"# \S.*\n\n[A-Z`]", text.replace("zsvec", "Zsvec"))
    assert 20 < len(summary(text)) < 160


def test_the_readme_is_one_page() -> None:
    assert len(PAGES["README"].read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize(
    ("topic", "names"), [("decides", STRATEGIES), ("decides", AGGREGATIONS), ("encoders", PROFILES)]
)
def test_a_page_has_every_name(topic: str, names: dict[str, Any]) -> None:
    text = PAGES[topic].read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("topic", ["architecture", "decides", "generation", "evaluation", "streams"])
def test_files_that_a_page_names_are_there(topic: str) -> None:
    named = re.findall(r"`([\w/]+\.(?:py|yml))`", PAGES[topic].read_text(encoding="utf-8"))
    assert [file for file in named if not any((folder / file).is_file() for folder in (ROOT, ROOT / "zsvec"))] == []


# The rules of comparing


@pytest.mark.parametrize(
    ("stated", "printed"),
    [
        ("gravel 99.0%, novelty 0.03", "gravel 96.2%, novelty 0.08"),
        ("new/a.png  lawn …", "new/a.png  lawn 100.0%  then gravel 0.0%"),
        ("4 images", "4 images"),
        ("8 $0.06", "8 $0.06"),
    ],
)
def test_lines_that_agree(stated: str, printed: str) -> None:
    assert agree(stated, printed)


@pytest.mark.parametrize(
    ("stated", "printed"),
    [
        ("gravel 99.0%", "gravel 88.0%"),
        ("novelty 0.03", "novelty 0.50"),
        ("gravel 99.0%", "lawn 99.0%"),
        ("4 images", "5 images"),
        ("8 $0.06", "8 $0.05"),
        ("8 $10.06", "8 $10.05"),
        ("… lawn", "lawn and more"),
    ],
)
def test_lines_that_do_not(stated: str, printed: str) -> None:
    assert not agree(stated, printed)
