"""Where settings come from: arguments, environment and files, by the names of this version and the one before."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, InitSettingsSource, TomlConfigSettingsSource

from zsvec.errors import InvalidInputError
from zsvec.trust import read_if_trusted

# Variables with the prefix of the settings that are none, and who reads them.
OTHER_VARIABLES = {
    "ZSVEC_ALLOW_REQUESTS": "zsvec.generation.access",
    "ZSVEC_DATA": "tests that need the research data",
    "ZSVEC_QDRANT_GRPC_PORT": "docker/docker-compose.yml",
    "ZSVEC_QDRANT_PORT": "docker/docker-compose.yml",
    "ZSVEC_SERVE_KEYS": "zsvec.service.keys",
    "ZSVEC_SERVE_PORT": "docker/docker-compose.yml",
    "ZSVEC_TEST_QDRANT_URL": "tests that need a server",
}

# Names of earlier versions: they work, with a warning, until the next.
_RENAMED = {
    "search": "index",
    "mirror_budget": "index_budget",
    "mirror_device": "index_device",
    "mirror_dtype": "index_dtype",
    "false_alarms": "false_unknown_rate",
}
_RENAMED_VALUES = {("index", "mirror"): "memory", ("fusion", "max"): "max_confidence"}


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A question to append to an error; empty if no name is near."""
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _by_present_names(values: dict[str, Any]) -> dict[str, Any]:
    """What one source says, by the present names; a present name beside its former one wins."""
    for former, name in _RENAMED.items():
        if former in values:
            warnings.warn(f"the setting {former!r} is called {name!r} now", FutureWarning, stacklevel=1)
            value = values.pop(former)
            values.setdefault(name, value)
    for (name, former), value in _RENAMED_VALUES.items():
        if values.get(name) == former:
            message = f"{former!r} is called {value!r} now, as a value of {name!r}"
            warnings.warn(message, FutureWarning, stacklevel=1)
            values[name] = value
    return values


class Arguments(InitSettingsSource):
    """What a caller gives."""

    def __call__(self) -> dict[str, Any]:
        """What it says, by the present names."""
        return _by_present_names(super().__call__())


class Environment(EnvSettingsSource):
    """The variables of the environment."""

    def __call__(self) -> dict[str, Any]:
        """What it says, by the present names."""
        self._warn_of_unknown()
        variables = {former: self.env_vars.get(f"{self.env_prefix}{former}".lower()) for former in _RENAMED}
        given = {former: value for former, value in variables.items() if value is not None}
        return _by_present_names({**super().__call__(), **given})

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        """The value of a variable; InvalidInputError for one that must be JSON and is none."""
        try:
            return super().prepare_field_value(field_name, field, value, value_is_complex)
        except ValueError as exc:
            variable = f"{self.env_prefix}{field_name}".lower()
            given = [name.upper() for name in self.env_vars if name == variable or name.startswith(f"{variable}__")]
            raise InvalidInputError(
                f"{' or '.join(sorted(given))} in the environment is a table and must be JSON, "
                f'such as {{"a": 1}}: {exc}'
            ) from exc

    def _warn_of_unknown(self) -> None:
        """Name the variables with our prefix that nothing reads. No error: other programs may read them."""
        settings = [f"{self.env_prefix}{name.upper()}" for name in (*self.settings_cls.model_fields, *_RENAMED)]
        for variable in sorted(map(str.upper, self.env_vars)):
            ours = variable.startswith(self.env_prefix) and variable not in OTHER_VARIABLES
            if ours and variable.partition(self.env_nested_delimiter or "__")[0] not in settings:
                message = f"the variable {variable} is no setting and has no effect{did_you_mean(variable, settings)}"
                warnings.warn(message, UserWarning, stacklevel=1)


class File(TomlConfigSettingsSource):
    """A file of the user."""

    def __call__(self) -> dict[str, Any]:
        """What it says, by the present names."""
        return _by_present_names(super().__call__())


class LocalFile(File):
    """The file of the working directory, which anybody may have put there.

    Args:
        settings_cls: The settings.
        file: Where it is, if it is there.
        marks: Folder of what the user trusts.
    """

    def __init__(self, settings_cls: type[BaseSettings], file: Path, marks: Path) -> None:
        self._marks = marks
        super().__init__(settings_cls, file)

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        return read_if_trusted(Path(str(file_path)), self._marks)
