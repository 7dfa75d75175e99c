"""Frames of videos and cameras, as images."""

from __future__ import annotations

import os
from collections.abc import Iterator

from PIL import Image

from zsvec.errors import ImageError, InvalidInputError, needs_extra, shown, without_password

VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
"""Suffixes of video files."""
CAMERA = "/dev/video"
"""Beginning of the path of a camera."""


def frames(source: str | os.PathLike[str], *, every: int = 1) -> Iterator[Image.Image]:
    """Yields frames of a video file, a stream or a camera.

    Args:
        source: A path, a URL that FFmpeg opens (``rtsp://…``), or a device such as ``/dev/video0``.
        every: Yield every n-th frame, beginning with the first; other frames are not converted.

    Yields:
        RGB images. The ``filename`` of each is the source and the frame number, such as ``clip.mp4#25``.

    Raises:
        MissingExtraError: PyAV is not installed.
        InvalidInputError: `every` is not a whole number from 1 up.
        ImageError: The source cannot be read, or has no video track. Frames before a damaged part are yielded first.
    """
    with needs_extra("video", "videos"):
        import av
    if not isinstance(every, int) or every < 1:
        raise InvalidInputError(f"every must be a whole number from 1 up. Got {shown(every)} instead")
    name = os.fspath(source)
    try:
        with av.open(name, format="v4l2" if name.startswith(CAMERA) else None) as container:
            if not container.streams.video:
                raise ImageError(f"cannot read {name!r}: it has no video track; give a file with one")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            number = -1
            for number, frame in enumerate(container.decode(stream)):
                if number % every == 0:
                    image = frame.to_image()  # type: ignore[no-untyped-call]
                    image.filename = f"{without_password(name)}#{number}"
                    yield image
            if number < 0:  # FFmpeg reports no error for some truncated formats
                raise ImageError(f"cannot read {name!r}: it has no frame; give a video that FFmpeg reads")
    except (av.FFmpegError, OSError) as exc:
        reason = exc.strerror or exc
        raise ImageError(f"cannot read {name!r}: {reason}; give a video that FFmpeg reads") from exc
