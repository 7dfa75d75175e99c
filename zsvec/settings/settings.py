"""Settings and profiles: everything that can be chosen, checked where it enters.

Order of precedence: arguments, then the environment (``ZSVEC_STORE``, ``ZSVEC_PROFILE`` …), then
``zsvec.toml`` in the working directory, as far as the user trusts that, then ``config.toml`` in the user's
configuration folder.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
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
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from zsvec.encoders.spec import LARGEST_BATCH, Device, Dtype, EncoderSpec, RuntimeName, Temperature
from zsvec.errors import InvalidInputError, shown, without_password
from zsvec.inputs.memory import DEFAULT as DEFAULT_IMAGE_MEMORY
from zsvec.method import DEFAULT_STRATEGY
from zsvec.settings.profiles import PROFILES, Profile, encoders_of, other_profile
from zsvec.settings.sources import Environment, File, LocalFile, no_setting
from zsvec.settings.trust import is_private
from zsvec.store import FIRST_CONTACT, Placement, Store, open_store
from zsvec.types import Keep, KeepImages

if TYPE_CHECKING:
    from zsvec.inputs.images import ImageLimits
    from zsvec.method.predict.scoring import Scoring

IndexKind = Literal["auto", "memory", "qdrant"]
IndexDtype = Literal["float32", "float16"]


def _working_folder() -> Path:
    try:
        return Path().absolute()
    except OSError:  # it was deleted: what is relative to it cannot be found
        return Path()


def _one_of(table: str) -> AfterValidator:
    """Checks that a name is of a table of the method: slow to import, and not needed for the default."""

    def check(name: str) -> str:
        if name not in (known := resolve_name(f"zsvec.method.predict.{table}")):
            raise ValueError(f"must be one of {', '.join(known)}")
        return name

    return AfterValidator(check)


class ModelPrice(BaseModel):
    """What a generative model costs, in US dollars.

    Attributes:
        input: A million tokens that it reads.
        output: A million tokens that it writes, those of images included.
        image: One image, of a model that is billed by the image.
        image_tokens: By quality, the tokens of an image of 1024 × 1024, for estimates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: NonNegativeFloat = 0.0
    output: NonNegativeFloat = 0.0
    image: NonNegativeFloat | None = None
    image_tokens: Mapping[str, PositiveInt] = Field(default_factory=dict)


class _Masked(BaseModel):
    """Settings whose representation has no password of a URL."""

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, without_password(value) if isinstance(value, str) else value


class GenerationSettings(_Masked):
    """What describes categories and draws references; the key comes from ``OPENAI_API_KEY`` alone.

    Attributes:
        base_url: Of any service with OpenAI's interface; by default ``OPENAI_BASE_URL``, or OpenAI's own.
        allow_http: Whether the key may be sent to another machine in clear text (``http://``), on a private network.
        language_model: Describes categories and says which are alike; needs structured outputs.
        image_model: Draws.
        image_size: Width and height in pixels. Encoders see some 224 of them.
        image_quality: As the image model names it; ``None`` leaves it to the service.
        concurrency: Requests that are made at once.
        timeout: Seconds within which a whole answer must arrive, however much of the answer is on its way.
        deadline: Seconds from which a request that fails is not tried again.
        prices: By model, in the place of `zsvec.generation.prices.PRICES`.
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
    """What a classifier is opened with.

    Attributes:
        store: Folder of an embedded store, or the URL of a Qdrant server; or several URLs of one deployment with commas
            between them, of which the next is asked where one does not answer.
        namespace: Prefix of the collections that this store owns in a deployment.
        api_key: Key of the server.
        allow_http: Whether the key may be sent to another machine in clear text (``http://``), on a private network.
        ca_certificate: PEM file of the authorities to trust in the place of the usual ones, for REST and gRPC; by
            default what ``SSL_CERT_FILE`` names.
        timeout: Deadline of one operation on a server, in seconds. If it is set, it is also that of the first contact,
            which otherwise is given up after 5 s.
        max_staleness: Seconds for which references in memory go on answering from the last whole state of the store
            while a server is away; each answer says how old that is (`Prediction.stale_seconds`).
        replicas: Copies of each collection that zsvec makes in a cluster; by default as the server chooses.
        shards: Parts of each collection of references that zsvec makes in a cluster; by default likewise.
        write_consistency: Copies that must have a write before it is acknowledged; by default likewise.
        keep_images: Whether small copies of reference images are kept; by default as the store says (new: `small`).
        added_by: Who adds references; kept with each of them.
        history: Seconds for which changes of categories can be taken back, with what they replaced; by default a day.
            With 0, nothing is kept of the changes of this process.
        keep: Which images of streams wait in the inbox for a label: `none`, those that are `uncertain`, or `all`.
        inbox_size: Images that wait in the inbox, at most; and as many that were dismissed.
        inbox_days: Days after which an image in the inbox is deleted.
        profile: Name of a profile, of `PROFILES` or of `profiles`; or the folder of exported encoders, as a
            path with a ``/``.
        profiles: Further profiles, by name.
        device: Where the encoders run.
        dtype: Number format of the encoders; `auto` is bfloat16 where it is faster, measured with each model on a CPU.
        runtime: What computes the encoders; `auto` is onnxruntime where they are exported for it and that is faster on
            this CPU, else torch; `onnx` insists on it. `zsvec encoders export` exports them.
        compile: Whether torch.compile compiles the encoders, with a C++ compiler; the first start takes a minute more.
        batch_size: Images that an encoder takes at once.
        index: Where images are compared with the references: `memory` holds the references in this process or on its
            GPU, `qdrant` asks the database; `auto` decides by their number.
        index_budget: Up to how many references `auto` holds in memory.
        index_device: Where references in memory are; `auto` is with the encoders.
        index_dtype: Number format of references on a GPU. In `float16` they take half of the memory, and the 64
            nearest to an image are compared again in float32.
        index_cache: Whether 20,000 references or more in memory are kept in your cache folder, for the next process.
        neighbors: References that one Qdrant query fetches for one image.
        aggregation: From the similarities of a category's references to its logit.
        top_m: References that `top_mean` averages.
        fusion: How the experts are fused: one of the paper's strategies (section 3.3), or a log-linear pool.
        weights: Confidence of each expert for `fixed` fusion; an expert that is not named has 1.
        temperatures: By expert, such as ``clip:text``; overrides profile and calibrated temperatures. Log-linear
            fusion of a calibrated store uses coefficients instead.
        calibration: ``auto`` uses the calibration that is kept with the store, and makes one after a write
            while that is cheap; ``off`` takes the temperatures of the profile, as the paper does.
        false_unknown_rate: Target rate of unknown among images of known categories; by default the present, or 0.05.
        unknown_above: Novelty above which an image is unknown; by default the calibrated 0.5, where there is a
            calibrated threshold. Without a calibration there is no novelty, and no effect.
        unknown_per_category: Whether categories with enough references (19, at 5 %) have their own thresholds.
        max_pixels: Largest image that is read. By default 100 million pixels, of which a JPEG that is decoded at a
            fraction has as many as are decoded.
        image_memory: Bytes that all threads together may take for images that are being decoded. An image that takes
            more is refused by its header; others wait until there is room.
        generation: What `zsvec generate` asks and draws with.
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
    index: IndexKind = "auto"
    index_budget: PositiveInt = 200_000
    index_device: Device = "auto"
    index_dtype: IndexDtype = "float32"
    index_cache: bool = True
    neighbors: PositiveInt = Field(default=256, le=100_000)
    aggregation: Annotated[str, _one_of("aggregation:AGGREGATIONS")] = Field(default="top_mean", validate_default=False)
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
        """Arguments, environment, TOML files; first one wins."""
        users, local = cls.toml_files
        trusted = LocalFile(settings_cls, local, cls.marks())
        return init_settings, Environment(settings_cls), trusted, File(settings_cls, users)

    @classmethod
    def marks(cls) -> Path:
        """Folder of what the user trusts."""
        return cls.toml_files[0].parent / "trusted"

    def open_store(self) -> Store:
        """The store that is named.

        Raises:
            InvalidInputError: As `zsvec.store.open_store`, or others could read the key on its way.
            StoreUnavailableError: Likewise.
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
            profile_of=lambda stored: other_profile(stored, {**PROFILES, **self.profiles}, self.profile),
        )

    def image_limits(self) -> ImageLimits:
        """What an image may be and take."""
        return {"max_pixels": self.max_pixels, "image_memory": self.image_memory}

    def encoder_specs(self) -> Mapping[str, EncoderSpec]:
        """The encoders of the chosen profile, by name; raises as `zsvec.settings.profiles.encoders_of`."""
        return encoders_of(self.profile, {**PROFILES, **self.profiles}, self._made_in)

    def scoring(self, temperatures: Mapping[str, float]) -> Scoring:
        """From similarities to predictions, as these settings say, with the temperatures of the profile by expert."""
        from zsvec.method.predict.scoring import (
            Scoring,  # slow to import, and not needed to list the categories of a store
        )

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
        """Refuse weights and temperatures of experts that there are not.

        Raises:
            InvalidInputError: There are such, or no expert at all.
        """
        if not experts:
            raise InvalidInputError("there are no encoders: give at least one")
        for setting, table in {"weights": self.weights, "temperatures": self.temperatures}.items():
            for expert in table:
                if expert not in experts:
                    raise InvalidInputError(f"{setting}: there is no expert {expert!r}; there are {', '.join(experts)}")


def load_settings(**arguments: Any) -> Settings:
    """Settings from arguments, environment and TOML files.

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
    """One thing that is wrong with settings, in words that say which, and nothing of a key."""
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        table = name.rpartition(".")[0]
        tables: Mapping[str, type[BaseModel]] = {"": Settings, "generation": GenerationSettings}
        known = tables[table].model_fields if table in tables else ()
        return no_setting(name, [f"{table}.{field}".lstrip(".") for field in known])
    given = error["input"]
    plain = isinstance(given, int | float) or (isinstance(given, str) and "@" not in given)  # name:password@host
    hidden = "api_key" in error["loc"] or error["type"] == "model_type" or not plain
    value = "" if hidden else f" (got {shown(given)})"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}{value}"
