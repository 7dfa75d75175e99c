"""Finds images in folders, and reads categories from sub-folders and from files of definitions."""

from __future__ import annotations

import csv
import io
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import accumulate, islice
from operator import attrgetter
from pathlib import Path
from typing import NoReturn, TypeAlias

from pydantic import TypeAdapter, ValidationError

from zsvec.errors import InvalidInputError, shown
from zsvec.inputs.categories import CategoryInput, checked_name, checked_parent, checked_path, checked_texts
from zsvec.inputs.encoded import SUFFIXES
from zsvec.inputs.files import inside, read_named
from zsvec.types import PARENT_MARK

OnOutside: TypeAlias = Callable[[InvalidInputError], object]

_NAMED = 5  # links that an error names
_IF_TRUSTED = (
    "if you trust the folder, `zsvec import` or `zsvec evaluate` it with --follow-links (follow_links=True in Python)"
)
INSTEAD_OF_A_LINK = f"remove it, give what it leads to, or, {_IF_TRUSTED}"
_DEFINITIONS = TypeAdapter(dict[str, str | list[str]])


def unlisted(error: OSError) -> NoReturn:
    """Raises InvalidInputError for a folder that cannot be listed."""
    reason = f"cannot list the folder {error.filename!r}: {error.strerror}"
    raise InvalidInputError(f"{reason}; give an existing folder that you may read") from error


def refused(error: InvalidInputError) -> NoReturn:
    """Raises the InvalidInputError for a link that is not followed."""
    raise error


def find_images(
    folder: Path,
    *,
    root: Path | None = None,
    follow_links: bool = False,
    on_error: Callable[[OSError], object] = unlisted,
    on_outside: OnOutside = refused,
) -> list[Path]:
    """Returns the sorted paths of all image files in a folder and its sub-folders.

    Images are recognised by suffix. Hidden files and folders are skipped. Symbolic links are followed within `root`;
    each folder is visited once, and a link to `root` is not followed. Links that lead out of `root` are refused,
    because a folder from an untrusted source may link to any file of the user.

    Args:
        folder: The folder, or a link to one.
        root: Folder that links must not leave; by default `folder`.
        follow_links: Whether links may leave `root`. Links to missing files, pipes, sockets and devices are then
            refused.
        on_error: Called with the error of each folder that is missing or cannot be listed. The folder is then skipped.
            The default raises InvalidInputError.
        on_outside: Called with the error of each link that is refused. The link is then skipped. The default raises the
            error.

    Raises:
        InvalidInputError: A folder cannot be listed, or a link is refused.
    """
    folder = checked_path("folder", folder)
    root = root or folder
    found = _files(folder, root, follow_links, on_error, on_outside)
    images = (path for path in found if path.suffix.lower() in SUFFIXES)
    return sorted(path for path in images if _is_followed(path, root, follow_links, on_outside))


def links_out_of(folder: Path, images: Iterable[Path]) -> set[Path]:
    """Returns the links in a folder that lead out of it to images, which `find_images` has found there."""
    real, found = os.path.realpath(folder), set[Path]()
    for image in images:
        steps = list(accumulate(image.relative_to(folder).parts, Path.joinpath, initial=folder))[1:]
        out = (step for step in steps if step.is_symlink() and not Path(os.path.realpath(step)).is_relative_to(real))
        found.update(islice(out, 1))
    return found


def other_files(folder: Path, root: Path, *, follow_links: bool = False) -> Counter[str]:
    """Counts, by suffix, the files that `find_images` skips because they do not have the suffix of an image."""
    files = _files(folder, root, follow_links, unlisted, lambda _: None)
    suffixes = (path.suffix.lower() for path in files)
    return Counter(suffix or "without a suffix" for suffix in suffixes if suffix not in SUFFIXES)


def _files(
    folder: Path, root: Path, follow_links: bool, on_error: Callable[[OSError], object], on_outside: OnOutside
) -> Iterator[Path]:
    visited = set()
    if folder != root:
        with suppress(OSError):
            visited.add(_identity(root))  # a link from a category to its root would add all other categories
    waiting = [folder]  # os.walk is recursive before Python 3.12, and fails in a deep folder
    while waiting:
        parent = waiting.pop()
        try:
            identity = _identity(parent)
            if identity in visited:
                continue
            visited.add(identity)
            found = _listed(parent, follow_links)
        except OSError as error:
            on_error(error)
            continue
        folders = []
        for path, is_folder in found:
            if not is_folder:
                yield path
            elif _is_followed(path, root, follow_links, on_outside):
                folders.append(path)
        waiting += reversed(folders)


def _listed(folder: Path, follow_links: bool) -> list[tuple[Path, bool]]:
    """Returns the sorted paths in a folder that are not hidden, and whether each is a folder.

    With `follow_links`, a broken link counts as a folder: `_files` then reports it, also without a suffix.
    """
    with os.scandir(folder) as entries:
        shown = sorted((entry for entry in entries if not entry.name.startswith(".")), key=attrgetter("name"))
    found = [(folder / entry.name, entry) for entry in shown]
    return [(path, _is_folder(entry) or (follow_links and _is_broken(path))) for path, entry in found]


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_broken(path: Path) -> bool:
    """Returns whether a path is a link to nothing, to itself or through too many links."""
    return os.path.islink(path) and not os.path.exists(path)  # noqa: PTH110, PTH114 - a name may be too long


def _is_followed(path: Path, root: Path, follow_links: bool, on_outside: OnOutside) -> bool:
    """Returns whether a path is no link, or a link to follow. Calls `on_outside` with the error of any other link."""
    try:
        if os.path.islink(path):  # noqa: PTH114 - a name may be too long
            _check_target(path) if follow_links else inside(root, path, otherwise=INSTEAD_OF_A_LINK)
    except InvalidInputError as exc:
        on_outside(exc)
        return False
    return True


def _check_target(link: Path) -> None:
    """Raises InvalidInputError for a link to anything but a regular file or a folder."""
    try:
        mode = link.stat().st_mode
    except OSError as exc:
        raise InvalidInputError(f"the link {str(link)!r} cannot be followed: {exc.strerror}; remove it") from exc
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InvalidInputError(f"{str(link)!r} must be a link to a file or folder, not to a device or pipe; remove it")


def read_categories(
    folder: str | os.PathLike[str],
    definitions: Mapping[str, Sequence[str]] | None = None,
    *,
    tree: bool = False,
    follow_links: bool = False,
    on_outside: OnOutside = refused,
) -> list[CategoryInput]:
    """Reads categories from a folder: the images of each category are in a sub-folder with its name.

    ```python
    clf.add_categories(zsvec.read_categories("photos", {"cat": ["a domestic cat"]}))
    ```

    Args:
        folder: Folder with a sub-folder of images per category. Images are recognised by suffix; hidden files are
            skipped. The folder is untrusted: links must not leave it, unless `follow_links` is true.
        definitions: Definition texts by category, also of categories without a sub-folder.
        tree: Whether nested folders are a tree: every folder that has images itself is a category, and the folders
            above are its parent: ``animal > bird``. By default, a sub-folder and all folders in it are one category.
        follow_links: Whether links may lead out of `folder`. Each folder is visited once in a category, and once in a
            tree. The images keep the paths through the links. Links to missing files, pipes, sockets and devices are
            refused. Only for a folder that you trust: a link may lead to any image that you may read.
        on_outside: Called with the error of each link that is refused: by default a link out of `folder`. The link is
            then skipped. The default raises the error.

    Returns:
        The categories that have images, definition texts, or both, for `Classifier.add_categories`, sorted by name.
        Their images are paths of files that are not read yet.

    Raises:
        InvalidInputError: `folder` is not a folder, cannot be listed or has no sub-folders; the name of a sub-folder or
            of a definition is not a valid category name; two sub-folders name the same category; a definition is not a
            list of texts; a link is refused; or there is no category.
    """
    folder = checked_path("folder", folder)
    folders = category_folders(folder, follow_links=follow_links, on_outside=on_outside)
    found_in = partial(find_images, root=folder, follow_links=follow_links, on_outside=on_outside)
    if tree:
        given = _with_parents(folder, found_in(folder))
    else:
        given = [CategoryInput(name=name, images=found_in(path)) for name, path in folders.items()]
    defined = with_definitions(given, {} if definitions is None else definitions)
    found = [category for category in defined if category.images or category.texts is not None]
    if not found:
        raise InvalidInputError(
            f"{folder} has no images in its sub-folders: put the images of each category in a sub-folder"
        )
    return found


def _with_parents(folder: Path, images: Iterable[Path]) -> list[CategoryInput]:
    """Returns a category for each folder in `folder` with images. The folders between the two are the parent."""
    by_folder: dict[Path, list[Path]] = {}
    for path in images:
        if path.parent != folder:
            by_folder.setdefault(path.parent, []).append(path)
    found: dict[str, tuple[Path, CategoryInput]] = {}
    for place, paths in by_folder.items():
        *above, last = place.relative_to(folder).parts
        if split := [part for part in above if PARENT_MARK.strip() in part]:
            raise InvalidInputError(f"the name of a folder above a category must not have a '>'. Got {split[0]!r}")
        name = checked_name(last)
        category = CategoryInput(name=name, images=paths, parent=checked_parent(PARENT_MARK.join(above), name))
        same, _ = found.setdefault(name, (place, category))
        if same != place:
            raise InvalidInputError(f"{str(same)!r} and {str(place)!r} name the same category: rename one")
    return [category for _, category in found.values()]


def with_definitions(
    categories: Iterable[CategoryInput], definitions: Mapping[str, Sequence[str]]
) -> list[CategoryInput]:
    """Returns categories with their definition texts, sorted by name; adds categories that have only definitions.

    Args:
        categories: Categories without texts. Their names must be unique.
        definitions: Definition texts by category name. An invalid name or text raises InvalidInputError.
    """
    if not isinstance(definitions, Mapping):
        got = shown(definitions)
        raise InvalidInputError(f"definitions must be a mapping of names to lists of str. Got {got} instead")
    texts: dict[str, list[str]] = {}
    for name, given in definitions.items():
        of_category = texts.setdefault(checked_name(name), [])
        of_category += checked_texts(given, f"the definitions of {shown(name)}", "a definition text")
    by_name = {category.name: category for category in categories}
    return [
        replace(by_name.get(name, CategoryInput(name=name)), texts=texts.get(name))
        for name in sorted({*by_name, *texts})
    ]


def category_folders(folder: Path, *, follow_links: bool = False, on_outside: OnOutside = refused) -> dict[str, Path]:
    """Returns the sub-folders of a folder, by category name.

    Skips hidden folders, the folder `__MACOSX` that macOS adds to archives, and the collections of an embedded store in
    the same folder.

    Args:
        folder: The folder, or a link to one.
        follow_links: As in `find_images`.
        on_outside: As in `find_images`.

    Raises:
        InvalidInputError: `folder` is not a folder, cannot be listed or has no sub-folders. Also if a sub-folder's name
            is not a valid category name, two sub-folders name the same category, or a link is refused.
    """
    folder = checked_path("folder", folder)
    if not os.path.isdir(folder):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
        if not os.path.lexists(folder):
            raise InvalidInputError(f"{folder} does not exist: check the path")
        raise InvalidInputError(f"{folder} is not a folder: give a folder with a sub-folder of images per category")
    folders: dict[str, Path] = {}
    links: list[str] = []
    try:
        paths = [path for path, is_folder in _listed(folder, follow_links) if is_folder]
    except OSError as exc:
        raise InvalidInputError(f"{folder} cannot be listed: {exc.strerror}; give one that you may read") from exc
    stores = [path.name.removesuffix("catalog") for path in paths if path.name.endswith("__catalog")]
    for path in paths:
        if path.name == "__MACOSX" or path.name.startswith(tuple(stores)):
            continue
        if not _is_followed(path, folder, follow_links, on_outside):
            links.append(path.name)
            continue
        same = folders.setdefault(checked_name(path.name), path)
        if same is not path:
            raise InvalidInputError(f"{str(same)!r} and {str(path)!r} name the same category: put them together")
    if links and not folders:
        raise InvalidInputError(
            f"the sub-folders of {folder} are links that are not followed: "
            f"{', '.join(links[:_NAMED])}{', …' * (len(links) > _NAMED)}. "
            + ("Put folders there" if follow_links else f"Put the folders themselves there, or {_IF_TRUSTED}")
        )
    if not folders:
        raise InvalidInputError(
            f"{folder} has no sub-folders: put the images of each category in a sub-folder of that name"
        )
    return folders


def read_definitions(file: Path) -> dict[str, list[str]]:
    """Reads definition texts by category, from a CSV file ``category,text`` or JSON ``{category: text or [texts]}``.

    Raises:
        InvalidInputError: The file cannot be read, or does not have this form.
    """
    try:
        content = read_named(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInputError(f"the definitions {file} cannot be read: {exc}") from exc
    return _from_csv(file, content) if file.suffix.lower() == ".csv" else _from_json(file, content)


def _from_json(file: Path, content: str) -> dict[str, list[str]]:
    try:
        found = _DEFINITIONS.validate_json(content)
    except ValidationError as exc:
        problem = exc.errors()[0]["msg"]
        raise InvalidInputError(
            f"the definitions {file} are not JSON of the form {{category: text or [texts]}}: {problem}"
        ) from exc
    return {name: [texts] if isinstance(texts, str) else texts for name, texts in found.items()}


def _from_csv(file: Path, content: str) -> dict[str, list[str]]:
    rows = csv.DictReader(io.StringIO(content, newline=""), restval="", strict=True)
    texts: dict[str, list[str]] = {}
    try:
        if not {"category", "text"} <= set(rows.fieldnames or ()):
            raise InvalidInputError(
                f"the definitions {file} need the columns category and text. "
                f"Got {', '.join(rows.fieldnames or ['none'])}"
            )
        for row in rows:
            texts.setdefault(row["category"], []).append(row["text"])
    except csv.Error as exc:
        raise InvalidInputError(f"the definitions {file} are no CSV after line {rows.line_num}: {exc}") from exc
    return texts
