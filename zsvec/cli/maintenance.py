"""The commands that maintain the store and the installation: info, doctor, init, gc, images drop, trust."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from zsvec.cli import output
from zsvec.cli.app import App, Json, Yes, app, confirm
from zsvec.cli.history import described
from zsvec.types import Category, Change, ThresholdProgress, contents

_ENGINES = {"qdrant": "Qdrant", "qdrant-edge": "Qdrant Edge"}
_ADVICE_ON_CALIBRATION = {
    "none": ": run `zsvec calibrate`, with images in at least two categories",
    "stale": ": categories have changed since the last time; run `zsvec calibrate`",
    "damaged": " and not used: run `zsvec calibrate`",
}
_HASH = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]+")  # of weights; `--json` has the whole hash

images = App(help="Look after the small copies of reference images that the store keeps.", no_args_is_help=True)


@app.command()
def info(context: typer.Context, json: Json = False) -> None:
    """Show the contents of the store, the encoders with their speed, and the engine."""
    from zsvec.settings.settings import info as facts

    with context.obj.open_store() as store:
        found = facts(store, context.obj.settings())
        categories = store.categories()
    if json:
        output.print_json(found)
    else:
        output.out.print(output.facts_table(_in_words(found, categories)))


def _in_words(found: Mapping[str, Any], categories: Sequence[Category]) -> dict[str, Any]:
    """Returns the facts that `zsvec info` prints, from the object that `zsvec info --json` prints."""
    unreadable = ", ".join(map(repr, found["unreadable"]))
    engines = [f"{name} {found[key]}" for key, name in _ENGINES.items() if key in found]
    placements = {
        name: ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in placement.items() if value is not None)
        for name, placement in found.get("collections", {}).items()
    }
    progress = ThresholdProgress.from_dict(found["threshold_progress"])
    return {
        "store": ", ".join([found["store"], f"namespace {found['namespace']}", *engines]),
        "contents": f"{output.counted(len(categories), 'category', 'categories')}, {output.contents(categories)}",
        **({"unreadable": f"{unreadable}: run `zsvec doctor`"} if unreadable else {}),
        **({"profile": found["profile"]} if found["profile"] else {}),
        "encoders": {name: _HASH.sub(r"\1…", encoder) for name, encoder in found["encoders"].items()},
        "calibration": found["calibration"] + _ADVICE_ON_CALIBRATION.get(found["calibration"], ""),
        **({"threshold": str(progress)} if progress else {}),
        **({"speed": found["measured"]} if "measured" in found else {}),
        **({"collections": placements} if placements else {}),
    }


@app.command()
def doctor(
    context: typer.Context,
    store: Annotated[str | None, typer.Argument(metavar="URL|DIR", help="Store, as --store.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Make differing replicas of a catalog agree.")] = False,
    json: Json = False,
) -> None:
    """Check the encoders, GPU, hub, weights, store and each node of a server, and suggest fixes."""
    from zsvec.cli.doctor import examine, findings_table

    target = replace(context.obj, store=store) if store else context.obj
    findings = list(examine(target, repair=repair))
    if json:
        for finding in findings:
            output.print_json(finding.to_dict())
    else:
        output.out.print(findings_table(findings))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def init(context: typer.Context) -> None:
    """Create the collections of the store in advance. Later writers then need no permission to create collections.

    Without this command, the first write creates the collections.
    """
    with context.obj.open() as classifier:
        classifier.create()
        output.print_note(f"{classifier.location} is ready")


@app.command()
def gc(
    context: typer.Context,
    grace: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Delete only leftovers older than this. A small value makes recent changes final.  [default: safe for "
            "running writers and undo]",
        ),
    ] = None,
) -> None:
    """Delete leftovers of images and texts: left by killed writers, or replaced too long ago for an undo.

    Lists each change that can no longer be undone.
    """
    final: list[Change] = []
    with context.obj.open_store() as store:
        deleted = store.gc(grace, on_final=final.append)
    for change in final:
        output.print_note(f"final: {described(change)}")
    said = f"leftovers of {contents(deleted)} deleted; no category has changed" if deleted else "nothing to delete"
    output.print_note(said)


@images.command()
def drop(context: typer.Context, yes: Yes = False) -> None:
    """Delete all small copies of images, and stop storing copies. References stay.

    To store copies of new images again, use `--keep-images small` or the setting.
    """
    with context.obj.open_store() as store:
        confirm("Delete all small copies of images?", yes=yes, final=True)
        store.drop_images()
    output.print_note("all small copies of images are deleted, and none are kept any more")


@app.command()
def trust(revoke: Annotated[bool, typer.Option("--revoke", help="Withdraw the trust.")] = False) -> None:
    """Trust the zsvec.toml in this folder with every setting: code, stores, keys, services, weights, memory, deletions.

    Read the file first. An untrusted file may contain only harmless settings (see `zsvec docs settings`). A changed or
    moved file needs your trust again. Changes of code and weights that the file names need no new trust.
    """
    from zsvec.settings import trust as marks
    from zsvec.settings.settings import Settings

    file, folder = Settings.toml_files[1], Settings.marks()
    if revoke:
        marks.distrust(file, folder)
        output.print_note(f"{file.resolve()} is not trusted")
        return
    decided = marks.trust(file, folder)
    output.print_note(f"{file.resolve()} is trusted as it is now" + (", and sets:" if decided else ""))
    for name, value in marks.flattened(decided):
        is_secret = any(word in name.lower() for word in ("key", "token", "secret", "password"))
        output.print_note(f"{name} = {'***' if is_secret else repr(value)}")


app.add_typer(images, name="images")
