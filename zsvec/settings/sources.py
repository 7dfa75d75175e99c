"""Where settings come from: the environment and files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, TomlConfigSettingsSource

from zsvec.errors import InvalidInputError
from zsvec.settings.trust import read_settings, require_trust

# Variables with the prefix of the settings that are none, and who reads them.
OTHER_VARIABLES = {
    "ZSVEC_ALLOW_REQUESTS": "zsvec.generation.access",
    "ZSVEC_DATA": "tests that need the research data",
    "ZSVEC_QDRANT_GRPC_PORT": "docker/docker-compose.yml",
    "ZSVEC_QDRANT_MEMORY": "docker/docker-compose.yml",
    "ZSVEC_QDRANT_PORT": "docker/docker-compose.yml",
    "ZSVEC_SERVE_KEYS": "zsvec.service.auth.keys",
    "ZSVEC_SERVE_MEMORY": "docker/docker-compose.yml",
    "ZSVEC_SERVE_PORT": "docker/docker-compose.yml",
    "ZSVEC_TEST_QDRANT_URL": "tests that need a server",
}


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns a question to append to an error; empty if no name is near. Letter case does not count."""
    spelled = {known.lower(): known for known in names}
    near = get_close_matches(name.lower(), spelled, n=1)
    return f"; did you mean {spelled[near[0]]!r}?" if near else ""


def no_setting(name: str, names: Iterable[str]) -> str:
    """Returns the message for a setting that does not exist."""
    return f"there is no setting {name!r}{did_you_mean(name, names)}"


class Environment(EnvSettingsSource):
    """The variables of the environment. Their letter case does not count."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, case_sensitive=False)

    def __call__(self) -> dict[str, Any]:
        """Returns the settings of the variables."""
        self._warn_of_unknown()
        return super().__call__()

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
        settings = [f"{self.env_prefix}{name.upper()}" for name in self.settings_cls.model_fields]
        for variable in sorted(map(str.upper, self.env_vars)):
            ours = variable.startswith(self.env_prefix) and variable not in OTHER_VARIABLES
            if ours and variable.partition(self.env_nested_delimiter or "__")[0] not in settings:
                message = f"the variable {variable} is no setting and has no effect{did_you_mean(variable, settings)}"
                warnings.warn(message, UserWarning, stacklevel=1)


class File(TomlConfigSettingsSource):
    """A settings file of the user."""

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        return read_settings(Path(str(file_path)))[1]


class LocalFile(File):
    """The settings file of the working directory, which anybody may have put there.

    Args:
        settings_cls: The settings.
        file: Path of the file, if there is one.
        marks: Folder of the user's marks of trust.
    """

    def __init__(self, settings_cls: type[BaseSettings], file: Path, marks: Path) -> None:
        self._names = settings_cls.model_fields.keys()
        self._marks = marks
        super().__init__(settings_cls, file)

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        file = Path(str(file_path))
        content, values = read_settings(file)
        for name in values:  # before trust: a misspelled name is no reason to trust a file
            if name not in self._names:
                raise InvalidInputError(f"{file.absolute()}: {no_setting(name, self._names)}")
        require_trust(file, content, values, self._marks)
        return values
