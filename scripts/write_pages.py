#!/usr/bin/env python
"""Writes the generated pages: commands, settings, and the OpenAPI description.

python scripts/write_pages.py
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

import typer
import typer.main
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.core import TyperGroup

import zsvec
from zsvec.cli.commands import app
from zsvec.encoders.spec import EncoderSpec
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.method.predict.reference_aggregation import AGGREGATIONS
from zsvec.service import create_app
from zsvec.service.problems import CODES
from zsvec.settings.settings import GenerationSettings, ModelPrice, Settings
from zsvec.settings.trust import HARMLESS
from zsvec.testing import HashEncoder

FOLDER = Path(__file__).parents[1] / "zsvec" / "docs"
_CHOICES: Mapping[str, Iterable[str]] = {"aggregation": AGGREGATIONS, "fusion": STRATEGIES}
_NAMES = {
    str: "text",
    int: "integer",
    float: "number",
    bool: "boolean",
    SecretStr: "text, kept secret",
    Path: "path",
}
_BOUNDS = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}


# Commands


def commands_page() -> str:
    """Returns the page that lists all commands."""
    group = cast("TyperGroup", typer.main.get_command(app))
    parts = [
        "# Commands",
        "Look up every command with its options, as `zsvec COMMAND --help` prints them.",
        "## zsvec",
        "`zsvec [OPTIONS] COMMAND …`",
        _prose(group.help),
        _options(group),
        _prose(group.epilog),
    ]
    for name, command in sorted(_commands(group), key=lambda pair: pair[0]):
        arguments = [_argument(p) for p in command.params if p.param_type_name == "argument"]
        usage = " ".join(["zsvec", name, "[OPTIONS]", *arguments])
        parts += [f"## zsvec {name}", f"`{usage}`", _prose(command.help), _options(command)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each command after its full name, such as ``inbox label``."""
    for name, command in group.commands.items():
        if getattr(command, "invoke_without_command", False):
            yield f"{prefix}{name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} ")
        else:
            yield f"{prefix}{name}", command


def _prose(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    name = name if parameter.required else f"[{name}]"
    return f"{name}..." if parameter.nargs < 0 else name


def _options(command: Any) -> str:
    context = typer.Context(command)
    return "\n".join(line for parameter in command.params for line in _option(parameter, context))


def _option(parameter: Any, context: Any) -> Iterator[str]:
    if getattr(parameter, "hidden", False):
        return
    if parameter.param_type_name == "argument":
        yield f"- `{_argument(parameter)}`: {parameter.help or ''}"
        return
    flags = " / ".join([*parameter.opts, *parameter.secondary_opts])
    number = isinstance(parameter.default, int | float) and not parameter.is_flag
    taken = parameter.metavar or ("N" if number else "TEXT" if parameter.multiple else _choices(parameter, context))
    default = f"  [default: {parameter.default}]" if number else ""
    yield f"- `{flags}{'' if parameter.is_flag else f' {taken}'}`: {parameter.help or ''}{default}"


def _choices(parameter: Any, context: Any) -> str:
    """Returns the choices of an option, which typer shows as ``<paper>`` or, in other versions, as ``[paper]``."""
    return re.sub(r"[<>\[\]]", "", parameter.get_help_record(context)[0].split()[-1]).lower()


# Settings


_ORDER = f"""\
The first of these that has a setting wins: an argument, a variable of the environment, `zsvec.toml` in the working
directory, `config.toml` in your configuration folder (of the application `zsvec`).

- The variable of `max_staleness` is `ZSVEC_MAX_STALENESS`, in any letter case; tables are JSON. A warning names unknown
  variables that begin with `ZSVEC_`.
- In TOML and Python, names are lower case.
- A `zsvec.toml` in the working directory may come with a clone. Until you run `zsvec trust`, the file may set only
  {", ".join(f"`{name}`" for name in sorted(HARMLESS))}, a `profile` by name, and a `store` in a folder below the file,
  without a colon in its path; other settings are errors. A changed or moved file needs your trust again. `zsvec trust
  --revoke` withdraws it."""


def settings_page() -> str:
    """Returns the page that lists all settings."""
    return (
        "\n\n".join(
            [
                "# Settings",
                "Look up every setting with its type, default and meaning.",
                _ORDER,
                "## All settings",
                _fields(Settings),
                "## Generation",
                "In TOML under `[generation]`; as variables `ZSVEC_GENERATION__` and the name.",
                _fields(GenerationSettings),
                "## Prices",
                'In TOML under `[generation.prices."MODEL"]`, in US dollars.',
                _fields(ModelPrice),
                "## Profiles",
                "In TOML under `[profiles.NAME.encoders.ENCODER]`, for each encoder of a profile.",
                _fields(EncoderSpec),
            ]
        )
        + "\n"
    )


def _fields(model: type[BaseModel]) -> str:
    described = _attributes(model.__doc__ or "")
    return "\n".join(
        f"- `{name}` ({_kind(name, field)}{_default(field)}): {described[name]}"
        for name, field in model.model_fields.items()
    )


def _attributes(docstring: str) -> dict[str, str]:
    """Returns the descriptions in the ``Attributes:`` section of a docstring in Google style."""
    section = inspect.cleandoc(docstring).partition("Attributes:")[2]  # Python 3.13 removes the indent
    found = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w|^\S|\Z)", section, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.replace("``", "`").split()) for name, text in found}


def _kind(name: str, field: FieldInfo) -> str:
    if name in _CHOICES:
        return _one_of(_CHOICES[name])
    bounds = _bounds(field.metadata)
    return _type(field.annotation) + (f", {bounds}" if bounds else "")


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = _bounds(arguments[1:])
        return _type(arguments[0]) + (f", {bounds}" if bounds else "")
    if origin in (Union, UnionType):
        return _type(next(kind for kind in arguments if kind is not NoneType))
    if origin is Literal:
        return _one_of(arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"table of {_type(arguments[1])}"
    if isinstance(origin, type) and issubclass(origin, tuple):
        return f"list of {_type(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {"Profile": "profiles", "ModelPrice": "prices"}.get(annotation.__name__, "table")
    return _NAMES[annotation]


def _one_of(names: Iterable[Any]) -> str:
    *others, last = (f"`{name}`" for name in names)
    return f"{', '.join(others)} or {last}" if others else last


def _bounds(metadata: Iterable[Any]) -> str:
    flat = [part for one in metadata for part in (one.metadata if isinstance(one, FieldInfo) else [one])]
    return ", ".join(
        f"{words} {getattr(one, attribute):,g}"
        for kind, (words, attribute) in _BOUNDS.items()
        for one in flat
        if isinstance(one, kind)
    )


def _default(field: FieldInfo) -> str:
    """Returns the default of a field after a comma, or ", required"; empty for ``None`` and for factories."""
    if field.default is PydanticUndefined:
        return ", required" if field.default_factory is None else ""
    if isinstance(field.default, bool):
        return f", `{str(field.default).lower()}`"
    if isinstance(field.default, tuple):
        return f", default {', '.join(f'`{value}`' for value in field.default)}"
    if isinstance(field.default, Mapping):
        return f", default {', '.join(f'`{key} = {value}`' for key, value in field.default.items())}"
    return "" if field.default is None else f", default `{field.default}`"


# The API


def description() -> str:
    """Returns the OpenAPI description of `zsvec serve` as JSON."""
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier:
        return json.dumps(create_app(classifier).openapi(), indent=2, ensure_ascii=False) + "\n"


def problems_page() -> str:
    """Returns the page that lists all problems of the API."""
    parts = [
        "# Problems",
        "Look up each `error` of the [API](service.md). Codes stay the same, unlike the words in `detail`, which are "
        "for people. The `type` of a problem is the address of its section on this page.",
        *(f"## {code}\n\n{status}. {meaning}" for code, (status, meaning) in CODES.items()),
    ]
    return "\n\n".join(parts) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "commands": commands_page,
    "settings": settings_page,
    "problems": problems_page,
}

if __name__ == "__main__":
    for topic, page in PAGES.items():
        (FOLDER / f"{topic}.md").write_text(page(), encoding="utf-8")
    (FOLDER / "openapi.json").write_text(description(), encoding="utf-8")
