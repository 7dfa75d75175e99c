"""A folder of exported encoders: what its manifest says, and that its files are those it names.

The folder holds ``encoders.json``, graphs (``*.onnx``), tokenizers (``*.json``) and matrices (``*.npy``); nothing in it
is unpickled. Whoever names a folder trusts its content as that of a weight file. The digests of the manifest tell
damage, not forgery: who can change a file can change the manifest.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from zsvec.encoders.preprocessing import Preprocessing
from zsvec.encoders.spec import EncoderSpec, Prompt, Temperature
from zsvec.errors import WeightsUnavailableError
from zsvec.inputs.files import open_regular
from zsvec.types import Fingerprint, Modality

MANIFEST = "encoders.json"
FORMAT: Literal[1] = 1
_LARGEST_MANIFEST = 2**20  # bytes
_AGAIN = (
    "run `zsvec encoders export` again, where torch is, or take the profile that was exported, with runtime='torch'"
)

# No separator: every file is in the folder itself.
FileName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ExportedImages(_Part):
    """An image model.

    Attributes:
        graph: From uint8 pixels (n, size, size, 3) to pooled features and, with a classifier, logits.
        preprocessing: From an image to pixels.
    """

    graph: FileName
    preprocessing: Preprocessing


class ExportedTexts(_Part):
    """A text model.

    Attributes:
        graph: From token ids (n, tokens) to vectors (n, dim).
        tokenizer: In the format of the library `tokenizers`, with its truncation and padding.
    """

    graph: FileName
    tokenizer: FileName


class ExportedEncoder(_Part):
    """An encoder.

    Attributes:
        family: What its vectors are made of; see `zsvec.encoders.heads`.
        fingerprint: As that of the same encoder on torch.
        modalities: Which references it embeds.
        images: Its image model; encoders with equal ones share it.
        texts: Its text model.
        labels: Vectors of ConSE's labels.
        prompt: As `EncoderSpec`.
        temperature: As `EncoderSpec`.
    """

    family: Literal["clip", "vision", "conse"]
    fingerprint: Fingerprint
    modalities: tuple[Modality, ...] = Field(min_length=1)
    images: ExportedImages
    texts: ExportedTexts | None = None
    labels: FileName | None = None
    prompt: Prompt
    temperature: Mapping[Modality, Temperature]

    @model_validator(mode="after")
    def _is_whole(self) -> ExportedEncoder:
        if (self.family != "vision") != (self.texts is not None) or (self.family == "conse") != (
            self.labels is not None
        ):
            raise ValueError(f"family {self.family!r} has other parts")
        if "text" in self.modalities and self.texts is None:
            raise ValueError(f"family {self.family!r} embeds no texts")
        return self

    def files(self) -> set[str]:
        """Names of the files that it is made of."""
        texts = {self.texts.graph, self.texts.tokenizer} if self.texts else set()
        return {self.images.graph, *texts, *filter(None, [self.labels])}


class Manifest(_Part):
    """What is in the folder.

    Attributes:
        format: Of this file.
        encoders: By name.
        files: SHA-256 of each file, by its name.
    """

    format: Literal[1]
    encoders: Mapping[str, ExportedEncoder] = Field(min_length=1)
    files: Mapping[FileName, Digest]

    @model_validator(mode="after")
    def _names_each_file(self) -> Manifest:
        missing = set().union(*(encoder.files() for encoder in self.encoders.values())) - self.files.keys()
        if missing:
            raise ValueError(f"no digest of {', '.join(sorted(missing))}")
        return self


class ExportedFolder:
    """A folder whose manifest has been read.

    Args:
        path: The folder.

    Raises:
        WeightsUnavailableError: There is no such folder, or its manifest or a file is not there or damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.path = path.expanduser().absolute()
        except (RuntimeError, ValueError) as exc:  # the home of an unknown user, or a NUL in a name
            raise _absent(path, exc) from exc
        self.manifest = _read_manifest(self.path)
        for name in self.manifest.files:
            if not (self.path / name).is_file():
                raise self.damaged(f"{name} is not there")

    def open(self, name: str) -> BinaryIO:
        """A file to `read` later. On POSIX, the folder may be deleted or replaced until then.

        Raises:
            WeightsUnavailableError: The file cannot be opened.
        """
        try:
            return open_regular(self.path / name)
        except OSError as exc:
            raise self.damaged(f"{name} cannot be read ({exc})") from exc

    def read(self, name: str, opened: BinaryIO | None = None) -> bytes:
        """The content of a file.

        Args:
            name: Of the file.
            opened: The file as `open` gave it. It stays open.

        Raises:
            WeightsUnavailableError: The file cannot be read, or is not what was exported.
        """
        with nullcontext(opened) if opened else self.open(name) as file:
            try:
                file.seek(0)
                content = file.read()
            except OSError as exc:
                raise self.damaged(f"{name} cannot be read ({exc})") from exc
        if hashlib.sha256(content).hexdigest() != self.manifest.files[name]:
            raise self.damaged(f"{name} has changed")
        return content

    def matrix(self, name: str) -> NDArray[np.float32]:
        """The matrix in a file, float32.

        Raises:
            WeightsUnavailableError: As `read`, or it is none.
        """
        try:
            matrix = np.load(io.BytesIO(self.read(name)), allow_pickle=False)
        except (ValueError, OSError, EOFError) as exc:
            raise self.damaged(f"{name} is no matrix ({exc})") from exc
        if not isinstance(matrix, np.ndarray) or matrix.dtype != np.float32 or matrix.ndim != 2:
            raise self.damaged(f"{name} is no float32 matrix")
        return matrix

    def damaged(self, what: str) -> WeightsUnavailableError:
        """The error for something wrong with the folder."""
        return WeightsUnavailableError(f"the exported encoders in {self.path} are damaged: {what}; {_AGAIN}")

    def specs(self) -> dict[str, EncoderSpec]:
        """What to load each encoder of the folder by."""
        return {
            name: EncoderSpec(
                family="onnx",
                model=str(self.path),
                modalities=encoder.modalities,
                prompt=encoder.prompt,
                temperature=encoder.temperature,
            )
            for name, encoder in self.manifest.encoders.items()
        }


def other_files(folder: Path) -> list[str]:
    """Names of what is in a folder beside exported encoders: all of it, where no valid manifest says what those are."""
    try:
        exported = {MANIFEST, *_read_manifest(folder).files}
    except WeightsUnavailableError:
        exported = set()
    return sorted(entry.name for entry in folder.iterdir() if entry.name not in exported or not entry.is_file())


def _absent(folder: Path, why: Exception) -> WeightsUnavailableError:
    return WeightsUnavailableError(
        f"no exported encoders in {folder} ({why}); give a folder that `zsvec encoders export` has written"
    )


def _read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        with open_regular(file) as opened:
            content = opened.read(_LARGEST_MANIFEST + 1)
    except (OSError, ValueError) as exc:  # not there, or a NUL in its name
        raise _absent(folder, exc) from exc
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as exc:
        problem = exc.errors()[0]
        raise WeightsUnavailableError(
            f"{file} is damaged or of another version of zsvec ({'.'.join(map(str, problem['loc']))}: "
            f"{problem['msg']}); {_AGAIN}"
        ) from exc
