"""The commands that maintain the store and the installation: info, doctor, init, gc, optimize, images drop, trust."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zsvec.cli import output
from zsvec.cli.app import App, Json, Yes, app, confirm
from zsvec.cli.history import described
from zsvec.errors import InvalidInputError, needs_extra
from zsvec.types import SWITCH, Category, Change, SearchParams, ThresholdProgress, contents

if TYPE_CHECKING:
    from zsvec import SearchIndex

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
        categories = store.all_categories()
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
    cascade = {name: f"settles {part:.0%} of the references alone" for name, part in found.get("cascade", {}).items()}
    attached = {
        one["collection"]: one["problem"] or f"{output.counted(one['points'], 'point')}, {one['expert']}"
        for one in found.get("attached", ())
    }
    return {
        "store": ", ".join([found["store"], f"namespace {found['namespace']}", *engines]),
        "contents": f"{output.counted(len(categories), 'category', 'categories')}, {output.contents(categories)}",
        **({"unreadable": f"{unreadable}: run `zsvec doctor`"} if unreadable else {}),
        **({"labels": "many: an image may belong to several categories"} if found["labels"] == "many" else {}),
        **({"profile": found["profile"]} if found["profile"] else {}),
        "encoders": {name: _HASH.sub(r"\1…", encoder) for name, encoder in found["encoders"].items()},
        "calibration": found["calibration"] + _ADVICE_ON_CALIBRATION.get(found["calibration"], ""),
        **({"threshold": str(progress)} if progress else {}),
        **({"cascade": cascade} if cascade else {}),
        **({"no cascade": found["no_cascade"]} if "no_cascade" in found else {}),
        **({"search": _search_in_words(found["search"])} if "search" in found else {}),
        **({"speed": found["measured"]} if "measured" in found else {}),
        **({"collections": placements} if placements else {}),
        **({"attached": attached} if attached else {}),
    }


def _search_in_words(search: Mapping[str, Any]) -> str:
    """Returns how Qdrant searches, for `zsvec info`."""
    params = SearchParams.from_dict(search)
    facts = [f"{params}, in Qdrant" if "fusion" in search else f"in process; {params}, if index_budget is exceeded"]
    if "recall" in search:
        quality = f"recall@{search['k']} {search['recall']:.2%}, same label {search['same_label']:.2%}"
        facts.append(f"{quality}, measured {search['measured'][:10]}")
    elif not params.exact:
        facts.append("recall unknown: run `zsvec optimize --measure`")
    if "fusion" in search:
        facts.append(f"{search['fusion']} runs")
    return "; ".join(facts)


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
    nothing = "nothing to delete"
    for change in final:
        if change.what == SWITCH:
            output.print_note(f"final: {described(change)}; the state before it is deleted")
            nothing = "nothing else to delete"
        else:
            output.print_note(f"final: {described(change)}")
    said = f"leftovers of {contents(deleted)} deleted; no category has changed" if deleted else nothing
    output.print_note(said)


@app.command()
def optimize(
    context: typer.Context,
    oversampling: Annotated[
        float | None,
        typer.Option(metavar="X", help="Candidates for each reference that a query returns.  [default: as now, or 2]"),
    ] = None,
    ef: Annotated[
        int | None,
        typer.Option(
            "--ef",
            metavar="N",
            help="Search an HNSW graph, and keep N candidates.  [default: as now; 512 from 1,000,000 references on]",
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Remove the index: compare every reference again.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure recall and speed of several parameters on stored references.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE.png", help="Draw what --measure has found.")
    ] = None,
    json: Json = False,
) -> None:
    """Build an index of the references on a Qdrant server, for stores beyond index_budget.

    The server adds int8 copies of the vectors, and from a million references on an HNSW graph. Classification and
    writes go on meanwhile, and every process uses the index in its next batch. Repeat the command freely: it continues
    after an interruption, and shows the present state. --exact undoes it.

    --measure searches stored references, each without itself, and changes no parameter. `zsvec info` shows the recall.
    """
    if measure and (exact or oversampling is not None or ef is not None):
        raise InvalidInputError("--measure must be alone. Got --exact, --oversampling or --ef, too")
    if figure and not measure:
        raise InvalidInputError("--figure draws a measurement. Give --measure, too")
    with context.obj.open(runs_encoders=False) as classifier:
        if measure:
            _measure(classifier.index, figure, json=json)
            return
        before = classifier.index.params
        with output.steps("removing the index" if exact else "building the index") as step:
            params = classifier.index.optimize(
                exact=exact,
                oversampling=oversampling,
                ef=ef,
                on_progress=lambda encoder, share: step(f"{encoder}, {share:.0%}"),
            )
        found, neighbors = classifier.info(), classifier.settings.neighbors
    if json:
        output.print_json({"exact": params.exact, **asdict(params)})
    elif params == before:
        output.print_note(f"complete, and searched as before: {params}")
    else:
        output.print_note(f"every process uses these parameters from its next batch on: {params}")
    if "fusion" not in found.get("search", {}) and not params.exact:
        output.print_note(
            "with these settings, references are compared in process, not by the server: see index_budget"
        )
    for note in _notes_on_graph(params, neighbors, max(found["references"].values(), default=0)):
        output.print_note(note)


def _notes_on_graph(params: SearchParams, neighbors: int, references: int) -> Iterator[str]:
    """Yields notes on an HNSW graph that does not pay, and on candidates that have no effect.

    Args:
        params: How the server searches.
        neighbors: The setting: number of references that a query returns.
        references: Number of references of the largest expert.
    """
    from zsvec.curation.search_index import GRAPH_FROM

    if params.ef is None or params.oversampling is None:
        return
    if references < GRAPH_FROM:
        yield (
            f"an HNSW graph misses references, and pays only from about {GRAPH_FROM:,} references of one expert on. "
            f"This store has {references:,}: `zsvec optimize --exact` and then `zsvec optimize` scan all of them"
        )
    least = math.ceil(params.oversampling * neighbors)
    if params.ef < least:  # Qdrant keeps as many candidates as a query takes, or more
        yield (
            f"ef must be at least {least} to have an effect (oversampling {params.oversampling:g} times {neighbors} "
            f"neighbors), got {params.ef}. Give a larger one: the server keeps {least} candidates"
        )


def _measure(index: SearchIndex, figure: Path | None, *, json: bool) -> None:
    if figure:
        with needs_extra("report", "a figure"):
            from zsvec.evaluation.figures import search_quality
    with output.steps("measuring the search") as step:
        measurement = index.measure(on_progress=lambda done, images: step(f"{done} of {images} images"))
    if figure:
        figure.write_bytes(search_quality(measurement))
    if json:
        output.print_json(measurement.to_dict())
        return
    present, exact = index.params, measurement.rows[0].ms
    output.out.print(
        output.new_table(
            *("search", f"recall@{measurement.k}", "same label", "ms an image", "of exact"),
            rows=(
                (
                    f"{row.params}{' (in use)' if row.params == present else ''}",
                    f"{row.recall:.2%}",
                    f"{row.same_label:.2%}",
                    f"{row.ms:.2f}",
                    f"{row.ms / exact:.0%}",
                )
                for row in measurement.rows
            ),
        )
    )
    output.print_note(f"measured on {output.counted(measurement.images, 'reference image')}, each without itself")


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
