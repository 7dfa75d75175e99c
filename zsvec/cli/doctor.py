"""The checks of `zsvec doctor`. Each finding on the installation or the store can carry advice."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import httpx
from rich.table import Table

from zsvec import __version__
from zsvec.cli import output
from zsvec.cli.app import HOW_TO_MAKE_A_STORE
from zsvec.cli.output import escape
from zsvec.encoders import EncoderSet, describe_device, missing_weights
from zsvec.errors import StoreError, ZSVecError, without_password
from zsvec.inputs.answers import LateError, in_time
from zsvec.settings.settings import Settings
from zsvec.types import Finding

if TYPE_CHECKING:
    from zsvec import EncoderSpec
    from zsvec.cli.app import Target

_HUB_TIMEOUT_S = 10.0  # for the request with all redirects

_PACKAGES = ("onnxruntime", "qdrant-client", "qdrant-edge-py")
_FOR_TORCH = ("torch", "timm", "sentence-transformers")


def examine(target: Target, *, repair: bool) -> Iterator[Finding]:
    """Yields findings on packages, settings, device, hub, weights and store.

    Args:
        target: The global options.
        repair: Whether to repair replicas of the catalog that differ.
    """
    try:
        settings = target.settings()
        with suppress(StoreError):  # the last check reports the error
            settings = settings.of_store()
        own = None if settings.encoders is None else EncoderSet(settings.import_encoders())
        specs = settings.encoder_specs() if own is None else {}
    except ZSVecError as exc:
        yield _packages()
        yield Finding(
            "settings", False, str(exc), "correct it on the command line, in the environment or in zsvec.toml"
        )
        return
    on_torch = any(spec.family != "onnx" for spec in specs.values())
    packages = _packages(_FOR_TORCH if on_torch else ())
    yield packages
    encoders = f"encoders {settings.encoders}" if own else f"profile {settings.profile}"
    store = without_password(settings.store)
    yield Finding("settings", True, f"{encoders}, store {store}, namespace {settings.namespace}")
    if own:
        dims = (f"{name} ({fingerprint.dim} dimensions)" for name, fingerprint in own.fingerprints.items())
        yield Finding("encoders", True, ", ".join(dims))
    elif packages.ok:  # otherwise both would say again what to install
        yield _device(settings, specs)
        yield from _weights(settings, specs)
    yield _generation(settings)
    yield from _store(settings, own, repair=repair)


def findings_table(findings: Sequence[Finding]) -> Table:
    """Returns a table with a row per finding. The advice is below the detail."""
    table = output.new_table("", "what", "detail", wrapped=("detail",), box=None, show_header=False)
    for finding in findings:
        mark = "[green]ok[/]" if finding.ok else "[red]no[/]"
        advice = f"\n[yellow]{escape(finding.advice)}[/]" if finding.advice else ""
        table.add_row(mark, escape(finding.what), escape(finding.detail) + advice)
    return table


def _packages(for_torch: Sequence[str] = ()) -> Finding:
    # `__version__` is the version of the running code; the metadata of an editable installation may be older.
    versions = {"zsvec": __version__, **{package: _version(package) for package in (*for_torch, *_PACKAGES)}}
    found = [f"Python {platform.python_version()}", *(f"{package} {v}" for package, v in versions.items() if v)]
    missing = [package for package, v in versions.items() if not v]
    advice = f'pip install "zsvec{"[torch]" if set(missing) & set(for_torch) else ""}"' if missing else ""
    return Finding("packages", not missing, ", ".join(found), advice)


def _device(settings: Settings, specs: Mapping[str, EncoderSpec]) -> Finding:
    device, dtype, runtime = settings.device, settings.dtype, settings.runtime
    try:
        described = describe_device(device, dtype, runtime=runtime, compiled=settings.compile, specs=specs)
    except ZSVecError as exc:
        return Finding("device", False, str(exc))
    return Finding("device", True, described)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _weights(settings: Settings, specs: Mapping[str, EncoderSpec]) -> Iterator[Finding]:
    try:
        missing = missing_weights(specs)
    except ZSVecError as exc:
        yield Finding("weights", False, str(exc), "correct the encoders of the profile in zsvec.toml")
        return
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    shown, error = without_password(url), hub_error(url)
    if error is None:
        yield Finding("hub", True, f"reached {shown}")
    else:
        yield Finding("hub", not missing, f"{shown} cannot be reached ({error}){'' if missing else '; not needed'}")
    listed = "; ".join(f"{name}: {weights}" for name, weights in missing.items())
    if not missing:
        yield Finding("weights", True, f"profile {settings.profile} can be loaded without a download")
    elif error is None:
        yield Finding("weights", True, f"will be downloaded at the first use: {listed}")
    else:
        advice = "use --profile offline, or name a local path in zsvec.toml, or fill the cache (HF_HOME) elsewhere"
        yield Finding("weights", False, f"neither here nor to be downloaded: {listed}", advice)


def hub_error(url: str) -> str | None:
    """Sends a request to the hub. Returns the class name of the error, or ``None`` if there was no error."""
    try:
        in_time(partial(httpx.head, url, timeout=3, follow_redirects=True), _HUB_TIMEOUT_S)
    except (LateError, httpx.HTTPError, httpx.InvalidURL) as exc:
        return type(exc).__name__
    return None


def _generation(settings: Settings) -> Finding:
    there = "set" if os.environ.get("OPENAI_API_KEY") else "not set"
    package = f"openai {_version('openai')}" if _version("openai") else 'without openai: pip install "zsvec[generate]"'
    models = f"{settings.generation.language_model}, {settings.generation.image_model}"
    return Finding(
        "generation", True, f"{models}; OPENAI_API_KEY is {there}; {package}; only `zsvec generate` needs both"
    )


def _store(settings: Settings, own: EncoderSet | None, *, repair: bool) -> Iterator[Finding]:
    from zsvec import Calibration

    try:
        with settings.open_store() as store:
            if own is None:
                store.check(settings.with_profile_of(store).encoder_specs())
            else:
                store.check_fingerprints(own.fingerprints)
            yield from store.check_up(repair=repair)
            if not store.encoders():
                named = "store" in settings.model_fields_set and "://" not in settings.store
                yield Finding("store", not named, f"there is no store in {store.location} yet", HOW_TO_MAKE_A_STORE)
                return
            found, categories = store.info(), store.categories()
            state = found["calibration"]
            if state != "none" and Calibration.from_dict(store.calibration()) is None:
                advice = "run `zsvec calibrate` to replace it"
                yield Finding("calibration", False, "the calibration is damaged and not used", advice)
    except ZSVecError as exc:
        yield Finding("store", False, str(exc))
        return
    number = output.counted(len(categories), "category", "categories")
    yield Finding(
        "store",
        True,
        f"{found['store']}: {number}, {output.contents(categories)}, calibration: {state}",
        "run `zsvec calibrate`: categories have changed since the last time" if state == "stale" else "",
    )
