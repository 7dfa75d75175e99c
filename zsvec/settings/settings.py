"""All settings with their validation, and the sources that settings come from.

Arguments take precedence over the environment (``ZSVEC_STORE``, ``ZSVEC_PROFILE`` …), the environment over
``zsvec.toml`` in the working directory, and that file over ``config.toml`` in the user's configuration folder. A
``zsvec.toml`` that the user does not trust may set harmless settings only.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from importlib.resources.abc import Traversable
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypedDict

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
    model_validator,
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
from zsvec.errors import EncoderMismatchError, InvalidInputError, ZSVecError, shown, without_password
from zsvec.inputs.memory import DEFAULT as DEFAULT_IMAGE_MEMORY
from zsvec.method import DEFAULT_STRATEGY
from zsvec.settings.import_string import checked_import_string, import_encoders, located
from zsvec.settings.profiles import PROFILES, Profile, encoders_of
from zsvec.settings.trust import is_private, read_settings, require_trust
from zsvec.store import FIRST_CONTACT, Placement, Store, open_store
from zsvec.types import Keep, KeepImages, Labels, encoder_and_modality

if TYPE_CHECKING:
    from zsvec.encoders.base import Encoder
    from zsvec.encoders.encoder_set import EncoderSet
    from zsvec.inputs.images import ImageLimits
    from zsvec.method.calibration import CascadeRule
    from zsvec.method.predict.scoring import Scoring

IndexKind = Literal["auto", "memory", "qdrant"]
IndexDtype = Literal["float32", "float16"]


# Environment variables that begin with ZSVEC_ but are not settings, and the module, file or tests that read them.
OTHER_VARIABLES = {
    "ZSVEC_ALLOW_REQUESTS": "zsvec.generation.access",
    "ZSVEC_DATA": "tests that need the research data",
    "ZSVEC_QDRANT_GRPC_PORT": "docker/docker-compose.yml",
    "ZSVEC_QDRANT_MEMORY": "docker/docker-compose.yml",
    "ZSVEC_QDRANT_PORT": "docker/docker-compose.yml",
    "ZSVEC_SERVE_KEYS": "zsvec.service.auth.keys",
    "ZSVEC_SERVE_MEMORY": "docker/docker-compose.yml",
    "ZSVEC_SERVE_PORT": "docker/docker-compose.yml",
    "ZSVEC_TARGET_API_KEY": "zsvec.curation.copying",
    "ZSVEC_TEST_QDRANT_URL": "tests that need a server",
}


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Returns a suggestion to append to an error message, or an empty string if no name is similar. Ignores case."""
    spelled = {known.lower(): known for known in names}
    near = get_close_matches(name.lower(), spelled, n=1)
    return f"; did you mean {spelled[near[0]]!r}?" if near else ""


class _Source(PydanticBaseSettingsSource):
    """A source of settings. Its `profile` and `encoders` are ignored if a source of higher precedence sets either."""

    def __call__(self) -> dict[str, Any]:
        """Returns the settings of this source."""
        found: dict[str, Any] = super().__call__()  # type: ignore[safe-super]
        chosen = _ALTERNATIVES & self.current_state.keys()
        return {name: value for name, value in found.items() if not (chosen and name in _ALTERNATIVES)}


_ALTERNATIVES = {"profile", "encoders"}  # each names all encoders


class _Environment(_Source, EnvSettingsSource):
    """Settings from environment variables, in any letter case."""

    def __init__(self, settings_cls: type[BaseSettings]) -> None:
        super().__init__(settings_cls, case_sensitive=False)

    def __call__(self) -> dict[str, Any]:
        """Returns the settings in the environment.

        An unknown variable with the prefix causes a warning and no error, since another program may use the variable.
        """
        settings = [f"{self.env_prefix}{name.upper()}" for name in self.settings_cls.model_fields]
        for variable in sorted(map(str.upper, self.env_vars)):
            ours = variable.startswith(self.env_prefix) and variable not in OTHER_VARIABLES
            if ours and variable.partition(self.env_nested_delimiter or "__")[0] not in settings:
                message = f"the variable {variable} is no setting and has no effect{did_you_mean(variable, settings)}"
                warnings.warn(message, UserWarning, stacklevel=1)
        return super().__call__()

    def prepare_field_value(self, field_name: str, field: FieldInfo, value: Any, value_is_complex: bool) -> Any:
        """Returns the value of a variable. Raises InvalidInputError if a table is not given as JSON."""
        try:
            return super().prepare_field_value(field_name, field, value, value_is_complex)
        except ValueError as exc:
            variable = f"{self.env_prefix}{field_name}".lower()
            given = [name.upper() for name in self.env_vars if name == variable or name.startswith(f"{variable}__")]
            raise InvalidInputError(
                f"{' or '.join(sorted(given))} in the environment is a table and must be JSON, "
                f'such as {{"a": 1}}: {exc}'
            ) from exc


class _File(_Source, TomlConfigSettingsSource):
    """Settings from a TOML file.

    Args:
        settings_cls: Class of the settings.
        file: Path of the file, which need not exist.
        marks: Folder of the user's marks of trust, if the file needs trust.
    """

    def __init__(self, settings_cls: type[BaseSettings], file: Path, marks: Path | None = None) -> None:
        self._names = settings_cls.model_fields.keys()
        self._marks = marks
        super().__init__(settings_cls, file)

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        file = Path(str(file_path))
        content, values = read_settings(file)
        if self._marks is not None:
            for name in values:  # checked first, since trust does not help against a misspelled name
                if name not in self._names:
                    raise InvalidInputError(f"{file.absolute()}: {_no_setting(name, self._names)}")
            require_trust(file, content, values, self._marks)
            if isinstance(encoders := values.get("encoders"), str):
                values["encoders"] = located(encoders)
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


def _checked_file(file: Path) -> Path:
    if not file.name:  # as of an empty text, which `pathlib` takes as the working directory
        raise ValueError("must be the path of a file")
    return file


class ModelPrice(BaseModel):
    """Prices of a generative model, in US dollars.

    Attributes:
        input: Price of a million input tokens.
        output: Price of a million output tokens, including the tokens of images.
        image: Price of an image, for a model that is billed per image.
        image_tokens: Number of tokens of an image of 1024 × 1024 pixels, by quality. Used for estimates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: NonNegativeFloat = 0.0
    output: NonNegativeFloat = 0.0
    image: NonNegativeFloat | None = None
    image_tokens: Mapping[str, PositiveInt] = Field(default_factory=dict)


class _Masked(BaseModel):
    """Base of settings, with a ``repr`` that hides passwords in URLs."""

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, without_password(value) if isinstance(value, str) else value


class GenerationSettings(_Masked):
    """Settings of the models that describe categories and draw images. The API key comes only from ``OPENAI_API_KEY``.

    Attributes:
        base_url: URL of a service with OpenAI's API; by default ``OPENAI_BASE_URL``, or else OpenAI.
        allow_http: Whether to send the key unencrypted (``http://``) to other machines, as on a private network.
        language_model: Model that describes categories. The model must support structured outputs.
        image_model: Model that draws images.
        image_size: Width and height of a drawn image in pixels. Most encoders scale images to about 224 pixels.
        image_quality: Quality in the terms of the image model; ``None`` takes the default of the service.
        concurrency: Maximum number of concurrent requests.
        timeout: Deadline of one request with the whole response, in seconds.
        deadline: Seconds after which a failed request is not repeated.
        prices: Prices by model, which take precedence over `zsvec.generation.prices.PRICES`.
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
        store: Folder of an embedded store, URL of a Qdrant server, or several URLs of one deployment, separated by
            commas.
        namespace: Prefix of the store's collections.
        api_key: Key of the server.
        allow_http: Whether to send the key unencrypted (``http://``) to other machines, as on a private network.
        ca_certificate: PEM file of the certificate authorities to trust, for REST and gRPC; by default
            ``SSL_CERT_FILE``.
        timeout: Deadline of a request to the server in seconds. If set, also the deadline for reaching the server,
            which is otherwise 5 seconds.
        max_staleness: Maximum age in seconds of references in memory that are used while the server is unavailable.
        replicas: Number of replicas of new collections; by default the server decides.
        shards: Number of shards of new collections of references; by default the server decides.
        write_consistency: Number of replicas that must confirm a write; by default the server decides.
        keep_images: Copies of reference images to keep, `small` or `none`. By default the choice of the store; for a
            new store, `small`.
        labels: Number of categories of an image, `one` or `many`. By default the choice of the store; for a new store,
            `one`. If set, the store is changed with the next write.
        added_by: Author to record with references and changes.
        history: Undo window in seconds; 0 disables undo.
        keep: Images of streams to keep in the inbox.
        inbox_size: Maximum number of waiting images in the inbox, and the maximum number of dismissed images.
        inbox_days: Days until an image of the inbox expires.
        profile: Name of a profile, or path of a folder of exported encoders, such as ``./encoders``. If not set, the
            profile that the store was made with; for a new store, `base`.
        profiles: Additional profiles, by name.
        encoders: Encoders in Python instead of a profile, as ``MODULE:OBJECT``: an encoder, an iterable of encoders, or
            a callable without arguments that returns either. The module is on the Python path; for `--encoders` on the
            command line and a trusted `zsvec.toml`, also in the working directory. To name another folder, put the
            folder in front: ``./models/mymodule:encoders``.
        device: Device of the encoders.
        dtype: Number format of the encoders; `auto` takes the faster format.
        runtime: Runtime of the encoders. On a CPU, `auto` takes encoders from `zsvec encoders export` if the exported
            encoders are as fast as torch.
        export_encoders: Whether commands export the encoders of the profile to your cache before they first load them
            with torch, so that later commands start in about a second: `yes`, `no`, or `ask` at a terminal.
        compile: Whether to compile image models with torch.compile. The first start takes about a minute longer.
        batch_size: Maximum number of images in a batch of an encoder.
        max_wait_ms: Maximum time in milliseconds that a batch waits for images that other threads or clients are
            sending. A single image never waits.
        index: Place where images are compared with references: `memory` is this process or a GPU, `qdrant` is the
            database, and `auto` chooses by the number of references.
        index_budget: Maximum number of references that `auto` holds in memory.
        index_device: Device of references in memory; `auto` takes the device of encoders on torch.
        index_dtype: Number format of references on a GPU. `float16` halves the memory, and the 64 nearest references of
            each image are compared again in float32.
        index_cache: Whether to cache 20,000 or more references on disk, for the next process.
        neighbors: Number of references that a Qdrant query returns per image.
        aggregation: Function that turns the similarities of references into the score of a category.
        top_m: Number of most similar references that `top_mean` averages.
        fusion: Fusion strategy. The strategies are those of the paper (section 3.3) and log-linear pools.
        weights: Weight of each expert for `fixed` fusion, 1 by default.
        temperatures: Temperature of each expert, such as ``clip:text``. Calibrated log-linear fusion ignores
            temperatures.
        calibration: Whether to use a calibration. `auto` uses the calibration of the store, and recalibrates after
            changes if recalibration is cheap; `off` uses the temperatures of the profile, as in the paper.
        false_unknown_rate: Fraction of images of known categories that may be rejected as unknown; by default the
            fraction of the present calibration, or else 0.05.
        unknown_above: Novelty above which an image is unknown, 0.5 by default. No effect without a novelty.
        cascade: Whether a fast encoder classifies images that it settles alone, so that the other encoders run only for
            the rest. `auto` learns with each calibration which images these are: about 1 % of the answers change at
            most.
        unknown_per_category: Whether each category with enough references has a separate threshold. At a
            `false_unknown_rate` of 0.05, 19 references are enough.
        label_false_positive_rate: Fraction of the images without a category that may get this category as a label,
            where an image may belong to several (`labels`). At 0.05, a category with 19 images of other categories has
            a separate threshold. 0 chooses the threshold with the largest F1 score. By default the fraction of the
            present calibration, or else 0.
        max_pixels: Maximum width × height of an image. The default is 100 million pixels, or more for a JPEG that is
            decoded at a reduced size.
        image_memory: Maximum bytes for decoding images in all threads together. An image that needs more is refused;
            other images wait for free memory.
        label_studio_token: Personal access token or legacy token for `zsvec serve --label-studio`.
        generation: Settings of `zsvec generate`.
    """

    _made_in: Path = PrivateAttr(default_factory=_working_folder)

    model_config = SettingsConfigDict(
        env_prefix="ZSVEC_",
        env_nested_delimiter="__",
        case_sensitive=True,  # files and arguments have one spelling of each setting
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
    ca_certificate: Annotated[Path, AfterValidator(_checked_file)] | None = None
    timeout: float = Field(default=60.0, gt=0, le=86_400)
    max_staleness: float = Field(default=0.0, ge=0, le=86_400)
    replicas: PositiveInt | None = None
    shards: PositiveInt | None = None
    write_consistency: PositiveInt | None = None
    keep_images: KeepImages | None = None
    labels: Labels | None = None
    added_by: str | None = Field(default=None, max_length=500, pattern=r"^\P{C}+$")
    history: float = Field(default=86_400.0, ge=0, le=366 * 86_400)
    keep: Keep = "none"
    inbox_size: PositiveInt = Field(default=1000, le=100_000)
    inbox_days: float = Field(default=30.0, gt=0, le=36_500)
    profile: str = "base"
    profiles: Mapping[str, Profile] = Field(default_factory=dict)
    encoders: Annotated[str, AfterValidator(checked_import_string)] | None = None
    device: Device = "auto"
    dtype: Dtype = "auto"
    runtime: RuntimeName = "auto"
    export_encoders: Literal["ask", "yes", "no"] = "ask"
    compile: bool = False
    batch_size: PositiveInt = Field(default=32, le=LARGEST_BATCH)
    max_wait_ms: float = Field(default=20.0, ge=0, le=1000)
    index: IndexKind = "auto"
    index_budget: PositiveInt = 200_000
    index_device: Device = "auto"
    index_dtype: IndexDtype = "float32"
    index_cache: bool = True
    neighbors: PositiveInt = Field(default=256, le=100_000)
    aggregation: Annotated[str, _one_of("reference_aggregation:AGGREGATIONS")] = Field(
        default="top_mean", validate_default=False
    )
    top_m: PositiveInt = Field(default=5, le=100_000)
    fusion: Annotated[str, _one_of("fusion:STRATEGIES")] = Field(default=DEFAULT_STRATEGY, validate_default=False)
    weights: Mapping[str, Annotated[float, Field(gt=0, le=1e9)]] = Field(default_factory=dict)
    temperatures: Mapping[str, Temperature] = Field(default_factory=dict)
    calibration: Literal["auto", "off"] = "auto"
    false_unknown_rate: float | None = Field(default=None, gt=0, lt=1)
    unknown_above: float | None = Field(default=None, ge=0, le=1)
    unknown_per_category: bool = False
    cascade: Literal["auto", "off"] = "off"
    label_false_positive_rate: float | None = Field(default=None, ge=0, lt=1)
    max_pixels: PositiveInt | None = None
    image_memory: PositiveInt = DEFAULT_IMAGE_MEMORY
    label_studio_token: SecretStr | None = None
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
        """Returns the sources of settings, in order of precedence."""
        users, local = cls.toml_files
        trusted = _File(settings_cls, local, cls.marks())
        return init_settings, _Environment(settings_cls), trusted, _File(settings_cls, users)

    @model_validator(mode="after")
    def _check_alternatives(self) -> Settings:
        if self.model_fields_set >= _ALTERNATIVES:
            raise InvalidInputError(
                f"profile and encoders exclude each other, got {shown(self.profile)} and {shown(self.encoders_name)}. "
                "Leave one of the two out"
            )
        return self

    @classmethod
    def marks(cls) -> Path:
        """Returns the folder of the user's marks of trust."""
        return cls.toml_files[0].parent / "trusted"

    def open_store(self) -> Store:
        """Opens the store.

        Raises the errors of `zsvec.store.open_store`, and InvalidInputError if the key would be sent unencrypted
        without `allow_http`.
        """
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
        )

    def image_limits(self) -> ImageLimits:
        """Returns the limits on an image as arguments of `load_image`."""
        return {"max_pixels": self.max_pixels, "image_memory": self.image_memory}

    def known_profiles(self) -> Mapping[str, Profile]:
        """Returns the profiles of zsvec and of these settings, by name."""
        return {**PROFILES, **self.profiles}

    def encoder_specs(self) -> Mapping[str, EncoderSpec]:
        """Returns the encoders of the chosen profile, by name. See `zsvec.settings.profiles.encoders_of` for errors."""
        return encoders_of(self.profile, self.known_profiles(), self._made_in)

    def import_encoders(self) -> list[Encoder]:
        """Imports the encoders that `encoders` names. See `zsvec.settings.import_string.import_encoders` for errors."""
        if self.encoders is None:
            raise InvalidInputError("the setting encoders is missing. Set it to MODULE:OBJECT")
        return import_encoders(self.encoders, self._made_in)

    @property
    def encoders_name(self) -> str:
        """The name of the encoders for messages and reports: the profile, or the import string."""
        return self.encoders or self.profile

    @property
    def has_encoders(self) -> bool:
        """Whether a profile or encoders are set."""
        return self.encoders is not None or "profile" in self.model_fields_set

    def with_profile_of(self, store: Store) -> Settings:
        """Returns these settings with the profile that the store was made with, unless a profile or encoders are set.

        The name in the store is untrusted, so it only chooses among `known_profiles`.

        Raises:
            EncoderMismatchError: No known profile has the name in the store.
            StoreError: The store cannot be read.
        """
        name = None if self.has_encoders else store.profile()
        if name is None:
            return self
        if name not in self.known_profiles():
            raise EncoderMismatchError(
                f"{store.location} was made with the profile {name!r}, which your settings do not define: define it "
                "under [profiles], or choose the profile, or the folder, of the same encoders"
            )
        return self.model_copy(update={"profile": name})

    def of_store(self) -> Settings:
        """Returns `with_profile_of` the store of these settings, opened only if neither a profile nor encoders are set.

        Raises the errors of `open_store` and `with_profile_of`.
        """
        if self.has_encoders:
            return self
        with self.open_store() as store:
            return self.with_profile_of(store)

    def scoring(self, temperatures: Mapping[str, float]) -> Scoring:
        """Returns the scoring that these settings describe.

        Args:
            temperatures: Temperatures of the profile, by expert.
        """
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

    def no_cascade(
        self, rules: Mapping[str, CascadeRule], calibration: str, *, exact: bool, several: bool, one_model: bool
    ) -> str:
        """Returns why no encoder settles images alone, although `cascade` is ``auto``; empty if one may.

        Args:
            rules: Rule of each encoder that settles images, of the calibration of the store.
            calibration: State of this calibration: ``none``, ``stale`` or ``current``.
            exact: Whether every image is compared with every reference.
            several: Whether an image may belong to several categories.
            one_model: Whether all encoders share one image model.
        """
        from zsvec.method.predict.cascade import CASCADED, fractions  # slow to import, as in `scoring`
        from zsvec.method.predict.fusion import strategy_to_run

        runs = strategy_to_run(self.fusion, exact=exact)
        obstacles = {
            "calibration is off": self.calibration == "off",
            f"the fusion {self.fusion} weighs each image anew": self.fusion not in CASCADED,
            "unknown_above is set": self.unknown_above is not None,
            "unknown_per_category is set": self.unknown_per_category,
            "an image may belong to several categories": several,
            "there is one image model": one_model,
            "the store is not calibrated: run `zsvec calibrate`": calibration == "none",
            "the calibration is stale: run `zsvec calibrate`": calibration == "stale",
            "no limit is learned: calibrate with 99 scenes or more, and references of each expert for each category": (
                not rules
            ),
            f"the limits are learned for another fusion than {runs}": not fractions(rules, self.fusion, exact=exact),
        }
        return next((obstacle for obstacle, applies in obstacles.items() if applies), "")

    def check_experts(self, experts: Collection[str]) -> None:
        """Raises InvalidInputError if there are no experts, or if weights or temperatures name an unknown expert."""
        if not experts:
            raise InvalidInputError("there are no encoders: give at least one")
        for setting, table in {"weights": self.weights, "temperatures": self.temperatures}.items():
            for expert in table:
                if expert not in experts:
                    raise InvalidInputError(f"{setting}: there is no expert {expert!r}; there are {', '.join(experts)}")


class SettingsArguments(TypedDict, total=False):
    """The fields of `Settings`, except `store` and `encoders`, as keyword arguments of `zsvec.open`.

    ``None`` counts as missing. Type checkers and editors read this class; `Settings` checks the values.
    """

    namespace: str | None
    api_key: str | SecretStr | None
    allow_http: bool | None
    ca_certificate: str | os.PathLike[str] | None
    timeout: float | None
    max_staleness: float | None
    replicas: int | None
    shards: int | None
    write_consistency: int | None
    keep_images: KeepImages | None
    labels: Labels | None
    added_by: str | None
    history: float | None
    keep: Keep | None
    inbox_size: int | None
    inbox_days: float | None
    profile: str | None
    profiles: Mapping[str, Profile | Mapping[str, Any]] | None
    device: Device | None
    dtype: Dtype | None
    runtime: RuntimeName | None
    export_encoders: Literal["ask", "yes", "no"] | None
    compile: bool | None
    batch_size: int | None
    max_wait_ms: float | None
    index: IndexKind | None
    index_budget: int | None
    index_device: Device | None
    index_dtype: IndexDtype | None
    index_cache: bool | None
    neighbors: int | None
    aggregation: str | None
    top_m: int | None
    fusion: str | None
    weights: Mapping[str, float] | None
    temperatures: Mapping[str, float] | None
    calibration: Literal["auto", "off"] | None
    false_unknown_rate: float | None
    unknown_above: float | None
    unknown_per_category: bool | None
    cascade: Literal["auto", "off"] | None
    label_false_positive_rate: float | None
    max_pixels: int | None
    image_memory: int | None
    label_studio_token: str | SecretStr | None
    generation: GenerationSettings | Mapping[str, Any] | None


def load_settings(**arguments: Any) -> Settings:
    """Returns settings from arguments, environment and TOML files.

    Args:
        **arguments: Fields of `Settings`. An argument of `None` counts as missing.

    Raises:
        InvalidInputError: A value has the wrong type or is out of range, a setting is unknown, or a settings file
            cannot be read or needs trust.
    """
    try:
        return Settings(**{name: value for name, value in arguments.items() if value is not None})
    except ValidationError as exc:
        raise InvalidInputError(f"settings cannot be used: {'; '.join(map(_problem, exc.errors()))}") from exc
    except (ValueError, OSError) as exc:  # a settings file is unreadable or not valid TOML
        files = [str(file) for file in Settings.toml_files if os.path.isfile(file)]  # noqa: PTH113 - is_file may raise
        raise InvalidInputError(
            f"settings cannot be used: {exc}; correct {' or '.join([*files, 'the environment'])}"
        ) from exc


def _problem(error: ErrorDetails) -> str:
    """Returns the message for one error of pydantic, with the name of the setting and without secret values."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        table = name.rpartition(".")[0]
        tables: Mapping[str, type[BaseModel]] = {"": Settings, "generation": GenerationSettings}
        known = tables[table].model_fields if table in tables else ()
        return _no_setting(name, [f"{table}.{field}".lstrip(".") for field in known])
    given = error["input"]
    plain = isinstance(given, int | float) or (isinstance(given, str) and "@" not in given)  # name:password@host
    hidden = (
        not {"api_key", "label_studio_token"}.isdisjoint(error["loc"]) or error["type"] == "model_type" or not plain
    )
    value = "" if hidden else f" (got {shown(given)})"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}{value}"


def info(store: Store, settings: Settings, encoders: EncoderSet | None = None) -> dict[str, Any]:
    """Returns the object that ``zsvec info --json`` prints. `measured` is about the encoders of the profile.

    Args:
        store: The store.
        settings: Settings of the caller.
        encoders: The encoders, if they are loaded.
    """
    from zsvec.encoders.runtimes import measured  # not needed for settings

    found = store.info()
    counts = found["references"].values()
    in_qdrant = settings.index == "qdrant" or (settings.index == "auto" and sum(counts) > settings.index_budget)
    # A query of Qdrant that may return more references than there are compares all of them.
    exact = not in_qdrant or all(count < settings.neighbors for count in counts)
    calibration = None
    if in_qdrant or settings.cascade == "auto":
        from zsvec.method.calibration import Calibration

        calibration = Calibration.from_dict(store.calibration())
    if in_qdrant:
        from zsvec.method.predict.fusion import strategy_to_run

        used = calibration if settings.calibration == "auto" else None
        runs = strategy_to_run(
            settings.fusion,
            exact=exact,
            calibrated=used is not None,
            images=any(encoder_and_modality(expert)[1] == "image" for expert in found["references"]),
            classwise=used is not None and used.classwise is not None,
        )
        found["search"] = {**found.get("search", {}), "fusion": runs}
    one_model = bool(encoders and encoders.one_model)
    asks = encoders is None and bool(found.get("cascade") or settings.cascade == "auto")
    # A store with encoders and no profile has encoders in Python.
    if settings.encoders is None and (settings.has_encoders or store.profile() or not found["encoders"]):
        try:
            specs = settings.with_profile_of(store).encoder_specs()
            rates: object = measured(specs)
            one_model = one_model or (asks and _share_model(specs))
        except ZSVecError as exc:  # information on the store does not need the encoders of the profile
            rates = str(exc)
        if rates:  # no rates if all encoders are exported
            found["measured"] = rates
    settled = found.pop("cascade", {})
    if settled and not one_model:
        found["cascade"] = settled
    if settings.cascade == "auto":
        from zsvec.method.predict.cascade import fractions

        rules = calibration.cascade if calibration else {}
        several = found["labels"] == "many"
        obstacle = settings.no_cascade(rules, found["calibration"], exact=exact, several=several, one_model=one_model)
        if not obstacle and encoders:
            obstacle = encoders.no_first(fractions(rules, settings.fusion, exact=exact))
        if obstacle:
            found["no_cascade"] = obstacle
    return found


def _share_model(specs: Mapping[str, EncoderSpec]) -> bool:
    """Returns whether encoders share one image model.

    Raises:
        WeightsUnavailableError: A folder of exported encoders is missing or damaged.
    """
    kinds = {spec.kind for spec in specs.values()}
    if len(specs) > 1 and kinds == {"onnx"}:
        from zsvec.encoders.onnx.exported import ExportedFolder  # imports numpy

        folders = {spec.model: ExportedFolder(Path(spec.model)).manifest for spec in specs.values()}
        images = (folders[spec.model].encoders.get(name) for name, spec in specs.items())
        return len(folders) == 1 and len({one.images if one else None for one in images}) == 1
    return len(specs) == 1 or (kinds <= {"vision", "conse"} and len({one.image_model for one in specs.values()}) == 1)
