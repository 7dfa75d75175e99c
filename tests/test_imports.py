"""The import rule of zsvec: a module imports only from a lower level, and heavy packages have one home each."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator, Sequence
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "zsvec"

# The floors of the house, lowest first. A module imports only from lower floors, and in a chain from what stands before
# it; without exceptions. `zsvec` is zsvec/__init__.py.
FLOORS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("errors",), ("types",)),
    (
        ("streams",),
        (
            "inputs.files",
            "inputs.answers",
            "inputs.deadline",
            "inputs.sockets",
            "inputs.memory",
            "inputs.headers",
            "inputs.decoding",
            "inputs.digests",
            "inputs.regions",
            "inputs.images",
            "inputs.small",
            "inputs.categories",
            "inputs.folders",
            "inputs.tables",
            "inputs.coco",
            "inputs.changes",
            "inputs.watch",
            "inputs.video",
            "inputs",
        ),
    ),
    (("encoders",), ("store",), ("method",)),
    (("settings",), ("search",)),
    (("ingest",),),
    (("generation",), ("curation",)),
    (("classifier", "zsvec"),),
    (("evaluation",), ("service",)),
    (("cli", "__main__"),),
)
PLACE = {
    name: (floor, chain, position)
    for floor, chains in enumerate(FLOORS)
    for chain, names in enumerate(chains)
    for position, name in enumerate(names)
}
# Public doubles for the tests of users: nothing of zsvec needs them, and they need only what an encoder is.
TESTING_IMPORTS = {"zsvec.encoders.base"}

HOMES = {
    "torch": ("zsvec.encoders.torch", "zsvec.search.torch_index"),
    "torchvision": ("zsvec.encoders.torch",),
    "timm": ("zsvec.encoders.torch",),
    "sentence_transformers": ("zsvec.encoders.torch",),
    "transformers": ("zsvec.encoders.torch",),
    "onnxruntime": ("zsvec.encoders.onnx",),
    "tokenizers": ("zsvec.encoders.onnx",),
    "qdrant_client": ("zsvec.store.backends.server",),
    "qdrant_edge": ("zsvec.store.backends.edge",),
    "openai": ("zsvec.generation",),
    "av": ("zsvec.inputs.video",),
    "fastapi": ("zsvec.service",),
    "starlette": ("zsvec.service",),
    "uvicorn": ("zsvec.service.server",),
    "prometheus_client": ("zsvec.service",),
}
PURE = {"method"}
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


def module_name(path: Path) -> str:
    parts = ("zsvec", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PACKAGES = {
    "zsvec",
    "zsvec.classifier",
    "zsvec.encoders",
    "zsvec.evaluation",
    "zsvec.search",
    "zsvec.service",
    "zsvec.store",
}
FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def part(module: str) -> str:
    """The name in `FLOORS`: ``zsvec.store.store`` is of ``store``, and the modules of ``inputs`` have their own."""
    _, _, name = module.partition(".")
    if not name:
        return module
    names = name.split(".")
    return ".".join(names[:2]) if names[0] == "inputs" and len(names) > 1 else names[0]


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
    if there not in {*PLACE, "testing", *map(part, FILES)}:  # no module, but a name of the package itself
        there = part(name.rpartition(".")[0])
    if here == there:
        return True
    if here == "testing":
        return there == "types" or any(name == allowed or name.startswith(f"{allowed}.") for allowed in TESTING_IMPORTS)
    if here not in PLACE or there not in PLACE:
        return False
    (floor, chain, position), (their_floor, their_chain, their_position) = PLACE[here], PLACE[there]
    return their_floor < floor or ((their_floor, their_chain) == (floor, chain) and their_position < position)


# ---- the rule


def test_every_module_has_its_place() -> None:
    parts = {part(module) for module in FILES}
    assert parts - PLACE.keys() == {"testing"}
    assert PLACE.keys() - parts == set()


def test_no_two_modules_import_each_other() -> None:
    graph = {
        module: {
            found
            for name in imports(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py")
            for found in (name, name.rpartition(".")[0])
            if found in FILES and found != module
        }
        for module, path in FILES.items()
    }
    packages = {module for module, path in FILES.items() if path.name == "__init__.py"}
    for module, found in graph.items():  # `from package import module` needs the package, but not what it exports
        found -= {package for package in packages if module.startswith(f"{package}.")}
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("module", FILES)
def test_imports_go_downwards(module: str) -> None:
    path = FILES[module]
    assert violations(path.read_text(encoding="utf-8"), module, is_package=path.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zsvec.types", "import zsvec.errors"),  # the same floor
        ("zsvec.errors", "from zsvec import types"),
        ("zsvec.errors", "from . import types"),
        ("zsvec.errors", "from .config import Settings"),
        ("zsvec.errors", "import zsvec"),
        ("zsvec.store", "from zsvec.settings.settings import Settings"),
        ("zsvec.store", "def late():\n    from zsvec.settings.settings import Settings"),
        ("zsvec.store", "if TYPE_CHECKING:\n    from zsvec.settings.settings import Settings"),
        ("zsvec.store", "class A:\n    try:\n        import zsvec.search as s\n    except ImportError: ..."),
        ("zsvec.settings.settings", "import_module('zsvec.search.searcher')"),
        ("zsvec.settings.settings", "importlib.import_module('zsvec.ingest.ingestion')"),
        ("zsvec.settings.settings", "import_module(f'zsvec.search.{kind}')"),
        ("zsvec.settings.settings", "import_module('..search')"),
        ("zsvec.settings.settings", "__import__('zsvec.search')"),
        ("zsvec.encoders.torch.clip", "from zsvec.store import Store"),
        ("zsvec.encoders.torch.clip", "from ...store import Store"),
        ("zsvec.encoders.torch.clip", "from zsvec.method.similarities import References"),
        ("zsvec.store", "import zsvec.encoders.base"),
        ("zsvec.store.store", "from zsvec.method.calibration import Calibration"),
        ("zsvec.method.predict.scoring", "from zsvec.search.base import IndexSpec"),
        ("zsvec.method.calibrate.fit", "from zsvec.store import Store"),
        ("zsvec.inputs.images", "from zsvec.inputs.categories import CategoryInput"),
        ("zsvec.inputs.folders", "from zsvec.inputs.watch import Watch"),
        ("zsvec.inputs.folders", "from zsvec.inputs import watch"),
        ("zsvec.inputs.categories", "from zsvec.streams.stream import prefetch"),
        ("zsvec.search.searcher", "from zsvec.ingest.embedding import Embedder"),
        ("zsvec.search.searcher", "from zsvec.settings.settings import Settings"),
        ("zsvec.search.searcher", "from zsvec.ingest.ingestion import Builder"),
        ("zsvec.ingest.recalibration", "from zsvec.generation.facet import Generation"),
        ("zsvec.generation.facet", "from zsvec.classifier import Classifier"),
        ("zsvec.curation.audit", "from zsvec.classifier import Classifier"),
        ("zsvec.curation.audit", "from zsvec.generation.facet import Generation"),
        ("zsvec.classifier", "from zsvec import __version__"),
        ("zsvec.streams.stream", "from zsvec.evaluation import metrics"),
        ("zsvec.streams.flow", "from zsvec.inputs.images import content_hash"),
        ("zsvec.evaluation", "from zsvec.cli import main"),
        ("zsvec", "from zsvec.cli import main"),
        ("zsvec.ingest.ingestion", "from zsvec.testing import HashEncoder"),
        ("zsvec.cli", "import zsvec.testing"),
        ("zsvec.testing", "from zsvec.encoders.torch.clip import ClipEncoder"),
        ("zsvec.testing", "from zsvec.encoders import load_encoder"),
        ("zsvec.testing", "from zsvec.store.backends.base import Hit"),
        ("zsvec.testing", "from zsvec.search.searcher import Searcher"),
        ("zsvec.cli", "from zsvec.not_placed import x"),
        ("zsvec.not_placed", "from zsvec.errors import ZSVecError"),
        # packages and their homes
        ("zsvec.search", "import torch"),
        ("zsvec.search.numpy_index", "import torch"),
        ("zsvec.ingest.embedding", "def late():\n    import torch.nn.functional as f"),
        ("zsvec.cli.doctor", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("zsvec.cli.doctor", "import_module('torch')"),
        ("zsvec.inputs.images", "from torchvision.transforms import v2"),
        ("zsvec.settings.settings", "import timm"),
        ("zsvec.ingest.ingestion", "from sentence_transformers import SentenceTransformer"),
        ("zsvec.evaluation.report", "import transformers"),
        ("zsvec.encoders_of_mine", "import torch"),
        ("zsvec.store", "import qdrant_client"),
        ("zsvec.store.backends.base", "from qdrant_client import models"),
        ("zsvec.store.backends.edge.backend", "from qdrant_client import models"),
        ("zsvec.store.backends.server", "import qdrant_edge"),
        ("zsvec.store.store", "import qdrant_edge"),
        ("zsvec.cli", "import openai"),
        ("zsvec.encoders.torch.clip", "from openai import OpenAI"),
        ("zsvec.method.predict.fusion", "from sklearn.metrics import roc_auc_score"),
        ("zsvec.method.predict.aggregation", "import PIL.Image"),
        ("zsvec.method.calibrate.fit", "import sklearn"),
    ],
)
def test_the_rule_sees(module: str, source: str) -> None:
    (found,) = violations(
        source, module, is_package=module in ("zsvec", "zsvec.store", "zsvec.evaluation", "zsvec.search")
    )
    assert found.startswith(f"{module} -> ")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("zsvec.types", "import json, numpy"),
        (
            "zsvec.settings.settings",
            "from zsvec.types import Modality\nfrom zsvec import errors\nfrom . import types, profiles",
        ),
        (
            "zsvec.settings.settings",
            "from zsvec.method.predict.fusion import STRATEGIES\nfrom zsvec.settings.profiles import PROFILES",
        ),
        ("zsvec.method.predict.fusion", "import numpy as np\nfrom numpy.typing import NDArray\nimport math"),
        ("zsvec.method.calibrate.fit", "from scipy.special import softmax\nfrom zsvec.method.predict import fusion"),
        (
            "zsvec.store",
            "from zsvec.store.backends.base import Hit\nimport_module('zsvec.store.writing')\nfrom .store import Store",
        ),
        (
            "zsvec.store.backends.edge.backend",
            "from . import shard\nimport qdrant_edge as qe\nfrom zsvec.types import Category",
        ),
        ("zsvec.store.backends.server", "from qdrant_client.http import exceptions"),
        ("zsvec.encoders.torch.clip", "import torch, timm, transformers\nfrom sentence_transformers import util"),
        ("zsvec.encoders.torch", "import torch"),
        ("zsvec.search.torch_index", "import torch\nfrom zsvec.encoders import device"),
        ("zsvec.inputs.folders", "from zsvec.inputs.images import x\nfrom zsvec.inputs import categories"),
        ("zsvec.generation.client", "from openai import OpenAI"),
        ("zsvec.search", "from zsvec.store import Store\nfrom zsvec.method.similarities import SearchResult"),
        ("zsvec.classifier", "from zsvec.search.searcher import Searcher\nfrom zsvec.ingest.ingestion import Builder"),
        ("zsvec", "from zsvec.classifier import Classifier\nfrom . import errors"),
        ("zsvec.cli", "import zsvec\nfrom zsvec import __version__, open\nfrom zsvec.cli import demo, doctor"),
        ("zsvec.cli.show", "from zsvec.cli.parse import parse\nfrom ..evaluation import metrics"),
        ("zsvec.testing", "from zsvec.encoders.base import BatchEncoder\nfrom zsvec.types import Fingerprint"),
        ("zsvec.cli.doctor", "import_module(name)\nfind_spec('torch')\nversion('torch')"),
    ],
)
def test_the_rule_allows(module: str, source: str) -> None:
    assert (
        violations(source, module, is_package=module in ("zsvec", "zsvec.store", "zsvec.encoders", "zsvec.search"))
        == []
    )


# ---- what an import costs


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


def test_what_decides_and_searches_loads_nothing_heavy() -> None:
    assert loaded_after(
        "import zsvec.search.searcher, zsvec.method.predict.scoring, zsvec.settings.settings, zsvec.inputs.images"
    ) == (
        "",
        [],
    )


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
    assert clf.store.calibration() is not None
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
    assert loaded_after("import zsvec.evaluation, zsvec.cli.evaluate", ("torch", "sklearn", "matplotlib")) == ("", [])


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
