"""Imports: heavy packages are loaded only where needed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "openai", "qdrant_client", "qdrant_edge", "scipy", "sklearn", "transformers")
# Needed by no command on an embedded store with its own encoders.
SLOW = (*HEAVY, "httpx", "huggingface_hub", "rich.live", "rich.markdown", "rich.progress", "PIL.PdfImagePlugin")
COMPUTES = (
    "numpy",
    "PIL",
    "zsvec.classifier",
    "zsvec.encoders.base",
    "zsvec.inputs.images",
    "zsvec.method.predict.fusion",
)


def loaded_after(statements: str, watched: Sequence[str] = HEAVY) -> tuple[str, list[str]]:
    """Output of statements in a new interpreter, and the watched packages that are loaded afterwards."""
    code = f"import sys\n{statements}\nprint('loaded:', *sorted(sys.modules.keys() & set({watched!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    printed, _, loaded = done.stdout.rpartition("loaded:")
    return printed, loaded.split()


def test_a_loaded_package_is_noticed() -> None:
    assert loaded_after("import types\nsys.modules['torch'] = types") == ("", ["torch"])
    assert loaded_after("import zsvec.store.backends.edge.backend") == ("", ["qdrant_edge"])


def test_importing_zsvec_loads_nothing_heavy() -> None:
    assert loaded_after("import zsvec") == ("", [])
    slow = ("torch", "sklearn", "scipy.stats", "matplotlib")  # an installation without torch has none of them
    assert loaded_after("import zsvec.evaluation, zsvec.cli.evaluate", slow) == ("", [])


CALIBRATED = """
from zsvec.inputs.categories import CategoryInput
from zsvec.testing import HashEncoder
import numpy as np, zsvec
noise = np.random.default_rng(0).integers(0, 50, (3, 20, 8, 8, 3), dtype=np.uint8)
with zsvec.open("{store}", encoders=[HashEncoder("conse"), HashEncoder("efficientnet", modalities=("image",))]) as clf:
    clf.add_categories(
        CategoryInput(name=name, images=[pixels + np.uint8(60 * i) for pixels in noise[i]])
        for i, name in enumerate(("dark", "grey", "light"))
    )
    assert clf._store.calibration() is not None
"""

RUN = """
sys.argv = ["zsvec", *{arguments!r}]
from zsvec.cli import main
try:
    code = main()
except SystemExit as stop:
    code = stop.code
assert not code, code
"""

HASH_ENCODERS = """
import zsvec.encoders

def load_encoders(specs, **options):
    from zsvec.encoders import EncoderSet
    from zsvec.testing import HashEncoder

    return EncoderSet([HashEncoder(name, modalities=spec.modalities) for name, spec in specs.items()])

zsvec.encoders.load_encoders = load_encoders
"""


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a calibrated store, and an image."""
    folder = tmp_path_factory.mktemp("calibrated")
    Image.new("RGB", (16, 16), "grey").save(folder / "image.jpg")
    loaded_after(CALIBRATED.format(store=folder / "store"))
    return folder


@pytest.mark.parametrize(
    ("commands", "unneeded"),
    [
        ((["list"], ["list", "--json"], ["info"]), (*SLOW, *COMPUTES)),
        ((["show", "dark"],), (*SLOW, "zsvec.classifier", "zsvec.method.predict.fusion")),
        ((["classify", "{image}"], ["classify", "--explain", "{image}"]), SLOW),
    ],
)
def test_imports_of_commands(commands: Sequence[list[str]], unneeded: Sequence[str], calibrated: Path) -> None:
    store = ["--profile", "offline", "--store", str(calibrated / "store")]
    image = str(calibrated / "image.jpg")
    run = [RUN.format(arguments=[*store, *(word.format(image=image) for word in command)]) for command in commands]
    edge = "zsvec.store.backends.edge.backend"
    printed, loaded = loaded_after(HASH_ENCODERS + "".join(run), (*unneeded, edge))
    assert printed
    assert loaded == ["qdrant_edge", edge]


def test_help_loads_nothing_heavy() -> None:
    printed, loaded = loaded_after(RUN.format(arguments=["--help"]) + RUN.format(arguments=["classify", "--help"]))
    assert "classify" in printed
    assert loaded == []


def test_classifying_with_hash_encoders_does_not_load_torch(tmp_path: Path) -> None:
    _, loaded = loaded_after(
        f"""
import zsvec
from zsvec.testing import HashEncoder
with zsvec.open({str(tmp_path / "store")!r}, encoders=[HashEncoder()]) as clf:
    clf.add_category("red panda", texts=["a small mammal"])
    clf.classify_vectors({{"hash": [[1.0] * 64]}})
"""
    )
    assert "torch" not in loaded


# The first thread stops within an import until the second thread is within its own, or has waited for three seconds.
TWO_THREADS = """
import threading, zsvec
{prepared}
inside, met, errors = threading.Event(), threading.Event(), []

def step(name):
    thread = threading.current_thread().name
    if thread == "first" and name == {stops!r} and not inside.is_set():
        inside.set()
        met.wait(3)
    if thread == "second" and name == {reaches!r}:
        met.set()

def run(statement):
    try:
        exec(statement, globals())
    except BaseException as exc:
        errors.append(repr(exc))

sys.addaudithook(lambda event, args: step(args[0]) if event == "import" else None)
first = threading.Thread(target=run, args=({first!r},), name="first")
second = threading.Thread(target=run, args=({second!r},), name="second")
first.start()
assert inside.wait(60)
second.start()
first.join()
second.join()
assert not errors, errors
"""


FILLED = """
import numpy as np
from zsvec.testing import HashEncoder
encoders = [HashEncoder("conse"), HashEncoder("efficientnet", modalities=("image",))]
clf = zsvec.open({store!r}, encoders=encoders)
for pixels in np.random.default_rng(1).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8):
    clf.keep(pixels)
"""


@pytest.mark.parametrize(
    ("first", "stops", "second", "reaches"),
    [
        ("zsvec.CategoryInput", "numpy._globals", "zsvec.open(':memory:')", "numpy._typing._array_like"),
        ("clf.generation", "zsvec.generation.plan", "zsvec.Budget", "zsvec.generation.features"),
        ("clf.image_map()", "sklearn.base", "clf.inbox.groups()", "sklearn.base"),
    ],
)
def test_modules_are_first_imported_in_two_threads(
    first: str, stops: str, second: str, reaches: str, calibrated: Path
) -> None:
    prepared = FILLED.format(store=str(calibrated / "store")) if first.startswith("clf.") else ""
    loaded_after(TWO_THREADS.format(prepared=prepared, first=first, stops=stops, second=second, reaches=reaches))
