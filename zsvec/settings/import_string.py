"""Encoders in Python, which settings name by an import string such as ``mymodule:encoders``.

An import string names code that runs with the rights of the user. A module without a folder is imported from the Python
path. A module in the working directory is imported only if the user or a trusted settings file names this folder, since
the working directory may come from a stranger (`located`). The folder is never on the Python path, so that no other
file of the folder, such as ``numpy.py``, replaces a library.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import find_spec, module_from_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

from zsvec.errors import EncoderError, InvalidInputError, ZSVecError, shown

_NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_IMPORT_STRING = re.compile(rf"(?:(?P<folder>.*)[/{re.escape(os.sep)}])?(?P<module>{_NAME}):(?P<object>{_NAME})", re.S)
_importing = threading.RLock()


def checked_import_string(text: str) -> str:
    """Returns an import string. Imports nothing.

    Raises:
        ValueError: The text is not ``MODULE:OBJECT``, with or without a folder in front.
    """
    _parts(text)
    return text


def located(text: str) -> str:
    """Returns an import string with the working directory in front, if the Python path has no module of this name.

    Call this function only for an import string that the user typed in this directory, or that a trusted file of this
    directory contains. Imports nothing. Other text, and an import string with a folder, is returned unchanged.
    """
    parts = _IMPORT_STRING.fullmatch(text)
    if parts is None or parts["folder"] is not None or _origin(_top(parts["module"])) is not None:
        return text
    return f".{os.sep}{text}"


def import_encoders(text: str, within: Path) -> list[Any]:
    """Imports the object of an import string, and returns the encoders.

    Args:
        text: An import string, as of `checked_import_string`. The object is an encoder, an iterable of encoders, or a
            callable without arguments that returns either.
        within: Base folder of a relative path.

    Raises:
        InvalidInputError: The module or the object does not exist, or the object is of another kind.
        EncoderError: The module, or the callable, raises an error.
    """
    try:
        found = _imported(text, within)
        if isinstance(found, type) or (callable(found) and not _is_encoder(found)):
            found = found()
        encoders = [found] if _is_encoder(found) else list(found) if isinstance(found, Iterable) else [None]
        usable = all(map(_is_encoder, encoders))
    except ZSVecError:
        raise
    except (Exception, SystemExit) as exc:  # of the user's code
        last = traceback.extract_tb(exc.__traceback__)[-1]
        place = "" if last.filename == __file__ else f" ({last.filename}, line {last.lineno})"
        raise EncoderError(f"{text} cannot be used: {type(exc).__name__}: {exc}{place}. Correct the module") from exc
    if not usable:
        raise InvalidInputError(
            f"{text} must be an encoder, an iterable of encoders, or a callable without arguments that returns either, "
            f"got {shown(found)}. Name another object"
        )
    return encoders


def _parts(text: str) -> re.Match[str]:
    parts = _IMPORT_STRING.fullmatch(text)
    if parts is None or parts["module"].endswith(".py"):
        raise ValueError("must be MODULE:OBJECT, such as mymodule:encoders")
    return parts


def _imported(text: str, within: Path) -> Any:
    """Returns the object of an import string."""
    folder, name, attribute = _parts(text).group("folder", "module", "object")
    try:
        with _importing:
            if folder is not None:
                _import_from(within / Path(folder or os.sep).expanduser(), _top(name))
            module = import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{name}.".startswith(f"{exc.name}."):
            raise  # the module imports another one that is missing
        where = "on the Python path" if folder is None else f"in {shown(folder)}"
        raise InvalidInputError(
            f"{text}: there is no module {exc.name!r} {where}. Install it, set PYTHONPATH, or put the folder of the "
            f"module in front, such as ./{name}:{attribute}"
        ) from exc
    try:
        return attrgetter(attribute)(module)
    except AttributeError as exc:
        raise InvalidInputError(
            f"{name} ({getattr(module, '__file__', None)}) has no {attribute!r}. Name an encoder, an iterable of "
            "encoders, or a callable that returns either"
        ) from exc


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_encoder(value: object) -> bool:
    """Returns whether a value is an encoder. A class of encoders may have the same attributes, and is none."""
    return hasattr(value, "fingerprint") and not isinstance(value, type)


def _import_from(folder: Path, top: str) -> None:
    """Imports a module or a package from a folder. `sys.path` stays the same."""
    spec = PathFinder.find_spec(top, [str(folder)])
    if spec is None:
        raise InvalidInputError(f"there is no module {top!r} in {folder}. Give the folder of {top}.py, or of a package")
    place = spec.origin or str(folder / top)
    other = _origin(top)
    if other is not None and Path(other).resolve() == Path(place).resolve():  # imported, or on the Python path as well
        return
    if other is not None:
        raise InvalidInputError(
            f"{place} has the name of another module ({other}). Rename it, so that neither replaces the other"
        )
    module = sys.modules[top] = module_from_spec(spec)
    try:
        if spec.loader is not None:  # a package without __init__.py has no loader
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[top]
        raise


def _origin(top: str) -> str | None:
    """Returns where a module comes from that is imported or on the Python path; ``None`` if there is no such module."""
    try:
        spec = find_spec(top)
    except ValueError:  # imported without a spec, such as `__main__`
        return repr(sys.modules[top])
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), top)
