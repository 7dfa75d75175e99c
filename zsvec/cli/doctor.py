"""What works here, and what to do about the rest."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import httpx
from rich.table import Table

from zsvec import __version__
from zsvec.cli import output
from zsvec.cli.app import HOW_TO_MAKE_A_STORE
from zsvec.cli.output import escape
from zsvec.encoders import describe_device, missing_weights
from zsvec.errors import ZSVecError, without_password
from zsvec.inputs.answers import LateError, in_time
from zsvec.settings.settings import Settings
from zsvec.types import Finding

if TYPE_CHECKING:
    from zsvec.cli.app import Target

_HUB_TIMEOUT_S = 10.0  # of all redirections together

_PACKAGES = ("qdrant-client", "qdrant-edge-py")
_FOR_TORCH = ("torch", "timm", "sentence-transformers", "openai")
_WITHOUT_TORCH = ("onnxruntime", "tokenizers")


def examine(target: Target, *, repair: bool) -> Iterator[Finding]:
    """Look at the installation, the device, the weights of the profile, and the store.

    Args:
        target: The options before the command.
        repair: Whether to make the copies of the catalog agree, where they do not.
    """
    try:
        settings = target.settings()
        specs = settings.encoder_specs()
    except ZSVecError as exc:
        yield _packages(_FOR_TORCH)
        yield Finding(
            "settings", False, str(exc), "correct it on the command line, in the environment or in zsvec.toml"
        )
        return
    exported = all(spec.family == "onnx" for spec in specs.values())
    yield _packages(_WITHOUT_TORCH if exported else _FOR_TORCH)
    store = without_password(settings.store)
    yield Finding("settings", True, f"profile {settings.profile}, store {store}, namespace {settings.namespace}")
    yield _guarded("device", lambda: _device(settings))
    try:
        missing = missing_weights(specs)
    except ZSVecError as exc:
        yield Finding("weights", False, str(exc), "correct the encoders of the profile in zsvec.toml")
    else:
        url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        problem = _problem_of_hub(url)
        yield _hub(without_password(url), problem, needed=bool(missing))
        yield _weights(settings, missing, reachable=problem is None)
    yield _generation(settings)
    yield from _store(settings, repair=repair)


def findings_table(findings: Sequence[Finding]) -> Table:
    """A row for each finding, with the advice below its detail."""
    table = output.new_table("", "", "", box=None, show_header=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]no[/]"
        advice = f"\n[yellow]{escape(finding.advice)}[/]" if finding.advice else ""
        table.add_row(mark, escape(finding.what), escape(finding.detail) + advice)
    return table


def _guarded(what: str, examination: Callable[[], Finding]) -> Finding:
    try:
        return examination()
    except ZSVecError as exc:
        return Finding(what, False, str(exc))


def _packages(of_encoders: Sequence[str]) -> Finding:
    # The version of the code that runs: an editable installation keeps the number of the day it was made.
    versions = {"zsvec": __version__, **{package: _version(package) for package in (*of_encoders, *_PACKAGES)}}
    found = [f"Python {platform.python_version()}", *(f"{package} {v}" for package, v in versions.items() if v)]
    missing = [package for package, v in versions.items() if not v]
    advice = f"pip install {' '.join(missing)}" if missing else ""
    return Finding("packages", not missing, ", ".join(found), advice)


def _device(settings: Settings) -> Finding:
    where: dict[str, Any] = {"runtime": settings.runtime, "compiled": settings.compile}
    specs = settings.encoder_specs()
    return Finding("device", True, describe_device(settings.device, settings.dtype, specs=specs, **where))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _problem_of_hub(url: str) -> str | None:
    """Why the hub cannot be reached; ``None`` if it can."""
    try:
        in_time(partial(httpx.head, url, timeout=3, follow_redirects=True), _HUB_TIMEOUT_S)
    except (LateError, httpx.HTTPError, httpx.InvalidURL) as exc:
        return type(exc).__name__
    return None


def _hub(url: str, problem: str | None, *, needed: bool) -> Finding:
    if problem is None:
        return Finding("hub", True, f"reached {url}")
    return Finding("hub", not needed, f"{url} cannot be reached ({problem})" + ("" if needed else "; not needed"))


def _weights(settings: Settings, missing: Mapping[str, str], *, reachable: bool) -> Finding:
    if not missing:
        return Finding("weights", True, f"profile {settings.profile} can be loaded without a download")
    listed = "; ".join(f"{name}: {what}" for name, what in missing.items())
    if reachable:
        return Finding("weights", True, f"will be downloaded at the first use: {listed}")
    return Finding(
        "weights",
        False,
        f"neither here nor to be downloaded: {listed}",
        "use --profile offline, or name a local path in zsvec.toml, or fill the cache (HF_HOME) elsewhere",
    )


def _generation(settings: Settings) -> Finding:
    there = "set" if os.environ.get("OPENAI_API_KEY") else "not set; only `zsvec generate` needs it"
    models = f"{settings.generation.language_model}, {settings.generation.image_model}"
    return Finding("generation", True, f"{models}; OPENAI_API_KEY is {there}")


def _store(settings: Settings, *, repair: bool) -> Iterator[Finding]:
    from zsvec import Calibration

    try:
        with settings.open_store() as store:
            store.check(settings.encoder_specs())
            yield from store.check_up(repair=repair)
            if not store.encoders():
                named = "store" in settings.model_fields_set and "://" not in settings.store
                yield Finding("store", not named, f"there is no store in {store.location} yet", HOW_TO_MAKE_A_STORE)
                return
            found = store.info()
            if found["calibration"] != "none" and Calibration.from_dict(store.calibration()) is None:
                yield Finding(
                    "calibration", False, "it cannot be read, and none is used", "run `zsvec calibrate` to make another"
                )
    except ZSVecError as exc:
        yield Finding("store", False, str(exc))
        return
    references = sum(found["references"].values())
    stale = found["calibration"] == "stale"
    yield Finding(
        "store",
        True,
        f"{found['store']}: {output.counted(found['categories'], 'category', 'categories')}, "
        f"{output.counted(references, 'reference')}, "
        f"calibration: {found['calibration']}",
        "run `zsvec calibrate`: categories have changed since the last time" if stale else "",
    )
