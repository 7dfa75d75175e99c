"""Settings and profiles: everything that can be chosen, checked where it enters.

Order of precedence: arguments, then the environment (``ZSVEC_STORE``, ``ZSVEC_PROFILE`` …), then
``zsvec.toml`` in the working directory, then ``config.toml`` in the user's configuration folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from zsvec.encoders.spec import Device, Dtype, EncoderSpec, Temperature
from zsvec.errors import InvalidInputError
from zsvec.profiles import PROFILES, Profile
from zsvec.store import Store, open_store

Aggregation = Literal["mean", "max", "top_mean", "prototype"]
Fusion = Literal["max", "inverse_entropy", "neg_exp_entropy", "fixed", "log_linear", "log_linear_views", "transductive"]
MirrorDtype = Literal["float32", "float16"]
SearchMethod = Literal["auto", "mirror", "qdrant"]


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


class GenerationSettings(BaseModel):
    """What describes categories and draws references; the key comes from ``OPENAI_API_KEY`` alone.

    Attributes:
        base_url: Of any service with OpenAI's interface; by default ``OPENAI_BASE_URL``, or OpenAI's own.
        language_model: Describes categories and says which are alike; needs structured outputs.
        image_model: Draws.
        image_size: Width and height in pixels. Encoders see some 224 of them.
        image_quality: As the image model names it; ``None`` leaves it to the service.
        concurrency: Requests that are made at once.
        timeout: Seconds that a request may go on without anything coming back.
        deadline: Seconds from which a request that fails is not tried again.
        prices: By model, in the place of `zsvec.generation.prices.PRICES`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str | None = Field(default=None, pattern=r"^https?://")
    language_model: str = Field(default="gpt-6-luna", min_length=1)
    image_model: str = Field(default="gpt-image-2.6-flare", min_length=1)
    image_size: str = Field(default="1024x1024", min_length=1)
    image_quality: str | None = "low"
    concurrency: PositiveInt = Field(default=8, le=256)
    timeout: float = Field(default=180.0, gt=0, le=3600)
    deadline: float = Field(default=600.0, gt=0, le=86_400)
    prices: Mapping[str, ModelPrice] = Field(default_factory=dict)


class Settings(BaseSettings):
    """What a classifier is opened with.

    Attributes:
        store: Folder of an embedded store, or the URL of a Qdrant server.
        namespace: Prefix of the collections that this store owns in a deployment.
        api_key: Key of the server.
        timeout: Deadline of one operation on a server, in seconds.
        profile: Name of a profile, of `PROFILES` or of `profiles`.
        profiles: Further profiles, by name.
        device: Where the encoders run.
        dtype: Number format of the encoders; `auto` is bfloat16 where the hardware multiplies in it.
        batch_size: Images that an encoder takes at once.
        search: `mirror` scores in this process, `qdrant` in the database; `auto` decides by size.
        mirror_budget: Up to how many vectors `auto` takes the mirror.
        mirror_device: Where the mirror has its vectors; `auto` is with the encoders.
        mirror_dtype: Their number format on a GPU. In `float16` they take half of the memory, and the 64 that are
            most similar to an image are compared again in float32.
        neighbors: References that one Qdrant query fetches for one image.
        aggregation: From the similarities of a category's references to its logit.
        top_m: References that `top_mean` averages.
        fusion: How the experts are fused: one of the paper's (section 3.3), or a log-linear pool.
        weights: Confidence of each expert for `fixed` fusion; an expert that is not named has 1.
        temperatures: Of experts, such as ``clip:text``, that neither the profile nor calibration shall say. Log-linear
            fusion of a calibrated store goes by coefficients, not by these.
        calibration: ``auto`` uses the calibration that is kept with the store, and makes one after a write
            while that is cheap; ``off`` takes the temperatures of the profile, as the paper does.
        false_unknown_rate: Fraction of the images of known categories that calibration lets be called unknown; by
            default that of the calibration that is there, or 0.05.
        unknown_above: Novelty above which an image is unknown; without it, the calibrated 0.5, and
            none where there is no calibrated threshold.
        unknown_per_category: Whether categories of 20 references and more have thresholds of their own.
        max_pixels: Largest image that is decoded.
        generation: What `zsvec generate` asks and draws with.
    """

    model_config = SettingsConfigDict(
        env_prefix="ZSVEC_", env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )
    toml_files: ClassVar[tuple[Path, ...]] = (
        Path(platformdirs.user_config_dir("zsvec")) / "config.toml",
        Path("zsvec.toml"),
    )

    store: str = Field(default="./zsvec-store", min_length=1)
    namespace: str = Field(default="zsvec", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")
    api_key: SecretStr | None = None
    timeout: float = Field(default=60.0, gt=0, le=86_400)
    profile: str = "base"
    profiles: Mapping[str, Profile] = Field(default_factory=dict)
    device: Device = "auto"
    dtype: Dtype = "auto"
    batch_size: PositiveInt = Field(default=32, le=4096)
    search: SearchMethod = "auto"
    mirror_budget: PositiveInt = 200_000
    mirror_device: Device = "auto"
    mirror_dtype: MirrorDtype = "float32"
    neighbors: PositiveInt = Field(default=256, le=100_000)
    aggregation: Aggregation = "top_mean"
    top_m: PositiveInt = 5
    fusion: Fusion = "log_linear_views"
    weights: Mapping[str, Annotated[float, Field(gt=0, le=1e9)]] = Field(default_factory=dict)
    temperatures: Mapping[str, Temperature] = Field(default_factory=dict)
    calibration: Literal["auto", "off"] = "auto"
    false_unknown_rate: float | None = Field(default=None, gt=0, lt=1)
    unknown_above: float | None = Field(default=None, ge=0, le=2)
    unknown_per_category: bool = False
    max_pixels: PositiveInt = 100_000_000
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
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, cls.toml_files)

    def open_store(self) -> Store:
        """The store that is named.

        Raises:
            InvalidInputError: As `zsvec.store.open_store`.
            StoreUnavailableError: Likewise.
        """
        key = self.api_key.get_secret_value() if self.api_key else None
        return open_store(self.store, namespace=self.namespace, api_key=key, timeout=self.timeout)

    def encoder_specs(self) -> Mapping[str, EncoderSpec]:
        """The encoders of the chosen profile, by name.

        Raises:
            InvalidInputError: No profile has this name.
        """
        known = {**PROFILES, **self.profiles}
        if self.profile not in known:
            raise InvalidInputError(
                f"no profile is named {self.profile!r}; choose one of {', '.join(sorted(known))}, "
                "or define it in zsvec.toml under [profiles]"
            )
        return known[self.profile].encoders


def load_settings(**arguments: Any) -> Settings:
    """Settings from arguments, environment and TOML files.

    Args:
        **arguments: Fields of `Settings`; `None` means not given.

    Raises:
        InvalidInputError: A value is of the wrong kind or out of range, or no setting has this name.
    """
    try:
        settings = Settings(**{name: value for name, value in arguments.items() if value is not None})
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
            + ("" if "api_key" in error["loc"] else f" (got {error['input']!r})")
            for error in exc.errors()
        )
        raise InvalidInputError(f"settings cannot be used: {problems}") from exc
    except (ValueError, OSError) as exc:  # a file that is no TOML, or a variable that is no JSON
        files = [str(file) for file in Settings.toml_files if file.is_file()]
        raise InvalidInputError(
            f"settings cannot be used: {exc}; correct {' or '.join([*files, 'the environment'])}"
        ) from exc
    settings.encoder_specs()
    return settings
