#!/usr/bin/env python
"""Write what of the documentation is made from the code: the commands, the settings, the description of the API.

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
from zsvec.method.predict.aggregation import AGGREGATIONS
from zsvec.method.predict.fusion import STRATEGIES
from zsvec.service import create_app
from zsvec.settings.profiles import Profile
from zsvec.settings.settings import GenerationSettings, ModelPrice, Settings
from zsvec.settings.trust import HARMLESS
from zsvec.testing import HashEncoder

FOLDER = Path(__file__).parents[1] / "zsvec" / "docs"
_CHOICES: Mapping[str, Iterable[str]] = {"aggregation": AGGREGATIONS, "fusion": STRATEGIES}
_NAMES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    SecretStr: "text, kept secret",
    Path: "path",
}
_BOUNDS = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}


# Commands


def commands_page() -> str:
    """Every command with its help."""
    group = cast("TyperGroup", typer.main.get_command(app))
    parts = [
        "# Commands",
        "This page has every command with its help, as `zsvec COMMAND --help` prints it. It is made by "
        "`scripts/write_pages.py`.",
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
    """Every command by its name, those of a group behind the name of the group."""
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
    return name if parameter.required else f"[{name}]"


def _options(command: Any) -> str:
    context = typer.Context(command)
    rows = [row for parameter in command.params for row in _option(parameter, context)]
    return _table(("option", ""), rows) if rows else ""


def _option(parameter: Any, context: Any) -> Iterator[tuple[str, str]]:
    if getattr(parameter, "hidden", False):
        return
    if parameter.param_type_name == "argument":
        yield f"`{_argument(parameter)}`", parameter.help or ""
        return
    flags = " / ".join([*parameter.opts, *parameter.secondary_opts])
    number = isinstance(parameter.default, int | float) and not parameter.is_flag
    taken = parameter.metavar or ("N" if number else "TEXT" if parameter.multiple else _choices(parameter, context))
    default = f"  [default: {parameter.default}]" if number else ""
    yield f"`{flags}{'' if parameter.is_flag else f' {taken}'}`", (parameter.help or "") + default


def _choices(parameter: Any, context: Any) -> str:
    """The names that an option takes, out of ``--suite <paper>`` or, as other versions of typer say, ``[paper]``."""
    return re.sub(r"[<>\[\]]", "", parameter.get_help_record(context)[0].split()[-1]).lower()


# Settings


_ORDER = (
    "A setting is an argument of `zsvec.open`, a variable of the environment, or a line of a TOML file. Arguments come "
    "first, then the environment, then `zsvec.toml` in the working directory, then `config.toml` in the user's "
    "configuration folder (of the application `zsvec`). Mappings are JSON in the environment. A "
    "variable that begins with `ZSVEC_` and that nothing reads is named in a warning.\n\n"
    "Names are spelled as in the tables below, in lower case; only variables of the environment ignore letter case.\n\n"
    "A clone or an archive may bring its own `zsvec.toml` into the working directory. Until you trust that "
    f"file, it may set only {', '.join(f'`{name}`' for name in sorted(HARMLESS))}, a `profile` by name, and a "
    "`store` in a folder below the file, without a colon in its path. Any other setting in it is an error. Look at the "
    "file, then run `zsvec trust` in its folder. A file that you change or move needs your trust again; `zsvec trust "
    "--revoke` withdraws the trust."
)


def settings_page() -> str:
    """Every setting with its kind, default, variable and meaning."""
    return (
        "\n\n".join(
            [
                "# Settings",
                "This page has every setting with its default, its variable and its meaning. It is made by "
                "`scripts/write_pages.py`.",
                _ORDER,
                _fields(Settings, lambda name: f"`ZSVEC_{name.upper()}`"),
                "## Generation",
                "The fields of `generation`, in TOML under `[generation]`.",
                _fields(GenerationSettings, lambda name: f"`ZSVEC_GENERATION__{name.upper()}`"),
                "## Prices",
                'The fields of a price, in TOML under `[generation.prices."MODEL"]`, in US dollars.',
                _fields(ModelPrice),
                "## Profiles",
                "The fields of a profile, in TOML under `[profiles.NAME]`.",
                _fields(Profile, descriptions={"encoders": "Encoders by name, `[profiles.NAME.encoders.ENCODER]`."}),
                "## Encoders",
                "The fields of an encoder of a profile.",
                _fields(EncoderSpec),
            ]
        )
        + "\n"
    )


def _fields(
    model: type[BaseModel],
    variable: Callable[[str], str] | None = None,
    *,
    descriptions: Mapping[str, str] | None = None,
) -> str:
    described = descriptions or _attributes(model.__doc__ or "")
    rows = []
    for name, field in model.model_fields.items():
        row = [f"`{name}`", _kind(name, field), _default(field), described[name]]
        rows.append([*row[:3], variable(name), row[3]] if variable else row)
    headers = ("setting", "kind", "default", "variable", "") if variable else ("field", "kind", "default", "")
    return _table(headers, rows)


def _attributes(docstring: str) -> dict[str, str]:
    """The descriptions below ``Attributes:`` of a docstring in Google style."""
    section = inspect.cleandoc(docstring).partition("Attributes:")[2]  # Python 3.13 has taken the indent away
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
    if field.default_factory is not None:
        return ""
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, bool):
        return f"`{str(field.default).lower()}`"
    if isinstance(field.default, tuple):
        return ", ".join(f"`{value}`" for value in field.default)
    if isinstance(field.default, Mapping):
        return ", ".join(f"`{key} = {value}`" for key, value in field.default.items())
    return "" if field.default is None else f"`{field.default}`"


# The API


def description() -> str:
    """The description of the API of `zsvec serve` (OpenAPI), as JSON."""
    with zsvec.open(":memory:", encoders=[HashEncoder()]) as classifier:
        return json.dumps(create_app(classifier).openapi(), indent=2, ensure_ascii=False) + "\n"


# Markdown


def _table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    headers = list(headers)
    lines = [headers, ["---"] * len(headers), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


PAGES: Mapping[str, Callable[[], str]] = {"commands": commands_page, "settings": settings_page}

if __name__ == "__main__":
    for topic, page in PAGES.items():
        (FOLDER / f"{topic}.md").write_text(page(), encoding="utf-8")
    (FOLDER / "openapi.json").write_text(description(), encoding="utf-8")
