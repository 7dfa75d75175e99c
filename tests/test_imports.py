"""What an import and a command load: heavy packages only where something needs them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "openai", "qdrant_client", "qdrant_edge", "scipy", "sklearn", "transformers")
# What no command needs that works on an embedded store with encoders of its own.
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
    """Run statements in a new interpreter: what they print, and which of these packages they leave loaded."""
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


def test_a_store_is_listed_without_what_decides(tmp_path: Path) -> None:
    """`zsvec list` imports the engine of its store, and nothing that computes."""
    _, loaded = loaded_after(
        f"""
sys.argv = ["zsvec", "--store", {str(tmp_path)!r}, "list"]
from zsvec.cli import main
try:
    main()
except SystemExit: ...
"""
    )
    assert loaded == ["qdrant_edge"]


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

COMMAND = """
import zsvec.encoders

def load_encoders(specs, **options):
    from zsvec.encoders import EncoderSet
    from zsvec.testing import HashEncoder

    return EncoderSet([HashEncoder(name, modalities=spec.modalities) for name, spec in specs.items()])

zsvec.encoders.load_encoders = load_encoders
sys.argv = ["zsvec", "--profile", "offline", "--store", "{store}", *{arguments!r}]
from zsvec.cli import main
try:
    code = main()
except SystemExit as stop:
    code = stop.code
assert not code, code
"""


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (["list"], (*SLOW, *COMPUTES)),
        (["list", "--json"], (*SLOW, *COMPUTES)),
        (["info"], (*SLOW, *COMPUTES)),
        (["show", "dark"], (*SLOW, "zsvec.classifier", "zsvec.method.predict.fusion")),
        (["classify", "{image}"], SLOW),
        (["classify", "--explain", "{image}"], SLOW),
    ],
)
def test_a_command_imports_what_it_needs(arguments: list[str], unneeded: Sequence[str], tmp_path: Path) -> None:
    """Of an embedded store that is calibrated."""
    store, image = tmp_path / "store", tmp_path / "image.jpg"
    Image.new("RGB", (16, 16), "grey").save(image)
    loaded_after(CALIBRATED.format(store=store))
    given = [argument.format(image=image) for argument in arguments]
    printed, loaded = loaded_after(
        COMMAND.format(store=store, arguments=given), (*unneeded, "zsvec.store.backends.edge.backend")
    )
    assert printed
    assert loaded == ["qdrant_edge", "zsvec.store.backends.edge.backend"]


def test_an_evaluation_needs_no_package_that_an_installation_without_torch_lacks() -> None:
    slow = ("torch", "sklearn", "scipy.stats", "matplotlib")
    assert loaded_after("import zsvec.evaluation, zsvec.cli.evaluate", slow) == ("", [])


@pytest.mark.parametrize("arguments", [["--help"], ["classify", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    printed, loaded = loaded_after(
        f"""
sys.argv = ["zsvec", *{arguments!r}]
from zsvec.cli import main
try:
    code = main()
except SystemExit as stop:
    code = stop.code
assert not code, code
"""
    )
    assert "classify" in printed
    assert loaded == []


def test_classifying_with_encoders_of_ones_own_does_not_load_torch(tmp_path: Path) -> None:
    """On a CPU references are compared by numpy."""
    _, loaded = loaded_after(
        f"""
import zsvec
from zsvec.testing import HashEncoder
with zsvec.open({str(tmp_path / "store")!r}, encoders=[HashEncoder()]) as clf:
    clf.add_category("red panda", ["a small mammal"])
    clf.classify_vectors({{"hash": [[1.0] * 64]}})
"""
    )
    assert "torch" not in loaded
