"""Words that the code does not use, because they say nothing or because the field has others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("zsvec", "scripts", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def variables(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that are bound: variables, arguments, attributes and fields, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.keyword) and node.arg:
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_variable_is_called_of(path: Path) -> None:
    assert [line for name, line in variables(ast.parse(path.read_text(encoding="utf-8"))) if name == "of"] == []


@pytest.mark.parametrize(
    "source", ["of = 1", "def f(of): ...", "f(of=1)", "[of for of in x]", "self.of = 1", "of: int"]
)
def test_such_a_variable_is_seen(source: str) -> None:
    assert "of" in [name for name, _ in variables(ast.parse(source))]


FORMER = (
    "trunk",
    "mirror",
    "slope",
    "false_alarm",
    "false alarm",
)  # design: backbone, index, coefficient, false-unknown
# The names in stored calibrations, and the mirrors that public data sets are fetched from.
EXCEPT = {"zsvec/method/calibration.py", "zsvec/evaluation/datasets.py"}


@pytest.mark.parametrize("path", [path for path in SOURCES if path.is_relative_to(ROOT / "zsvec")], ids=_name)
def test_former_words_are_gone(path: Path) -> None:
    if str(path.relative_to(ROOT)) in EXCEPT:
        return
    text = path.read_text(encoding="utf-8").lower()
    assert [word for word in FORMER if word in text] == []
