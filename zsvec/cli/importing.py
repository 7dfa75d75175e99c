"""The command that imports labelled images. Also reads the labelled images of `zsvec evaluate`."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import Json, KeepImages, Replace, Target, app
from zsvec.cli.app import Labels as LabelsOption
from zsvec.cli.archive import Categories, import_archive
from zsvec.cli.exporting import ExportYes, prepare_encoders
from zsvec.errors import ImageError, InvalidInputError, StoreError
from zsvec.types import Category, Labels, StoredReference

if TYPE_CHECKING:
    from zsvec import CategoryInput, ImageInput, ReferenceImage, StoredReferences

_FILES = (".csv", ".tsv", ".txt", ".json")
_SHOWN = 20  # categories named in a note
_NAMED = 3  # images named for a category in a note
_LOOKED_UP = 50  # images of a category of which a note says which other categories have them

Source = Annotated[
    Path,
    typer.Argument(
        metavar="DIR|FILE",
        help="Folder with a sub-folder for each category, CSV file (path, label), or COCO annotations (.json).",
    ),
]
ImportSource = Annotated[
    Path,
    typer.Argument(
        metavar="DIR|FILE",
        help="Folder with a sub-folder for each category, CSV file (path, label), COCO annotations (.json), or archive "
        "(.zsvec).",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option("--images", metavar="DIR", help="Folder that holds all paths of FILE.  [default: the folder of FILE]"),
]
Boxes = Annotated[bool, typer.Option("--boxes", help="Use each box of COCO annotations as an image.")]
PathColumn = Annotated[
    str | None, typer.Option("--path-column", metavar="NAME", help="Column of paths in a CSV file.  [default: path]")
]
LabelColumn = Annotated[
    str | None, typer.Option("--label-column", metavar="NAME", help="Column of labels in a CSV file.  [default: label]")
]
ParentColumn = Annotated[
    str | None,
    typer.Option("--parent-column", metavar="NAME", help="Column of parents in a CSV file.  [default: parent, if any]"),
]
Tree = Annotated[
    bool, typer.Option("--tree", help="Folders in folders are groups: each folder with images is a category.")
]

FollowLinks = Annotated[
    bool, typer.Option("--follow-links", help="Follow links that lead out of DIR. Only for a folder that you trust.")
]


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """The options of a file or folder with labels.

    Attributes:
        images: Folder of the images, to which paths in the file are relative. By default the folder of the file.
        boxes: Whether to take each box of COCO annotations as an image.
        path_column: Column of paths in a CSV file.
        label_column: Column of labels in a CSV file.
        parent_column: Column of parents in a CSV file.
        tree: Whether folders in folders are groups, as in `zsvec.inputs.folders.read_categories`.
        follow_links: Whether links may lead out of a folder.
        labels: Whether an image belongs to ``one`` category, or may belong to ``many``.
    """

    images: Path | None
    boxes: bool
    path_column: str | None
    label_column: str | None
    parent_column: str | None = None
    tree: bool = False
    follow_links: bool = False
    labels: Labels = "one"

    @property
    def columns(self) -> dict[str, str]:
        """The given names of columns, as arguments of `zsvec.inputs.tables.from_csv`."""
        names = {"path": self.path_column, "label": self.label_column, "parent": self.parent_column}
        return {column: name for column, name in names.items() if name is not None}


@app.command("import")
def import_(
    context: typer.Context,
    source: ImportSource,
    images: Images = None,
    boxes: Boxes = False,
    path_column: PathColumn = None,
    label_column: LabelColumn = None,
    parent_column: ParentColumn = None,
    tree: Tree = False,
    follow_links: FollowLinks = False,
    categories: Categories = None,
    definitions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Definition texts: JSON {category: text or [texts]}, or CSV (category, text)."
        ),
    ] = None,
    replace_: Replace = False,
    again: Annotated[
        bool, typer.Option("--again", help="Also add images and texts that were moved or removed since.")
    ] = False,
    keep_images: KeepImages = None,
    labels: LabelsOption = None,
    json: Json = False,
    yes: ExportYes = False,
) -> None:
    """Add a category for each sub-folder of DIR, with the name of the folder, or for each label in FILE.

    Repeat the command freely: stored images are not embedded again. Images that were moved, removed or corrected since,
    and the images of a category that was removed, renamed or merged, are reported and left out; --again adds them.
    Images that were erased by `zsvec forget` are added again, because no trace of them is left.

    Unreadable images, folders without a readable image, links out of DIR and unusable rows are reported and skipped.
    With --replace, a link out of DIR or an unusable row stops the command before anything is written.

    --follow-links takes the images of a folder of links, such as a subset of your photos. Use it only for a folder that
    you trust: a link may lead to any image that you may read.

    An archive of `zsvec export` is copied; no encoder runs. --categories, --replace, --keep-images and --json apply. A
    category that differs in the store stays unless you give --replace: it is named, and the exit code is 1.
    """
    from zsvec.inputs.folders import read_definitions

    if _is_archive(context, source, categories):
        import_archive(context.obj, source, categories=categories, replace=replace_, keep_images=keep_images, json=json)
        return
    texts = read_definitions(definitions) if definitions else {}
    options = FileOptions(
        images=images,
        boxes=boxes,
        path_column=path_column,
        label_column=label_column,
        parent_column=parent_column,
        tree=tree,
        follow_links=follow_links,
        labels=_labels(context.obj, labels),
    )
    _import_images(
        context,
        source,
        options,
        definitions=texts,
        replace_=replace_,
        again=again,
        keep_images=keep_images,
        labels=labels,
        json=json,
        yes=yes,
    )


def _import_images(
    context: typer.Context,
    source: Path,
    options: FileOptions,
    *,
    definitions: Mapping[str, Sequence[str]],
    replace_: bool,
    again: bool,
    keep_images: str | None,
    labels: str | None,
    json: bool,
    yes: bool,
) -> None:
    found = _read(source, options, definitions=definitions, strict=replace_)
    number = _images_in(found)
    unreadable: list[str] = []

    def report(source: str, error: ImageError) -> None:
        unreadable.append(source)
        output.print_note(f"left out: {error}")

    committed: list[Category] = []
    withdrawn: list[StoredReference] = []
    shared: dict[str, tuple[StoredReference, Sequence[str]]] = {}  # by hash

    def keep(category: Category) -> None:
        committed.append(category)
        if json:
            output.print_json(category.to_dict())

    start = time.monotonic()
    with ExitStack() as opened:
        classifier = opened.enter_context(context.obj.open(keep_images=keep_images, labels=labels))
        prepare_encoders(classifier, yes=yes, adds=True)
        counted = opened.enter_context(output.progress("importing", number))
        before = {category.name: category for category in classifier.categories()}
        inputs = (replace(category, images=counted(_images_of(category))) for category in found)
        leave_out = None if again else withdrawn.append
        try:
            with classifier.history.one_change("import"):
                classifier.add_categories(
                    inputs,
                    replace=replace_,
                    on_error=report,
                    on_commit=keep,
                    on_withdrawn=leave_out,
                    on_shared=lambda one, others: shared.setdefault(one.hash, (one, others)),
                )
        except KeyboardInterrupt:
            output.print_note(
                f"interrupted: {len(committed)} of {output.counted(len(found), 'category', 'categories')} are stored. "
                "Repeat the command to go on: stored images are not embedded again"
            )
            raise
        names = {category.name for category in committed}
        notes = list(_notes_on_withdrawn(classifier.references, names | before.keys(), withdrawn))
        standing = None if json else (classifier.info(), classifier.categories())
    seconds = time.monotonic() - start
    in_several = [] if options.labels == "many" else list(shared.values())
    for note in [*_notes_on_shared(in_several), *notes]:
        output.print_note(note)
    stored = [category for category in found if category.name in names]
    bad = set(unreadable)
    failed = sum(_source_of(image) in bad for category in stored for image in _images_of(category))
    new = sum(c.images - (before[c.name].own_images if c.name in before else 0) for c in committed)
    omitted = {one.category for one in withdrawn}
    kept_out = sum(one.category in names and one.modality == "image" for one in withdrawn)
    known = _images_in(stored) - failed - new - kept_out
    there = f", {known} stored before, or the same as another" if known > 0 and not replace_ else ""
    number_read = _images_in(stored) - failed - kept_out + len(unreadable)
    said = f"{output.counted(len(stored), 'category', 'categories')}, {output.counted(number_read, 'image')}"
    output.print_note(f"{said} ({len(unreadable)} unreadable{there}) in {seconds:.1f} s")
    print_links(source, (image for category in found for image in category.images or ()), options)
    left = [c.name for c in found if c.name not in names and (c.name in before or c.name not in omitted)]
    reasons = {
        "left as they were, because images are unreadable:": [name for name in left if name in before],
        "not made categories, because no image is readable:": [name for name in left if name not in before],
    }
    for reason, names_left in reasons.items():
        if names_left:
            output.print_note(f"{reason} {', '.join(names_left)}")
    if standing:
        output.print_standing(*standing)
    if number and len(unreadable) == number:
        raise typer.Exit(1)


def _is_archive(context: typer.Context, source: Path, categories: Sequence[str] | None) -> bool:
    """Returns whether the source is an archive; raises BadParameter for an option that is not for the source."""
    from zsvec.curation.archive import is_archive

    if not is_archive(source):
        if categories:
            raise typer.BadParameter("--categories needs an archive: give a DIR with the folders of these categories")
        in_file = os.path.isfile(source)  # noqa: PTH113 - Path.is_file raises for a name that is too long
        if in_file and source.suffix.lower() not in _FILES:
            raise InvalidInputError(
                f"{source} must be a folder, a file that ends with {', '.join(_FILES)}, or an archive of `zsvec "
                "export`, got another file, or a damaged archive. Unpack a zip of images, and give the folder"
            )
        return False
    taken = {"source", "categories", "replace_", "keep_images", "json"}
    for parameter in context.command.params:
        if parameter.name not in taken and context.params[str(parameter.name)] != parameter.get_default(context):
            raise typer.BadParameter(f"{parameter.opts[0]} has no meaning for an archive: leave it out")
    return True


def is_file(source: Path, options: FileOptions) -> bool:
    """Returns whether the source is a file with labels. In a folder, the names of the sub-folders are the labels.

    Raises:
        InvalidInputError: The file has an unsupported suffix.
        typer.BadParameter: An option is given, and the source is not of the kind that the option needs.
    """
    in_file = os.path.isfile(source)  # noqa: PTH113 - Path.is_file raises for a name that is too long
    suffix = source.suffix.lower()
    if in_file and suffix not in _FILES:
        raise InvalidInputError(f"{source} is not a folder, and no file that ends with {' or '.join(_FILES)}: give one")
    if options.follow_links and in_file:
        raise typer.BadParameter("--follow-links needs a DIR: the paths of a file must stay in its folder")
    if options.tree and in_file:
        raise typer.BadParameter("--tree needs a DIR: leave it out for a file, which names parents in a column")
    if options.images is not None and not in_file:
        raise typer.BadParameter("--images needs a FILE: the images of a folder are in it")
    if options.boxes and not (in_file and suffix == ".json"):
        raise typer.BadParameter("--boxes needs COCO annotations, a file that ends with .json")
    if options.columns and not (in_file and suffix != ".json"):
        if options.parent_column is not None:
            raise typer.BadParameter("--parent-column needs a CSV file")
        raise typer.BadParameter("--path-column and --label-column need a CSV file")
    return in_file


def read_file(file: Path, options: FileOptions, *, strict: bool) -> list[CategoryInput]:
    """Returns the categories of a CSV file or of COCO annotations. Reports images with too many labels.

    Args:
        file: A file that `is_file` accepts.
        options: The options of the file.
        strict: Whether to raise an error for an unusable row instead of reporting and skipping the row.
    """
    with output.left_out() as report:
        on_error = None if strict else report
        if file.suffix.lower() == ".json":
            from zsvec.inputs.coco import from_coco

            found = from_coco(file, options.images, boxes=options.boxes, labels=options.labels, on_error=on_error)
        else:
            from zsvec.inputs.tables import from_csv

            found = from_csv(file, options.images, **options.columns, on_error=on_error)
    labels = Counter(image for category in found for image in {_source_of(image) for image in _images_of(category)})
    several = [image for image, number in labels.items() if number > 1]
    if several and options.labels == "one":
        output.print_note(f"images under several labels: {len(several)}, such as {several[0]}")
    return found


def _labels(target: Target, given: str | None) -> Labels:
    """Returns the labels of an image in the store of an import: the option, else the setting, else as the store."""
    settings = target.settings(labels=given)
    if settings.labels is not None:
        return settings.labels
    with settings.open_store() as store:
        return store.labels()


def _read(
    source: Path, options: FileOptions, *, definitions: Mapping[str, Sequence[str]], strict: bool
) -> list[CategoryInput]:
    from zsvec.inputs.folders import read_categories, refused, with_definitions

    if not is_file(source, options):
        with output.left_out() as report:
            found = read_categories(
                source,
                definitions,
                tree=options.tree,
                follow_links=options.follow_links,
                on_outside=refused if strict else report,
            )
        if options.tree:
            return found
        for note in _notes_on(source, found, follow_links=options.follow_links):
            output.print_note(note)
        return found
    found = with_definitions(read_file(source, options, strict=strict), definitions)
    if bare := [category.name for category in found if not _images_of(category)]:
        output.print_note(f"no images for the definitions of {', '.join(bare)}")
    return found


def print_links(folder: Path, images: Iterable[object], options: FileOptions) -> None:
    """Prints how many links led out of a folder to the images, if links are followed."""
    from zsvec.inputs.folders import links_out_of

    if not options.follow_links:
        return
    links = links_out_of(folder, (image for image in images if isinstance(image, Path)))
    output.print_note(f"{output.counted(len(links), 'link')} led out of {folder}")


def _notes_on(folder: Path, found: Sequence[CategoryInput], *, follow_links: bool) -> Iterator[str]:
    """Yields notes on skipped files and folders, and on images in nested folders."""
    from zsvec.inputs.encoded import SUFFIXES
    from zsvec.inputs.folders import category_folders, other_files

    folders = category_folders(folder, follow_links=follow_links, on_outside=lambda _: None)
    if loose := sum(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
        yield f"images of no category, because they are in no sub-folder: {loose}"
    bare = [category.name for category in found if not _images_of(category)]
    notes = {
        "left out, because there are no images in the folders:": sorted(folders.keys() - {c.name for c in found}),
        "no images in the folders of the definitions of": [name for name in bare if name in folders],
        "no folder for the definitions of": [name for name in bare if name not in folders],
    }
    yield from (f"{note} {', '.join(names)}" for note, names in notes.items() if names)
    nested = Counter(
        category.name
        for category in found
        for image in _images_of(category)
        if isinstance(image, Path) and image.parent != folders[category.name]
    )
    if nested:
        counts = ", ".join(f"{name} {count}" for name, count in nested.items())
        yield f"images of sub-folders belong to the category of the folder above: {counts}"
    if others := sum((other_files(path, folder, follow_links=follow_links) for path in folders.values()), Counter()):
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(5))
        yield f"files left out, because they are no images by their names: {others.total()} ({kinds})"


def _notes_on_shared(shared: Sequence[tuple[StoredReference, Sequence[str]]]) -> Iterator[str]:
    """Yields a note if images were added that other categories have, too."""
    if shared:
        one, others = shared[0]
        in_which = ", ".join(sorted([*others, one.category]))
        yield f"images in several categories: {len(shared)}, such as {one.source} ({in_which})"


def _notes_on_withdrawn(
    references: StoredReferences, categories: Collection[str], withdrawn: Sequence[StoredReference]
) -> Iterator[str]:
    """Yields notes on references that were left out of an import.

    Args:
        references: The references of the store.
        categories: Names of the present categories.
        withdrawn: References that were left out.
    """
    if not withdrawn:
        return
    yield (
        f"left out, because they or their categories were moved, renamed or removed: {output.number_of(withdrawn)}. "
        "Give --again to add them"
    )
    by_category: dict[str, list[StoredReference]] = {}
    for one in withdrawn:
        by_category.setdefault(one.category, []).append(one)
    shown = list(by_category.items())[:_SHOWN]
    holders: Mapping[str, Sequence[str]] = {}
    with suppress(StoreError):  # the import is committed
        holders = references.holders([one.hash for _, some in shown for one in some[:_LOOKED_UP]])
    for name, some in shown:
        sources = ", ".join([one.source for one in some[:_NAMED]] + ["…"] * (len(some) > _NAMED))
        elsewhere = sorted({other for one in some for other in holders.get(one.hash, ())} - {name})
        now_in = f", now in {', '.join(elsewhere)}" if elsewhere else ""
        gone = "" if name in categories else " (no longer a category)"
        yield f"  {name}{gone}: {output.number_of(some)}{now_in} ({sources})"
    if len(by_category) > _SHOWN:
        yield f"  and {output.counted(len(by_category) - _SHOWN, 'more category', 'more categories')}"


def _images_of(category: CategoryInput) -> list[ImageInput | ReferenceImage]:
    return list(category.images or ())


def _images_in(categories: Sequence[CategoryInput]) -> int:
    return sum(len(_images_of(category)) for category in categories)


def _source_of(image: ImageInput | ReferenceImage) -> str:
    """Returns the name that errors give to an image."""
    from zsvec import ReferenceImage
    from zsvec.inputs import images

    return images.source_of(image.image if isinstance(image, ReferenceImage) else image)
