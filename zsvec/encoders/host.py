"""What of this machine decides how fast encoders are, and where that is remembered. No torch, no numpy."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import platformdirs

from zsvec.inputs.files import is_ours, write_whole


def cache_folder() -> Path:
    """Where exports and measured rates are kept."""
    return Path(platformdirs.user_cache_dir("zsvec")) / "encoders"


def keep(file: Path, content: bytes) -> None:
    """Write a file of the cache, whole or not at all; what others may have put in its place is not followed.

    Raises:
        OSError: It cannot be written, or its folder is not for this user alone.
    """
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_ours(file.parent):
        raise PermissionError(f"others may write to {file.parent}")
    write_whole(file, content, mode=0o600)


def processor() -> str:
    """What makes runtimes faster or slower."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return f"{name} {os.cpu_count()}"
    models = [line for line in lines if line.startswith("model name")]
    return f"{models[0] if models else name} {os.cpu_count()}"


def installed_version(package: str) -> str | None:
    """The version of a package, or ``None``."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def thread_count() -> int:
    """Threads of a model: as many as torch has where it is loaded, else one a core that this process may use."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if given.isdecimal() and int(given):
        return int(given)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    siblings = Path("/sys/devices/system/cpu/smt/active")
    doubled = siblings.exists() and siblings.read_text(encoding="ascii").strip() == "1"
    return max(1, usable // 2 if doubled else usable)
