"""`zsvec generate`: requests, purchases, output and exit codes."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cli import support as test_cli
from tests.generation.fake_openai import CHAT, IMAGES, KEY, Fault, Request
from tests.generation.fast_cli import load_encoders
from tests.generation.studio import Service, picture
from tests.support import encode, isolated, trusted_settings  # noqa: F401
from zsvec.cli import output
from zsvec.generation.manifest import read_manifest

cli = test_cli.cli  # the fixture
Run = Callable[..., test_cli.Result]

DEADLINE = 60.0
FOLDER = Path("zsvec-generated")
SOURCES = ("generated", "a small reddish mammal")
APPEARANCES = {"red panda": "a small reddish mammal", "blue whale": "a huge mammal of the sea"}
SETTINGS = """
[generation]
base_url = "{url}"
concurrency = 1
timeout = 10
deadline = 1

[generation.prices."gpt-6-luna"]
[generation.prices."gpt-image-2.6-flare"]
image = 0.01
"""


@pytest.fixture
def service(cli: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service with images at a cent and free questions."""
    monkeypatch.setattr(output.out, "width", 1000)  # so that tables do not wrap
    monkeypatch.setattr("zsvec.encoders.load_encoders", load_encoders)
    made = Service(APPEARANCES)
    with made.server:
        trusted_settings(SETTINGS.format(url=made.server.url))
        yield made


def facts(table: str) -> dict[str, str]:
    """Returns the rows of a table of names and values."""
    rows = [line.split("  ", 1) for line in table.splitlines() if line.strip()]
    return {name.strip(): value.strip() for name, value in rows}


def summary(done: test_cli.Result) -> str:
    return done.out.splitlines()[-1]


def references(run: Run, name: str) -> dict[str, int]:
    """Returns the numbers of references of a category, by expert."""
    found = {category["category"]: category["references"] for category in run("list --json").objects}
    return found.get(name, {})


# ---- the plan


def test_a_dry_run_shows_the_plan_and_asks_nothing(cli: Run, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.setattr("zsvec.encoders.load_encoders", None)  # nor is anything loaded
    result = cli("generate 'red panda' 'blue whale' --per-category 3 --max-images 5 --max-cost 2 --dry-run")
    assert (result.code, result.err) == (0, "")
    assert facts(result.out) == {
        "categories": "2",
        "confused by the store": "none",
        "questions": "at most 1 for descriptions, 1 for groups, 1 for features (gpt-6-luna)",
        "images to buy": "5 (gpt-image-2.6-flare), and 1 that the budget does not allow",
        "images there": "0",
        "cost": "about $0.05",
        "spent so far": "$0.00",
        "budget": "5 images, $2",
        "folder": "zsvec-generated",
    }
    assert service.requests() == {}
    assert not FOLDER.exists()
    assert cli("list --json").objects == []


def test_a_dry_run_as_json(cli: Run, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    result = cli("generate 'red panda' --per-category 3 --max-cost 2 --folder bought --dry-run --json")
    assert (result.code, result.err) == (0, "")
    (found,) = result.objects
    assert found.pop("cost") == pytest.approx(0.03)
    assert found == {
        "folder": "bought",
        "categories": ["red panda"],
        "retired": [],
        "confused": [],
        "texts_only": False,
        "described": ["red panda"],
        "questions": {"descriptions": 1, "groups": 1, "features": 1},
        "images": 3,
        "images_there": 0,
        "images_beyond_budget": 0,
        "spent": 0,
        "budget": {"images": None, "dollars": 2.0},
        "language_model": "gpt-6-luna",
        "image_model": "gpt-image-2.6-flare",
    }
    assert service.requests() == {}


def test_a_dry_run_after_a_run_counts_the_images(cli: Run, service: Service) -> None:
    assert cli("generate 'red panda' --per-category 2").code == 0
    before = service.requests()
    (found,) = cli("generate 'red panda' --per-category 5 --dry-run --json").objects
    assert (found["images"], found["images_there"], found["spent"]) == (3, 2, 0.02)
    assert found["questions"]["descriptions"] == 0
    shown = facts(cli("generate 'red panda' --per-category 2 --dry-run").out)
    assert (shown["questions"], shown["images to buy"][:2], shown["spent so far"]) == ("none", "0 ", "$0.02")
    assert service.requests() == before


def test_a_plan_without_prices_says_so(cli: Run, service: Service) -> None:
    settings = Path("zsvec.toml").read_text()
    trusted_settings(settings.replace("concurrency = 1", 'image_model = "my-own"'))
    assert facts(cli("generate cat --dry-run").out)["cost"] == "unknown: no price is known for the models"
    assert cli("generate cat --dry-run --json").objects[0]["cost"] is None
    result = cli("generate cat --max-cost 1 --dry-run")
    assert (result.code, result.out) == (2, "")
    assert "no price is known for 'my-own'" in result.err


def test_the_plan_names_confused_categories(cli: Run, service: Service) -> None:
    for name, colour, seeds in (("fox", "red", "123"), ("panda", "red", "456"), ("whale", "blue", "789")):
        Path(name).mkdir()
        for seed in seeds:
            Path(name, f"{seed}.png").write_bytes(picture(colour, int(seed)))
        assert cli(f"add {name} --text 'a {colour} animal' --image {name}").code == 0
    assert facts(cli("generate --all --dry-run").out)["confused by the store"] == "fox, panda; panda, fox"
    assert cli("generate --all --dry-run --json").objects[0]["confused"] == [["fox", "panda"], ["panda", "fox"]]


# ---- the run


def test_a_run_for_people(cli: Run, service: Service) -> None:
    result = cli("generate 'red panda' 'blue whale' --per-category 2")
    assert result.code == 0
    assert result.out == "4 images, 4 of them in the store, 0 flagged; 0 declined by the service; $0.04 spent\n"
    assert facts(result.err)["images to buy"] == "4 (gpt-image-2.6-flare)"
    assert references(cli, "red panda") == {"clip:text": 2, "clip:image": 2, "dino:image": 2}
    assert sorted(path.name for path in FOLDER.glob("images/*/*")) == ["0000.png", "0000.png", "0001.png", "0001.png"]


def test_a_run_as_json(cli: Run, service: Service) -> None:
    service.fault = lambda r: Fault.blocked() if r.path == IMAGES and "whale" in r.body["prompt"] else None
    service.pictures["red panda"] = [picture("red", 1), picture("blue", 2)]
    result = cli("generate 'red panda' 'blue whale' --per-category 2 --json")
    assert result.code == 0
    first, second, *declined = result.objects
    prompt = first.pop("prompt")
    assert "“red panda”" in prompt
    assert first == {
        "category": "red panda",
        "index": 0,
        "model": "gpt-image-2.6-flare",
        "size": "1024x1024",
        "quality": "low",
        "cost": 0.01,
        "file": "zsvec-generated/images/red panda/0000.png",
        "stored": True,
        "flags": [],
        "error": None,
    }
    assert (second["index"], second["stored"], second["error"]) == (1, False, None)
    assert second["flags"] == ["far: no nearer to 'red panda' than to everyday things"]
    assert [image.pop("error").partition(":")[0] for image in declined] == ["policy", "policy"]
    assert all("“blue whale”" in image.pop("prompt") for image in declined)
    assert declined == [{"category": "blue whale", "index": i, "cost": 0, "stored": False} for i in (0, 1)]
    assert facts(result.err)["categories"] == "2"  # the plan


def test_the_report_lists_left_out_images_with_reasons(cli: Run, service: Service) -> None:
    def fault(request: Request) -> Fault | None:
        if request.path == IMAGES and "whale" in request.body["prompt"]:
            return Fault.blocked()
        return Fault.not_an_image() if request.path == IMAGES and not service.pictures["red panda"] else None

    service.fault = fault
    one_colour = encode(Image.new("RGB", (8, 8), "red"))
    service.pictures["red panda"] = [picture("red", 1), one_colour, picture("blue", 2), picture("red", 1)]
    result = cli("generate 'red panda' 'blue whale' --per-category 5")
    assert result.code == 0
    header, _, *rows = [re.split(r"  +", line.strip()) for line in result.out.splitlines()[:-1] if line.strip()]
    assert header == ["category", "image", "left out because"]
    folder = "zsvec-generated/images/red panda"
    declined, unreadable = [rows.pop() for _ in range(5)], rows.pop()
    assert {(name, image) for name, image, _ in declined} == {("blue whale", "–")}
    assert all(re.match("policy: .*Your request was rejected by the safety system", why) for *_, why in declined)
    assert unreadable[:2] == ["red panda", f"{folder}/0004.bin"]
    assert unreadable[2].startswith(f"unreadable: cannot read '{folder}/0004.bin': unknown format")
    assert rows == [
        ["red panda", f"{folder}/0001.png", "blank: the image has one colour only"],
        ["red panda", f"{folder}/0002.png", "far: no nearer to 'red panda' than to everyday things"],
        ["red panda", f"{folder}/0003.png", f"copy: the same picture as {folder}/0000.png"],
    ]
    assert summary(result) == "5 images, 1 of them in the store, 4 flagged; 5 declined by the service; $0.05 spent"
    assert references(cli, "red panda")["dino:image"] == 1


def test_flagged_images_are_kept_on_demand(cli: Run, service: Service) -> None:
    service.pictures["red panda"] = [picture("red", 1), picture("blue", 2)]
    result = cli("generate 'red panda' --per-category 2 --keep-flagged")
    assert result.out == "2 images, 2 of them in the store, 1 flagged; 0 declined by the service; $0.02 spent\n"
    assert references(cli, "red panda")["dino:image"] == 2


def test_what_was_mended_is_named_and_left_out(cli: Run, service: Service) -> None:
    assert cli("generate 'red panda' 'blue whale' --per-category 2").code == 0
    (shown,) = cli("show 'red panda' --json").objects
    image, text = (next(one["hash"] for one in shown["stored"] if one["source"] == source) for source in SOURCES)
    assert cli(f"remove 'red panda' {image} {text}").code == 0
    assert cli("rename 'blue whale' cetacean").code == 0
    before, mended = service.requests(), cli("list --json").objects
    result = cli("generate 'red panda' 'blue whale' --per-category 2 --keep-flagged")
    assert (result.code, service.requests()) == (0, before)
    assert cli("list --json").objects == mended
    notes = result.err.splitlines()
    assert any(note.startswith("left out, because they were removed, renamed or merged: blue whale.") for note in notes)
    assert any(note.startswith("left out, because they were moved or removed: 1 image and 1 text.") for note in notes)
    assert "withdrawn: it was moved or removed from 'red panda'" in " ".join(result.out.split())
    dry = cli("generate 'red panda' 'blue whale' --dry-run --json").objects
    assert [(plan["categories"], plan["retired"]) for plan in dry] == [(["red panda"], ["blue whale"])]


def test_all_categories(cli: Run, service: Service) -> None:
    cli("add 'red panda'")
    cli("add 'blue whale'")
    found = cli("generate --all --per-category 1 --json").objects
    assert [(image["category"], image["stored"]) for image in found] == [("blue whale", True), ("red panda", True)]


def test_show_prints_the_prompts(cli: Run, service: Service) -> None:
    (image,) = cli("generate 'red panda' --per-category 1 --json").objects
    expected = f"generated: {image['prompt']}"
    (found,) = cli("show 'red panda' --json").objects
    assert [(one["modality"], one["source"], one["prompt"]) for one in found["stored"]] == [
        ("text", "a photo of a red panda", None),
        ("text", "a small reddish mammal", None),
        ("image", "generated", image["prompt"]),
    ]
    assert expected in cli("show 'red panda'").out


# ---- texts alone


def test_a_dry_run_of_texts_names_no_images(cli: Run, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    settings = Path("zsvec.toml").read_text()
    trusted_settings(
        settings.replace('[generation.prices."gpt-6-luna"]', '[generation.prices."gpt-6-luna"]\noutput = 1')
    )
    result = cli("generate 'red panda' 'blue whale' --texts --max-cost 0.0009 --dry-run")
    assert (result.code, result.err) == (0, "")
    assert facts(result.out) == {
        "categories": "1, and 1 that the budget does not allow",
        "questions": "at most 1 for descriptions, 1 for groups, 1 for features (gpt-6-luna)",
        "cost": "about $0.0007",  # 300 + 60 + 300 tokens
        "spent so far": "$0.0000",
        "budget": "$0.0009",
        "folder": "zsvec-generated",
    }
    (found,) = cli("generate 'red panda' --texts --dry-run --json").objects
    assert (found["texts_only"], found["described"], found["images"]) == (True, ["red panda"], 0)
    assert found["cost"] == pytest.approx(0.00066)
    assert service.requests() == {}
    assert not FOLDER.exists()


def test_a_run_for_texts(cli: Run, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZSVEC_ADDED_BY", "Ann")
    service.fault = lambda request: Fault.refusal("Not this.") if "whale" in str(request.body) else None
    result = cli("generate 'red panda' 'blue whale' --texts")
    assert result.code == 0
    header, _, row = [re.split(r"  +", line.strip()) for line in result.out.splitlines()[:-1] if line.strip()]
    assert (header, row) == (["category", "no text because"], ["blue whale", "refusal: Not this."])
    assert summary(result) == "1 text of 1 category, 1 without a description; $0.0000 spent"
    assert references(cli, "red panda") == {"clip:text": 2}
    assert SOURCES[1] in cli("show 'red panda'").out
    asked = service.requests()
    assert cli("generate 'red panda' 'blue whale' --texts --json").objects == [
        {"category": "blue whale", "texts": [], "error": "refusal: Not this."},
        {"category": "red panda", "texts": [SOURCES[1]], "error": None},
    ]
    assert service.requests() == asked
    assert asked["images"] == 0
    assert cli("undo").code == 0
    assert cli("list --json").objects == []


# ---- budgets


@pytest.mark.parametrize(
    ("budget", "bought", "out_of_budget"),
    [
        ("--max-images 3", 3, True),
        ("--max-cost 0", 0, True),
        ("--max-cost 0.02", 2, True),
        ("--max-cost 5", 4, False),
        ("--max-cost 0.01 --max-images 3", 1, True),
    ],
)
def test_budgets(cli: Run, service: Service, budget: str, bought: int, *, out_of_budget: bool) -> None:
    result = cli(f"generate 'red panda' 'blue whale' --per-category 2 {budget}")
    assert result.code == 0
    assert service.requests()["images"] == bought
    images = "image" if bought == 1 else "images"
    assert f"{bought} {images}, {bought} of them in the store, " in result.out
    assert ("the budget ended it: with a larger one, run the same again to go on" in result.err) is out_of_budget
    assert cli(f"generate 'red panda' 'blue whale' --per-category 2 {budget}").code == 0
    assert service.requests()["images"] == bought  # bought images count


# ---- errors


def test_wrong_usage(cli: Run, service: Service) -> None:
    for options, message in {
        "": "give either names of categories or --all",
        "cat --all": "give either names of categories or --all",
        "--all": "has no category to draw: name some",
        "''": "the value must not be empty. Got ''",
        "' '": "a category name must not be empty. Got ' '",
        "cat --per-category 0": "--per-category",
        "cat --per-category two": "--per-category",
        "cat --max-images 2.5": "--max-images",
        "cat --max-images -1": "--max-images",
        "cat --max-cost lots": "--max-cost",
        "cat --max-cost -1": "--max-cost",
        "cat --max-cost nan": "--max-cost",
        f"cat --max-cost {'9' * 5000}": "a budget of dollars must be",
        "cat --folder zsvec.toml": "zsvec.toml",
        "cat --folder zsvec.toml --dry-run --json": "zsvec.toml",
        "cat --nonsense": "--nonsense",
        "cat --texts --per-category 4": "--texts draws no images",
        "cat --texts --max-images 4": "--texts draws no images",
        "cat --texts --keep-flagged": "--texts draws no images",
    }.items():
        result = cli(f"generate {options}")
        assert (result.code, result.out) == (2, ""), options
        assert message in " ".join(result.err.replace("│", " ").split())
        assert "Traceback" not in result.err
    assert service.requests() == {}
    assert cli("list --json").objects == []


def fails(result: test_cli.Result, message: str) -> bool:
    """Returns whether a run showed its plan and failed with a message."""
    plan, _, error = result.err.partition("\nzsvec: ")
    assert facts(plan)["categories"] == "1"
    return (result.code, result.out) == (1, "") and message in error and KEY not in result.err


def test_no_key(cli: Run, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    for options in ("", "--json"):
        assert fails(cli(f"generate cat {options}"), "set OPENAI_API_KEY in the environment")
    assert not FOLDER.exists()
    assert service.requests() == {}


def test_a_wrong_key(cli: Run, service: Service) -> None:
    service.server.key = "another"
    assert fails(cli("generate cat"), "(HTTP 401): it refuses the key in OPENAI_API_KEY: set one that it knows")
    assert set(service.requests()) == {"questions"}
    assert cli("list --json").objects == []


def test_a_service_that_is_away(cli: Run, service: Service) -> None:
    service.server.close()
    assert fails(cli("generate cat"), f"{service.server.url}/ is not available: ")


def test_a_service_that_fails_on_its_way(cli: Run, service: Service) -> None:
    service.pictures["red panda"] = [picture("red", 1)]
    service.fault = lambda r: None if r.path == CHAT or service.pictures["red panda"] else Fault.out_of_quota()
    result = cli("generate 'red panda' --per-category 3")
    assert (result.code, "the account is out of credit" in result.err) == (1, True)
    assert result.out.startswith("1 image, 1 of them in the store, ")
    assert references(cli, "red panda")["dino:image"] == 1
    service.fault = lambda request: None
    assert cli("generate 'red panda' --per-category 3").code == 0
    assert references(cli, "red panda")["dino:image"] == 3


def test_ctrl_c(cli: Run, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    drawing, interrupted = threading.Event(), threading.Event()

    def fault(request: Request) -> None:
        if request.path == IMAGES and not service.pictures["red panda"]:
            drawing.set()
            assert interrupted.wait(DEADLINE)

    service.fault = fault
    service.pictures["red panda"] = [picture("red", 1)]
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    arguments = ["generate", "red panda", "--per-category", "4"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.generation.fast_cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert drawing.wait(DEADLINE)
        process.send_signal(signal.SIGINT)
    finally:
        interrupted.set()
    out, err = process.communicate(timeout=DEADLINE)
    assert (process.returncode, out) == (130, "")
    assert "stopped; what has arrived is in zsvec-generated: run the same again to go on" in err
    assert "Traceback" not in err
    assert service.requests()["images"] == 2  # the second was on the way, and is awaited
    assert [record.kind for record in read_manifest(FOLDER)].count("image") == 2
    result = cli("generate 'red panda' --per-category 4")
    assert summary(result).startswith("4 images, 4 of them in the store, 0 flagged")
    assert set(service.server.sold(IMAGES).values()) == {1}
