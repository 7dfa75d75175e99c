"""All settings, checked where they enter, and their sources.

Order of precedence: arguments, then the environment (``ZSVEC_STORE``, ``ZSVEC_PROFILE`` …), then ``zsvec.toml`` in the
working directory, as far as the user trusts that file, then ``config.toml`` in the user's configuration folder.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from zsvec.encoders.spec import LARGEST_BATCH, Device, Dtype, EncoderSpec, RuntimeName, Temperature
from zsvec.errors import InvalidInputError, ZSVecError, shown, without_password
from zsvec.inputs.memory import DEFAULT as DEFAULT_IMAGE_MEMORY
from zsvec.method import DEFAULT_STRATEGY
from zsvec.settings.profiles import PROFILES, Profile, encoders_of, other_profile
from zsvec.settings.trust import is_private, read_settings, require_trust
from zsvec.store import FIRST_CONTACT, Placement, Store, open_store
from zsvec.types import Keep, KeepImages

if TYPE_CHECKING:
    from zsvec.inputs.images import ImageLimits
    from zsvec.method.predict.scoring import Scoring

IndexKind = Literal["auto", "memory", "qdrant"]
IndexDtype = Literal["float32", "float16"]


# Variables with the prefix of the settings that are no settings, and their readers.
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


class _Environment(EnvSettingsSource):
    """The variables of the environment, in any letter case."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, case_sensitive=False)

    def __call__(self) -> dict[str, Any]:
        """Returns the settings of the variables, and warns of unread ones. Other programs may share the prefix."""
        settings = [f"{self.env_prefix}{name.upper()}" for name in self.settings_cls.model_fields]
        for variable in sorted(map(str.upper, self.env_vars)):
            ours = variable.startswith(self.env_prefix) and variable not in OTHER_VARIABLES
            if ours and variable.partition(self.env_nested_delimiter or "__")[0] not in settings:
                message = f"the variable {variable} is no setting and has no effect{did_you_mean(variable, settings)}"
                warnings.warn(message, UserWarning, stacklevel=1)
        return super().__call__()

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        """Returns the value of a variable; raises InvalidInputError for a table that is not JSON."""
        try:
            return super().prepare_field_value(field_name, field, value, value_is_complex)
        except ValueError as exc:
            variable = f"{self.env_prefix}{field_name}".lower()
            given = [name.upper() for name in self.env_vars if name == variable or name.startswith(f"{variable}__")]
            raise InvalidInputError(
                f"{' or '.join(sorted(given))} in the environment is a table and must be JSON, "
                f'such as {{"a": 1}}: {exc}'
            ) from exc


class _File(TomlConfigSettingsSource):
    """A settings file.

    Args:
        settings_cls: The settings.
        file: Path of the file, if there is one.
        marks: Folder of the user's marks of trust, for the untrusted file of the working directory.
    """

    def __init__(self, settings_cls: type[BaseSettings], file: Path, marks: Path | None = None) -> None:
        self._names = settings_cls.model_fields.keys()
        self._marks = marks
        super().__init__(settings_cls, file)

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        file = Path(str(file_path))
        content, values = read_settings(file)
        if self._marks is not None:
            for name in values:  # before trust: a misspelled name is no reason to trust a file
                if name not in self._names:
                    raise InvalidInputError(f"{file.absolute()}: {_no_setting(name, self._names)}")
            require_trust(file, content, values, self._marks)
        return values


def _no_setting(name: str, names: Iterable[str]) -> str:
    return f"there is no setting {name!r}{did_you_mean(name, names)}"


def _working_folder() -> Path:
    try:
        return Path().absolute()
    except OSError:  # the folder was deleted
        return Path()


def _one_of(table: str) -> AfterValidator:
    def check(name: str) -> str:
        if name not in (known := resolve_name(f"zsvec.method.predict.{table}")):
            raise ValueError(f"must be one of {', '.join(known)}")
        return name

    return AfterValidator(check)


class ModelPrice(BaseModel):
    """Prices of a generative model, in US dollars.

    Attributes:
        input: A million input tokens.
        output: A million output tokens, those of images included.
        image: One image, if the model is billed by the image.
        image_tokens: Tokens of an image of 1024 × 1024 by quality, for estimates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: NonNegativeFloat = 0.0
    output: NonNegativeFloat = 0.0
    image: NonNegativeFloat | None = None
    image_tokens: Mapping[str, PositiveInt] = Field(default_factory=dict)


class _Masked(BaseModel):
    """Settings without passwords of URLs in their representation."""

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, without_password(value) if isinstance(value, str) else value


class GenerationSettings(_Masked):
    """Models that describe categories and draw references; the key comes from ``OPENAI_API_KEY`` alone.

    Attributes:
        base_url: URL of a service with OpenAI's interface; by default ``OPENAI_BASE_URL``, or OpenAI.
        allow_http: Send the key to other machines in clear text (``http://``), on a private network.
        language_model: Model that describes categories, with structured outputs.
        image_model: Model that draws.
        image_size: Width and height in pixels; encoders see some 224.
        image_quality: Quality by the image model's names; ``None`` leaves it to the service.
        concurrency: Concurrent requests.
        timeout: Seconds for a whole answer.
        deadline: Seconds after which a failing request is not tried again.
        prices: Prices by model, instead of `zsvec.generation.prices.PRICES`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str | None = Field(default=None, pattern=r"^https?://")
    allow_http: bool = False
    language_model: str = Field(default="gpt-6-luna", min_length=1)
    image_model: str = Field(default="gpt-image-2.6-flare", min_length=1)
    image_size: str = Field(default="1024x1024", min_length=1)
    image_quality: str | None = "low"
    concurrency: PositiveInt = Field(default=8, le=256)
    timeout: float = Field(default=180.0, gt=0, le=3600)
    deadline: float = Field(default=600.0, gt=0, le=86_400)
    prices: Mapping[str, ModelPrice] = Field(default_factory=dict)


class Settings(_Masked, BaseSettings):
    """Settings of a classifier and its store.

    Attributes:
        store: Folder of an embedded store, or URL of a Qdrant server; several URLs of one deployment with commas.
        namespace: Prefix of the store's collections.
        api_key: Key of the server.
        allow_http: Send the key to other machines in clear text (``http://``), on a private network.
        ca_certificate: PEM file of the authorities to trust, for REST and gRPC; by default ``SSL_CERT_FILE``.
        timeout: Deadline of a server operation in seconds; if set, also of the first contact (otherwise 5 s).
        max_staleness: Seconds to go on answering from references in memory while a server is away.
        replicas: Replicas of new collections; by default the server decides.
        shards: Shards of new collections of references; by default the server decides.
        write_consistency: Replicas that must confirm a write; by default the server decides.
        keep_images: Whether to keep small copies of reference images; by default as the store (new: `small`).
        added_by: Author to record with references and changes.
        history: Undo window in seconds; 0 disables undo.
        keep: Images of streams to keep in the inbox.
        inbox_size: Maximum number of images in the inbox, and of dismissed images.
        inbox_days: Days until an image of the inbox expires.
        profile: Name of a profile, or folder of exported encoders as a path with a ``/``.
        profiles: More profiles, by name.
        device: Device of the encoders.
        dtype: Number format of the encoders; `auto` takes the faster one.
        runtime: `auto` takes exported encoders (`zsvec encoders export`) on a CPU if they are as fast as torch.
        compile: Compile image models with torch.compile; the first start takes a minute more.
        batch_size: Images in a batch of an encoder.
        max_wait_ms: Milliseconds that a batch waits for images that other threads or clients are sending now; an image
            alone never waits.
        index: `memory` holds references in this process or on its GPU, `qdrant` queries the database; `auto` decides
            by their number.
        index_budget: Maximum number of references that `auto` holds in memory.
        index_device: Device of references in memory; `auto` follows the encoders.
        index_dtype: Number format of references on a GPU; `float16` halves the memory, and the 64 nearest
            are compared again in float32.
        index_cache: Cache 20,000 references or more on disk, for the next process.
        neighbors: References that a Qdrant query returns for an image.
        aggregation: How similarities of references become the score of a category.
        top_m: References that `top_mean` averages.
        fusion: Fusion strategy: one of the paper (section 3.3), or a log-linear pool.
        weights: Weight of each expert for `fixed` fusion, 1 by default.
        temperatures: Temperature by expert, such as ``clip:text``; calibrated log-linear fusion ignores them.
        calibration: `auto` uses the store's calibration and renews it while that is cheap; `off` uses the temperatures
            of the profile, as the paper does.
        false_unknown_rate: Images of known categories that may be called unknown; by default the present rate, or 0.05.
        unknown_above: Novelty above which an image is unknown, 0.5 by default; no effect without a calibration.
        unknown_per_category: Use a separate threshold for each category with enough references (19, at 5 %).
        max_pixels: Largest image in pixels, 100 million by default; a JPEG counts as decoded.
        image_memory: Bytes for decoding, over all threads; larger images are refused, others wait.
        generation: Settings of `zsvec generate`.
    """

    _made_in: Path = PrivateAttr(default_factory=_working_folder)

    model_config = SettingsConfigDict(
        env_prefix="ZSVEC_",
        env_nested_delimiter="__",
        case_sensitive=True,  # one spelling of each setting, in files and arguments
        extra="forbid",
        frozen=True,
        validate_default=True,
        hide_input_in_errors=True,  # a traceback shows the error of pydantic, too
    )
    toml_files: ClassVar[tuple[Path, Path]] = (
        Path(platformdirs.user_config_dir("zsvec")) / "config.toml",
        Path("zsvec.toml"),
    )

    store: str = Field(default="./zsvec-store", min_length=1)
    namespace: str = Field(default="zsvec", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
    api_key: SecretStr | None = None
    allow_http: bool = False
    ca_certificate: Path | None = None
    timeout: float = Field(default=60.0, gt=0, le=86_400)
    max_staleness: float = Field(default=0.0, ge=0, le=86_400)
    replicas: PositiveInt | None = None
    shards: PositiveInt | None = None
    write_consistency: PositiveInt | None = None
    keep_images: KeepImages | None = None
    added_by: str | None = Field(default=None, max_length=500, pattern=r"^\P{C}+$")
    history: float = Field(default=86_400.0, ge=0, le=366 * 86_400)
    keep: Keep = "none"
    inbox_size: PositiveInt = Field(default=1000, le=100_000)
    inbox_days: float = Field(default=30.0, gt=0, le=36_500)
    profile: str = "base"
    profiles: Mapping[str, Profile] = Field(default_factory=dict)
    device: Device = "auto"
    dtype: Dtype = "auto"
    runtime: RuntimeName = "auto"
    compile: bool = False
    batch_size: PositiveInt = Field(default=32, le=LARGEST_BATCH)
    max_wait_ms: float = Field(default=20.0, ge=0, le=1000)
    index: IndexKind = "auto"
    index_budget: PositiveInt = 200_000
    index_device: Device = "auto"
    index_dtype: IndexDtype = "float32"
    index_cache: bool = True
    neighbors: PositiveInt = Field(default=256, le=100_000)
    aggregation: Annotated[str, _one_of("reference_aggregation:AGGREGATIONS")] = Field(default="top_mean", validate_default=False)
    top_m: PositiveInt = Field(default=5, le=100_000)
    fusion: Annotated[str, _one_of("fusion:STRATEGIES")] = Field(default=DEFAULT_STRATEGY, validate_default=False)
    weights: Mapping[str, Annotated[float, Field(gt=0, le=1e9)]] = Field(default_factory=dict)
    temperatures: Mapping[str, Temperature] = Field(default_factory=dict)
    calibration: Literal["auto", "off"] = "auto"
    false_unknown_rate: float | None = Field(default=None, gt=0, lt=1)
    unknown_above: float | None = Field(default=None, ge=0, le=1)
    unknown_per_category: bool = False
    max_pixels: PositiveInt | None = None
    image_memory: PositiveInt = DEFAULT_IMAGE_MEMORY
    generation: GenerationSettings = Field(default_factory=GenerationSettings)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Returns arguments, environment and TOML files; the first one wins."""
        users, local = cls.toml_files
        trusted = _File(settings_cls, local, cls.marks())
        return init_settings, _Environment(settings_cls), trusted, _File(settings_cls, users)

    @classmethod
    def marks(cls) -> Path:
        """Returns the folder of the user's marks of trust."""
        return cls.toml_files[0].parent / "trusted"

    def open_store(self) -> Store:
        """Opens the store; raises as `zsvec.store.open_store`, and InvalidInputError for a key in clear text."""
        if self.api_key and "://" in self.store and not self.allow_http:
            for url in self.store.split(","):
                if not is_private(url.strip()):
                    raise InvalidInputError(
                        f"others on the way to {url.strip()!r} could read the key: use https://, or set allow_http "
                        "(ZSVEC_ALLOW_HTTP=true) where the network is private"
                    )
        key = self.api_key.get_secret_value() if self.api_key else None
        return open_store(
            self.store,
            namespace=self.namespace,
            api_key=key,
            within=self._made_in,
            ca_certificate=self.ca_certificate and self._made_in / self.ca_certificate,
            timeout=self.timeout,
            first_contact=self.timeout if "timeout" in self.model_fields_set else FIRST_CONTACT,
            placement=Placement(self.replicas, self.shards, self.write_consistency),
            history=self.history,
            by=self.added_by,
            profile_of=lambda stored: other_profile(stored, {**PROFILES, **self.profiles}, self.profile),
        )

    def image_limits(self) -> ImageLimits:
        """Returns the limits of an image, as arguments of `load_image`."""
        return {"max_pixels": self.max_pixels, "image_memory": self.image_memory}

    def encoder_specs(self) -> Mapping[str, EncoderSpec]:
        """Returns the encoders of the chosen profile, by name; raises as `zsvec.settings.profiles.encoders_of`."""
        return encoders_of(self.profile, {**PROFILES, **self.profiles}, self._made_in)

    def scoring(self, temperatures: Mapping[str, float]) -> Scoring:
        """Returns the scoring of these settings, with the temperatures of the profile by expert."""
        # Slow to import, and not needed to list the categories of a store.
        from zsvec.method.predict.scoring import Scoring

        return Scoring(
            temperatures=temperatures,
            fixed_temperatures=self.temperatures,
            aggregation=self.aggregation,
            top_m=self.top_m,
            fusion=self.fusion,
            weights=self.weights,
            calibrated=self.calibration == "auto",
            unknown_above=self.unknown_above,
            unknown_per_category=self.unknown_per_category,
        )

    def check_experts(self, experts: Collection[str]) -> None:
        """Checks that weights and temperatures name existing experts; raises InvalidInputError otherwise."""
        if not experts:
            raise InvalidInputError("there are no encoders: give at least one")
        for setting, table in {"weights": self.weights, "temperatures": self.temperatures}.items():
            for expert in table:
                if expert not in experts:
                    raise InvalidInputError(f"{setting}: there is no expert {expert!r}; there are {', '.join(experts)}")


def load_settings(**arguments: Any) -> Settings:
    """Returns settings from arguments, environment and TOML files.

    Args:
        **arguments: Fields of `Settings`; `None` means not given.

    Raises:
        InvalidInputError: A value is of the wrong kind or out of range, or no setting has this name.
        WeightsUnavailableError: As `zsvec.settings.profiles.encoders_of`.
    """
    try:
        settings = Settings(**{name: value for name, value in arguments.items() if value is not None})
    except ValidationError as exc:
        raise InvalidInputError(f"settings cannot be used: {'; '.join(map(_problem, exc.errors()))}") from exc
    except (ValueError, OSError) as exc:  # a file that is no TOML
        files = [str(file) for file in Settings.toml_files if os.path.isfile(file)]  # noqa: PTH113 - is_file may raise
        raise InvalidInputError(
            f"settings cannot be used: {exc}; correct {' or '.join([*files, 'the environment'])}"
        ) from exc
    settings.encoder_specs()
    return settings


def _problem(error: ErrorDetails) -> str:
    """Returns the message for one error of pydantic, with the name of the setting and without any key."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        table = name.rpartition(".")[0]
        tables: Mapping[str, type[BaseModel]] = {"": Settings, "generation": GenerationSettings}
        known = tables[table].model_fields if table in tables else ()
        return _no_setting(name, [f"{table}.{field}".lstrip(".") for field in known])
    given = error["input"]
    plain = isinstance(given, int | float) or (isinstance(given, str) and "@" not in given)  # name:password@host
    hidden = "api_key" in error["loc"] or error["type"] == "model_type" or not plain
    value = "" if hidden else f" (got {shown(given)})"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}{value}"


def info(store: Store, settings: Settings) -> dict[str, Any]:
    """Returns the object that ``zsvec info --json`` prints; the store may have other encoders than the settings."""
    from zsvec.encoders.runtimes import measured  # not needed for settings

    found = store.info()
    try:
        rates: object = measured(settings.encoder_specs())
    except ZSVecError as exc:  # the contents do not need the encoders of the profile
        rates = str(exc)
    return {**found, "measured": rates} if rates else found  # exported encoders have onnxruntime alone
