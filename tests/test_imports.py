"""The import rule of zsvec: a module imports only from a lower level, and heavy packages have one home each."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zsvec"

# Every module and package of zsvec has a level. `zsvec` is zsvec/__init__.py: the roof over all but the surfaces.
LEVELS = {
    0: ("errors", "types"),
    1: (
        "config",
        "images",
        "aggregate",
        "fusion",
        "leave_one_out",
        "transductive",
        "calibration",
        "stream",
        "product",
    ),
    2: ("encoders", "store", "generation"),
    3: ("search", "scoring", "builder", "synthesis", "classifier"),
    4: ("folders", "sources", "evaluation"),
    5: ("cli", "__main__"),
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names} | {"zsvec": 4.5}
# Besides lower levels:
SAME_LEVEL = {
    "leave_one_out": {"aggregate", "product"},
    "transductive": {"fusion", "leave_one_out"},
    "calibration": {"aggregate", "fusion", "leave_one_out"},
    "scoring": {"search"},
    "synthesis": {"builder"},
    "classifier": {"search", "scoring", "builder", "synthesis"},
    "__main__": {"cli"},
}
# Public doubles for the tests of users: nothing of zsvec needs them, and they need only what an encoder is.
TESTING_IMPORTS = {"zsvec.encoders.base"}

HOMES = {
    "torch": ("zsvec.encoders",),
    "torchvision": ("zsvec.encoders",),
    "timm": ("zsvec.encoders",),
    "sentence_transformers": ("zsvec.encoders",),
    "transformers": ("zsvec.encoders",),
    "qdrant_client": ("zsvec.store.server",),
    "qdrant_edge": ("zsvec.store.edge",),
    "openai": ("zsvec.generation",),
    "av": ("zsvec.sources",),
}
PURE = {"aggregate", "fusion", "leave_one_out", "transductive", "calibration"}
HEAVY = ("torch", "openai", "qdrant_client", "qdrant_edge", "transformers")


def module_name(path: Path) -> str:
    parts = ("zsvec", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def part(module: str) -> str:
    """The row of the table: ``zsvec.store.edge`` is of ``store``."""
    return module.split(".")[1] if "." in module else module


def literal(node: ast.expr) -> str | None:
    """A string constant, or the constant beginning of an f-string."""
    if isinstance(node, ast.JoinedStr) and node.values:
        return literal(node.values[0])
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def imports(source: str, module: str, *, is_package: bool = False) -> Iterator[str]:
    """Dotted names that a module imports, wherever and however: a name in it may be a module or not."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            name = literal(node.args[0]) if called in ("import_module", "__import__") else None
            if name:
                yield importlib.util.resolve_name(name, package)


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What a module imports against the rule, as ``module -> import``."""
    here = part(module)
    found = []
    for name in imports(source, module, is_package=is_package):
        top = name.partition(".")[0]
        if top == "zsvec":
            allowed = _may_import(here, name)
        elif top in HOMES:
            allowed = any(module == home or module.startswith(f"{home}.") for home in HOMES[top])
        else:
            allowed = here not in PURE or top in ("numpy", "scipy") or top in sys.stdlib_module_names
        if not allowed:
            found.append(f"{module} -> {name}")
    return found


def _may_import(here: str, name: str) -> bool:
    there = part(name)
    if name.count(".") == 1 and there not in {*LEVEL, "testing", *map(part, FILES)}:
        there = "zsvec"  # `from zsvec import open`: no module, but a name of the package itself
    if here == there:
        return True
    if here == "testing" and LEVEL.get(there) == 2:
        return any(name == allowed or name.startswith(f"{allowed}.") for allowed in TESTING_IMPORTS)
    level = 2 if here == "testing" else LEVEL.get(here, -1)
    return LEVEL.get(there, 99) < level or there in SAME_LEVEL.get(here, ())


# ---- the rule


def test_every_module_has_its_place() -> None:
    parts = {part(module) for module in FILES}
    assert {"zsvec", "errors", "types", "store"} <= parts
    assert parts - LEVEL.keys() - {"testing"} == set()


@pytest.mark.parametrize("module", FILES)
def test_imports_go_downwards(module: str) -> None:
    path = FILES[module]
    assert violations(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zsvec.types", "import zsvec.errors"),  # the same level
        ("zsvec.errors", "from zsvec import types"),
        ("zsvec.errors", "from . import types"),
        ("zsvec.errors", "from .config import Settings"),
        ("zsvec.errors", "import zsvec"),
        ("zsvec.config", "from zsvec.store import open_store"),
        ("zsvec.config", "def late():\n    from zsvec.store import open_store"),
        ("zsvec.config", "if TYPE_CHECKING:\n    from zsvec.store import Store"),
        ("zsvec.config", "class A:\n    try:\n        import zsvec.search as s\n    except ImportError: ..."),
        ("zsvec.config", "import_module('zsvec.store.edge')"),
        ("zsvec.config", "importlib.import_module('zsvec.store.edge')"),
        ("zsvec.config", "import_module(f'zsvec.encoders.{family}')"),
        ("zsvec.config", "import_module('.store', 'zsvec')"),
        ("zsvec.config", "__import__('zsvec.store')"),
        ("zsvec.fusion", "from zsvec.aggregate import Floats"),
        ("zsvec.encoders.clip", "from zsvec.store import Store"),
        ("zsvec.encoders.clip", "from ..store import Store"),
        ("zsvec.encoders.clip", "from zsvec.generation.prompts import prompt"),
        ("zsvec.store", "import zsvec.encoders.base"),
        ("zsvec.store.edge", "from zsvec.encoders.base import Vectors"),
        ("zsvec.generation.plan", "from zsvec.store import Store"),
        ("zsvec.generation.plan", "from zsvec.encoders import Encoder"),
        ("zsvec.search", "from zsvec.builder import Builder"),
        ("zsvec.builder", "from zsvec.search import Searcher"),
        ("zsvec.search", "from zsvec.classifier import Classifier"),
        ("zsvec.stream", "from zsvec.evaluation import metrics"),
        ("zsvec.evaluation.report", "from zsvec import __version__"),
        ("zsvec.evaluation", "from zsvec.cli import main"),
        ("zsvec.demo", "from zsvec.cli import main"),
        ("zsvec.demo", "from zsvec.doctor import check"),
        ("zsvec", "from zsvec.cli import main"),
        ("zsvec.builder", "from zsvec.testing import HashEncoder"),
        ("zsvec.cli", "import zsvec.testing"),
        ("zsvec.testing", "from zsvec.encoders.clip import ClipEncoder"),
        ("zsvec.testing", "from zsvec.encoders import load_encoder"),
        ("zsvec.testing", "from zsvec.store.base import Hit"),
        ("zsvec.testing", "from zsvec.search import Searcher"),
        ("zsvec.cli", "from zsvec.not_placed import x"),
        ("zsvec.not_placed", "from zsvec.errors import ZSVecError"),
        # packages and their homes
        ("zsvec.search", "import torch"),
        ("zsvec.search", "def late():\n    import torch.nn.functional as f"),
        ("zsvec.doctor", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("zsvec.doctor", "import_module('torch')"),
        ("zsvec.images", "from torchvision.transforms import v2"),
        ("zsvec.config", "import timm"),
        ("zsvec.builder", "from sentence_transformers import SentenceTransformer"),
        ("zsvec.evaluation.report", "import transformers"),
        ("zsvec.encoders_of_mine", "import torch"),
        ("zsvec.store", "import qdrant_client"),
        ("zsvec.store.base", "from qdrant_client import models"),
        ("zsvec.store.edge", "from qdrant_client import models"),
        ("zsvec.store.server", "import qdrant_edge"),
        ("zsvec.store.store", "import qdrant_edge"),
        ("zsvec.cli", "import openai"),
        ("zsvec.encoders.clip", "from openai import OpenAI"),
        ("zsvec.fusion", "from sklearn.metrics import roc_auc_score"),
        ("zsvec.aggregate", "import PIL.Image"),
        ("zsvec.calibration", "import sklearn"),
    ],
)
def test_the_rule_sees(module: str, source: str) -> None:
    (found,) = violations(source, module, is_package=module in ("zsvec", "zsvec.store", "zsvec.evaluation"))
    assert found.startswith(f"{module} -> ")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zsvec.types", "import json, numpy"),
        ("zsvec.config", "from zsvec.types import Modality\nfrom zsvec import errors\nfrom . import types"),
        ("zsvec.fusion", "import numpy as np\nfrom numpy.typing import NDArray\nimport math"),
        ("zsvec.fusion", "from scipy.special import softmax"),
        (
            "zsvec.store",
            "from zsvec.store.base import Hit\nimport_module('zsvec.store.edge')\nfrom .server import connect",
        ),
        ("zsvec.store.edge", "from . import base\nimport qdrant_edge as qe\nfrom zsvec.config import Settings"),
        ("zsvec.store.server", "from qdrant_client.http import exceptions"),
        ("zsvec.encoders.clip", "import torch, timm, transformers\nfrom sentence_transformers import util"),
        ("zsvec.encoders", "import torch"),
        ("zsvec.generation.client", "from openai import OpenAI"),
        ("zsvec.search", "from zsvec.store import Store\nfrom zsvec.aggregate import Similarities"),
        ("zsvec.classifier", "from zsvec.search import Searcher\nfrom zsvec.builder import Builder"),
        ("zsvec", "from zsvec.classifier import Classifier\nfrom . import errors"),
        ("zsvec.cli", "import zsvec\nfrom zsvec import __version__, open\nfrom zsvec import demo, doctor"),
        ("zsvec.cli.show", "from zsvec.cli.parse import parse\nfrom ..evaluation import metrics"),
        ("zsvec.testing", "from zsvec.encoders.base import BatchEncoder\nfrom zsvec.types import Fingerprint"),
        ("zsvec.doctor", "import_module(name)\nfind_spec('torch')\nversion('torch')"),
    ],
)
def test_the_rule_allows(module: str, source: str) -> None:
    assert violations(source, module, is_package=module in ("zsvec", "zsvec.store", "zsvec.encoders")) == []


# ---- what an import costs


def loaded_after(statements: str) -> tuple[str, list[str]]:
    """Run statements in a new interpreter: what they print, and which heavy packages they leave loaded."""
    code = f"import sys\n{statements}\nprint('loaded:', *sorted(sys.modules.keys() & set({HEAVY!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    printed, _, loaded = done.stdout.rpartition("loaded:")
    return printed, loaded.split()


def test_a_loaded_package_is_noticed() -> None:
    assert loaded_after("import types\nsys.modules['torch'] = types") == ("", ["torch"])
    assert loaded_after("import zsvec.store.edge") == ("", ["qdrant_edge"])


def test_importing_zsvec_loads_nothing_heavy() -> None:
    assert loaded_after("import zsvec") == ("", [])


def test_what_decides_and_searches_loads_nothing_heavy() -> None:
    assert loaded_after("import zsvec.search, zsvec.fusion, zsvec.config, zsvec.images") == ("", [])


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
