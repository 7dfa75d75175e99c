"""Frames of whole and damaged videos."""

from __future__ import annotations

import sys
import wave
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from tests.cli.support import Result, cli, colours, filled, hash_encoders, new  # noqa: F401
from tests.support import fast_folder, isolated, open_classifier  # noqa: F401
from zsvec.errors import ImageError, InvalidInputError, MissingExtraError
from zsvec.inputs.video import VIDEOS, frames

N_FRAMES = 20


@pytest.fixture(scope="module")
def av() -> ModuleType:
    module: ModuleType = pytest.importorskip("av", reason='pip install "zsvec[video]"')
    return module


def write_video(av: Any, path: Path, codec: str = "mpeg4") -> Path:
    """Grey frames, each lighter than the last."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.gop_size = 5
        for i in range(N_FRAMES):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * i, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(av: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(av, tmp_path_factory.mktemp("videos") / "clip.mp4")


def test_every_nth_frame(clip: Path) -> None:
    for every in (1, 2, 7, 19, 20, 1000):
        found = list(frames(clip, every=every))
        numbers = range(0, N_FRAMES, every)
        assert [getattr(image, "filename", None) for image in found] == [f"{clip}#{number}" for number in numbers]
        for image, number in zip(found, numbers, strict=True):
            assert (image.mode, image.size) == ("RGB", (64, 48))
            assert np.asarray(image).mean() == pytest.approx(10 * number, abs=6)


def test_containers(av: ModuleType, tmp_path: Path) -> None:
    for suffix in (".mp4", ".avi", ".mkv", ".mov"):
        assert suffix in VIDEOS
        path = write_video(av, tmp_path / f"clip{suffix}")
        assert len(list(frames(path))) == N_FRAMES
        assert len(list(frames(str(path), every=4))) == N_FRAMES / 4


def test_closing_early(clip: Path) -> None:
    found: Any = frames(clip)
    assert next(found).filename == f"{clip}#0"
    found.close()
    assert next(found, None) is None


def test_every_is_a_whole_number_from_1_up(clip: Path) -> None:
    for every in (0, -1, 1.5, "2", None):
        with pytest.raises(InvalidInputError, match="every must be a whole number from 1 up"):
            list(frames(clip, every=cast("Any", every)))


def damaged(clip: Path, kind: str, folder: Path) -> Path:
    path = folder / f"{kind}.mp4"
    data = bytearray(clip.read_bytes())
    if kind == "cut short":
        data = data[: len(data) // 2]
    elif kind == "damaged":
        data[len(data) // 3 : len(data) // 2] = bytes(0x5A ^ byte for byte in data[len(data) // 3 : len(data) // 2])
    elif kind == "no video":
        data = bytearray(b"this is no video " * 100)
    elif kind == "empty":
        data = bytearray()
    elif kind == "sound":
        with wave.open(str(path), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
            sound.writeframes(bytes(1600))
        return path
    elif kind == "folder":
        path.mkdir()
        return path
    elif kind == "missing":
        return path
    path.write_bytes(data)
    return path


REASONS = {
    "cut short": "Invalid data found when processing input",
    "no video": "Invalid data found when processing input",
    "empty": "Invalid data found when processing input",
    "sound": "it has no video track; give a file with one",
    "folder": "Is a directory",
    "missing": "No such file or directory",
}


def test_a_file_that_is_no_video(clip: Path, tmp_path: Path) -> None:
    for kind, reason in REASONS.items():
        path = damaged(clip, kind, tmp_path)
        with pytest.raises(ImageError) as failure:
            next(frames(path))
        assert str(failure.value).startswith(f"cannot read {str(path)!r}: {reason}")
        assert "Errno" not in str(failure.value)


def test_frames_before_damage(clip: Path, tmp_path: Path) -> None:
    path = damaged(clip, "damaged", tmp_path)
    found = []
    with pytest.raises(ImageError, match=r"cannot read '.*damaged\.mp4': "):
        for image in frames(path):
            found.append(image.filename)  # type: ignore[attr-defined]  # noqa: PERF401 - what came before
    assert found == [f"{path}#{number}" for number in range(len(found))]
    assert len(found) < N_FRAMES


def test_a_video_without_a_frame(av: ModuleType, tmp_path: Path) -> None:
    whole = write_video(av, tmp_path / "clip.mkv")
    path = tmp_path / "cut.mkv"
    data = whole.read_bytes()
    frames_begin = data.index(b"\x1f\x43\xb6\x75")
    path.write_bytes(data[: frames_begin + 40])  # FFmpeg finds nothing wrong with that
    with pytest.raises(ImageError, match=r"cannot read '.*cut\.mkv': it has no frame; give a video that FFmpeg reads"):
        list(frames(path))


def test_videos_are_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r'av is needed for videos: pip install "zsvec\[video\]"'):
        next(frames("clip.mp4"))


@pytest.mark.usefixtures("hash_encoders")
def test_classify_a_video(filled: Callable[..., Result], new: Path, clip: Path) -> None:  # noqa: F811
    Path("clip.mp4").write_bytes(clip.read_bytes())
    Path("UPPER.MP4").write_bytes(clip.read_bytes())
    result = filled("classify clip.mp4 --every 5 --json")
    assert (result.code, result.err) == (0, "")
    assert [found["source"] for found in result.objects] == [f"clip.mp4#{number}" for number in (0, 5, 10, 15)]
    assert all(found["nearest"] in ("red", "green", "blue") for found in result.objects)
    result = filled("classify new/red.png UPPER.MP4 new --every 19 --json")
    assert [found["source"] for found in result.objects] == [
        "new/red.png",
        "UPPER.MP4#0",
        "UPPER.MP4#19",
        "new/blue.png",
        "new/red.png",
    ]
    assert len(filled("classify clip.mp4 --json").objects) == N_FRAMES
    assert filled("classify clip.mp4 --every 0").code == 2


def test_a_frame_keeps_its_name_in_an_answer(clip: Path) -> None:
    with fast_folder() as folder, open_classifier(folder) as clf:
        clf.add_category("dark", images=[Image.new("RGB", (8, 8), "black")])
        clf.add_category("light", images=[Image.new("RGB", (8, 8), "#bebebe")])
        found = list(clf.classify_stream(frames(clip, every=19)))
    assert [(p.source, p.label) for p in found] == [(f"{clip}#0", "dark"), (f"{clip}#19", "light")]
