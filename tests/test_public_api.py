"""The public interface: names, signatures, errors, version. (ruff checks that every public name has a docstring.)"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

import pytest

import zsvec
from zsvec import errors
from zsvec.testing import HashEncoder

ROOT = Path(__file__).parents[1]


FUNCTIONS = {"checked_name", "content_hash", "load_image", "read_categories", "sync"}


def test_the_names_of_the_package() -> None:
    assert zsvec.__all__ == sorted(zsvec.__all__)
    assert {"copy", "open", "reembed"}.isdisjoint(zsvec.__all__)  # a star import keeps the module and the builtin
    named = {origin.rpartition(".")[2] for origin in named_in_signatures()}
    assert {
        "Audit",
        "Change",
        "ImageInput",
        "Keep",
        "LogLinear",
        "Plan",
        "Region",
        "SmallImage",
        "StreamStats",
        "TrackPrediction",
        "Tracker",
    } <= named
    errors_of_zsvec = {error.__name__ for error in ERRORS}
    others = {"Classifier", "BatchEncoder", "Copied", "Reembedded", "SettingsArguments", "__version__"}
    assert set(zsvec.__all__) == named | errors_of_zsvec | FUNCTIONS | others


def test_each_name_of_the_package_is_one_of_a_module() -> None:
    for name in zsvec.__all__:
        assert getattr(zsvec, name) is not None
    for origin in named_in_signatures():
        module, _, name = origin.rpartition(".")
        assert getattr(zsvec, name) is getattr(importlib.import_module(module), name)


@cache
def named_in_signatures() -> frozenset[str]:
    """Classes and aliases of zsvec, by module, that public signatures and fields name, starting at the classifier."""
    found = {"zsvec.classifier.facade.Classifier", "zsvec.encoders.base.BatchEncoder"}
    waiting = sorted(found)
    while waiting:
        module, _, name = waiting.pop().rpartition(".")
        for annotation in signatures(definitions(module)[name]):
            for node in ast.walk(annotation):
                origin = made_in(module, node.id) if isinstance(node, ast.Name) else None
                if origin and origin not in found:
                    found.add(origin)
                    waiting.append(origin)
    return frozenset(found)


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(Path(importlib.import_module(module).__file__ or "").read_text(encoding="utf-8"))


@cache
def definitions(module: str) -> dict[str, ast.ClassDef | ast.expr]:
    """Classes and aliases of a module; without type variables, and arrays of numpy."""
    made: dict[str, ast.ClassDef | ast.expr] = {}
    for node in tree_of(module).body:
        if isinstance(node, ast.ClassDef):
            made[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            made |= {ast.unparse(target): node.value for target in targets}
    return {name: node for name, node in made.items() if not ast.unparse(node).startswith(("TypeVar(", "NDArray["))}


def made_in(module: str, name: str) -> str | None:
    """Defining module and name of a name in a module of zsvec; ``None`` for a private one."""
    if name in definitions(module):
        return None if name.startswith("_") else f"{module}.{name}"
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zsvec."):
            for alias in node.names:
                if alias.name == name:
                    return made_in(str(node.module), name)
    return None


def signatures(made: ast.ClassDef | ast.expr) -> Iterator[ast.expr]:
    """Annotations of public methods and fields of a class (of settings, of fields alone); or an alias itself."""
    if isinstance(made, ast.expr):
        yield made
        return
    for member in made.body:
        if isinstance(member, ast.AnnAssign) and not ast.unparse(member.target).startswith("_"):
            yield member.annotation
        elif isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and made.name != "Settings":
            arguments = member.args.posonlyargs + member.args.args + member.args.kwonlyargs
            if not member.name.startswith("_") or member.name in ("__enter__", "__getitem__", "__iter__"):
                yield from filter(None, [member.returns, *(argument.annotation for argument in arguments)])


def test_all_other_names_of_the_package_are_underscored() -> None:
    code = """import zsvec
print(*(name for name in vars(zsvec) if not name.startswith("_")))
before = set(globals())
from zsvec import *
print(*(set(globals()) - before - {"before"}))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    names, starred = (set(line.split()) for line in done.stdout.splitlines())
    modules = {"annotations", "errors", "notebook", "types"}  # of `from __future__`, and imported on first access
    assert names - modules - {"TYPE_CHECKING", "copy", "open"} <= set(zsvec.__all__)
    assert starred == set(zsvec.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Trunk'"):
        _ = zsvec.Trunk  # type: ignore[attr-defined]


def test_dir_lists_the_documented_names_and_nothing_else() -> None:
    code = """import zsvec
print(*dir(zsvec))
zsvec.Classifier, zsvec.errors, zsvec.method
print(*dir(zsvec))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    before, after = (set(line.split()) for line in done.stdout.splitlines())
    assert before == after
    modules = {"__doc__", "__file__", "__name__", "__path__", "__spec__"}
    assert modules | {"__all__", "__version__"} <= before
    named = {name for name in before if not name.startswith("__")}
    assert named == {*zsvec.__all__, "copy", "open", "reembed"} - {"__version__"}


def test_errors_are_found_after_the_import_of_the_package_alone() -> None:
    code = (
        "import zsvec\nprint(zsvec.errors.ImageError is zsvec.ImageError, zsvec.types.Prediction is zsvec.Prediction)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "True True\n"


def modules() -> Iterator[str]:
    yield "zsvec"
    for module in pkgutil.walk_packages(zsvec.__path__, "zsvec."):
        if not any(part.startswith("_") for part in module.name.split(".")):
            yield module.name


def test_every_error_is_public() -> None:
    for module in modules():
        for name, value in vars(importlib.import_module(module)).items():
            if inspect.isclass(value) and issubclass(value, zsvec.ZSVecError) and not name.startswith("_"):
                assert value.__module__ == "zsvec.errors", f"{module}.{name}"


def parameters(function: Any) -> list[str]:
    """Parameters as in a call: ``*`` before keyword-only ones, ``=`` after those with a default."""
    prefixes: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    named: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in named:
            named.append("*")
        named.append(
            prefixes.get(parameter.kind, "") + parameter.name + ("" if parameter.default is parameter.empty else "=")
        )
    return named[1:] if named[:1] == ["self"] else named


def test_methods_of_a_classifier() -> None:
    from zsvec.classifier import Classifier

    methods = {
        name: parameters(member)
        for name, member in vars(Classifier).items()
        if callable(member) and not name.startswith("_")
    }
    assert parameters(zsvec.open) == ["store=", "*", "encoders=", "**settings"]
    options = ["target_namespace=", "target_api_key=", "replace=", "on_commit=", "track="]
    assert parameters(zsvec.copy) == ["source", "target", "*", *options, "**settings"]
    options = ["target_namespace=", "on_commit=", "track="]
    assert parameters(zsvec.sync) == ["source", "folder", "*", *options, "**settings"]
    assert methods == {
        "add_category": ["name", "*", "texts=", "images=", "vectors=", "sources=", "metadata=", "parent=", "replace="],
        "add_categories": ["categories", "*", "replace=", "on_error=", "on_commit=", "on_withdrawn=", "on_shared="],
        "remove_category": ["name"],
        "attach": ["collection", "*", "label", "expert", "vector=", "where=", "source=", "refresh="],
        "copy_collection": ["collection", "*", "label", "expert", "vector=", "where=", "source="],
        "detach": ["collection", "*", "expert="],
        "attached": [],
        "create": [],
        "expecting": ["name", "versions"],
        "categories": [],
        "category": ["name"],
        "show": ["found", "image="],
        "similar": ["content_hash", "*", "number="],
        "image": ["content_hash"],
        "image_map": [],
        "thumbnail": ["image"],
        "keep": ["image"],
        "correct": ["image", "name"],
        "classify": ["images", "*", "top_k=", "errors=", "keep="],
        "aclassify": ["images", "*", "top_k=", "errors=", "keep="],
        "classify_regions": ["image", "boxes", "*", "margin=", "top_k=", "errors=", "keep="],
        "aclassify_regions": ["image", "boxes", "*", "margin=", "top_k=", "errors=", "keep="],
        "classify_together": ["images", "*", "batch_size=", "top_k=", "errors=", "keep="],
        "aclassify_together": ["images", "*", "batch_size=", "top_k=", "errors=", "keep="],
        "tracker": ["*", "error_rate=", "margin=", "keep=", "max_tracks=", "max_age="],
        "classify_stream": ["images", "*", "batch_size=", "max_wait_ms=", "top_k=", "errors=", "keep="],
        "aclassify_stream": ["images", "*", "batch_size=", "max_wait_ms=", "top_k=", "errors=", "keep="],
        "embed_stream": ["images", "*", "batch_size="],
        "classify_vectors": ["vectors", "*", "top_k="],
        "calibrate": ["*", "false_unknown_rate=", "labelled="],
        "info": [],
        "ping": [],
        "within": ["seconds"],
        "sync": ["source", "**settings"],
        "close": [],
    }
    properties = {name for name, member in vars(Classifier).items() if isinstance(member, property | cached_property)}
    properties = {name for name in properties if not name.startswith("_")}
    assert properties == {
        "archive",
        "encoders",
        "generation",
        "history",
        "inbox",
        "index",
        "labels",
        "location",
        "references",
        "revision",
        "stats",
    }
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier:
        attributes = {name for name in vars(classifier) if not name.startswith("_")}
    assert attributes == {"settings"}


def test_the_keywords_of_open_are_the_settings() -> None:
    hints = get_type_hints(zsvec.SettingsArguments)
    own = {"store", "encoders"}  # parameters with other types
    settings = {name: field.annotation for name, field in zsvec.Settings.model_fields.items() if name not in own}
    assert list(hints) == list(settings)
    for name, hint in hints.items():
        assert NoneType in get_args(hint)
        choices = [set(get_args(one)) - {NoneType} for one in (settings[name], *get_args(settings[name]))]
        for one in get_args(hint):
            if get_origin(one) is Literal:
                assert set(get_args(one)) in choices


# ---- errors


ERRORS = [value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__]


def test_every_error_is_of_one_tree() -> None:
    assert all(issubclass(error, zsvec.ZSVecError) for error in ERRORS)
    builtin = {base for error in ERRORS for base in error.__mro__} - set(ERRORS)
    assert builtin == {Exception, BaseException, object}  # none is caught as a builtin by accident


def test_the_tree_is_as_it_is_drawn() -> None:
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"((?:[│ ]   |[├└]── )*)([A-Za-z]+Error)\b", line)
        if found:
            depth = len(found[1]) // 4
            parents[depth:] = [found[2]]
            drawn[found[2]] = parents[depth - 1] if depth else "Exception"
    assert drawn == {error.__name__: cast("type", error.__base__).__name__ for error in ERRORS}


# ---- version


def test_one_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?(\.dev\d+)?", zsvec.__version__)
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in pyproject
    assert 'path = "zsvec/__init__.py"' in pyproject


def test_the_changelog_has_a_section_for_this_version_or_for_unreleased_changes() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d{2}-\d{2}))?$", changelog, re.MULTILINE)
    assert headings
    assert headings[0][0] in ("Unreleased", zsvec.__version__)
    assert len(headings) == len(re.findall(r"^## ", changelog, re.MULTILINE))
    assert all(date for name, date in headings if name != "Unreleased")
