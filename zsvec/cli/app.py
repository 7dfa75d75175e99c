"""The application: the options that stand before a command, and those that commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from zsvec import __version__
from zsvec.cli import output
from zsvec.cli.process import harmless
from zsvec.errors import CategoryNotFoundError, InvalidInputError, StoreError

if TYPE_CHECKING:
    from zsvec import Category, Classifier, Settings
    from zsvec.store import Store


@contextmanager
def _harmless_errors() -> Iterator[None]:
    """Errors of usage name what was given, and a shell gives file names for a pattern."""
    try:
        yield
    except Exception as exc:  # typer's own, of classes that lie elsewhere in other versions
        if isinstance(message := getattr(exc, "message", None), str):
            exc.message = harmless(message)  # type: ignore[attr-defined]
        raise


class _Group(TyperGroup):
    """The commands. An option that stands before the command, given behind it, is told where it belongs."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _harmless_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            with _harmless_errors():
                return super().invoke(ctx)
        except Exception as exc:  # the class of an unknown option lies elsewhere in other versions of typer
            option = getattr(exc, "option_name", None)
            if any(option in parameter.opts for parameter in self.params):
                raise typer.BadParameter(
                    f"{option} stands before the command: zsvec {option} … {ctx.invoked_subcommand} …"
                ) from exc
            raise


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Classify images by categories that live in Qdrant. Change categories at any time, without retraining.\n\n"
    "Start with `zsvec demo`; then `zsvec --profile offline import FOLDER` and "
    "`zsvec --profile offline classify PHOTO`.",
    epilog="Settings also come from the environment (ZSVEC_STORE, ZSVEC_PROFILE, ZSVEC_API_KEY …) or from zsvec.toml. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
)

HOW_TO_MAKE_A_STORE = "`zsvec import` and `zsvec add` make it"

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the category.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]
Explain = Annotated[bool, typer.Option(help="Show rankings and nearest references by expert.")]
Stats = Annotated[bool, typer.Option("--stats", help="Show rate, stages and queues live on stderr.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace stored images, or texts, instead of adding to them.")]
Yes = Annotated[bool, typer.Option("--yes", help="Skip the confirmation prompt.")]
KeepImages = Annotated[
    str | None,
    typer.Option(
        "--keep-images",
        metavar="small|none",
        help="Keep small copies of the images.  [default: as the store; a new store keeps them]",
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="none|uncertain|all",
        help="Images to keep in the inbox.  [default: the setting, or none]",
    ),
]
Fusion = Annotated[
    str | None, typer.Option("--fusion", metavar="NAME", help="Fusion strategy; see `zsvec docs decides`.")
]


@dataclass(frozen=True)
class Target:
    """The global options, which stand before the command."""

    store: str | None
    namespace: str | None
    profile: str | None

    @contextmanager
    def open(self, **settings: Any) -> Iterator[Classifier]:
        """Open the classifier with these options."""
        import zsvec

        self.settings()  # refuses a store that is not to last
        options = {"namespace": self.namespace, "profile": self.profile, **settings}
        with zsvec.open(self.store, **options) as classifier, _nearest_name(classifier.categories):
            yield classifier

    def settings(self) -> Settings:
        """The settings with these options.

        Raises:
            InvalidInputError: They cannot be used, or the store would be gone when the command ends.
        """
        from zsvec.settings.settings import load_settings

        settings = load_settings(store=self.store, namespace=self.namespace, profile=self.profile)
        if settings.store == ":memory:":
            raise InvalidInputError(
                "the store ':memory:' would be gone when this command ends: give a folder or the URL of a server"
            )
        return settings

    @contextmanager
    def open_store(self) -> Iterator[Store]:
        """Open the store alone, for what needs no encoders: those of the profile may be others.

        Raises:
            StoreError: It was never written.
        """
        with self.settings().open_store() as store, _nearest_name(store.categories):
            if not store.encoders():
                raise StoreError(f"there is no store in {store.location} yet: {HOW_TO_MAKE_A_STORE}")
            yield store


@contextmanager
def _nearest_name(categories: Callable[[], Sequence[Category]]) -> Iterator[None]:
    """Add the nearest name, if there is one, to the error that there is no category of a name."""
    try:
        yield
    except CategoryNotFoundError as exc:
        near = get_close_matches(exc.name, [category.name for category in categories()], n=1)
        error = CategoryNotFoundError(f"{exc}{f'; did you mean {near[0]!r}?' if near else ''}")
        error.name = exc.name
        raise error from exc


def confirm(question: str, *, yes: bool) -> None:
    """Go on only if the answer is yes, where somebody can answer.

    Args:
        question: Asked on stderr.
        yes: Whether the answer was given in advance.
    """
    if not yes and is_terminal():
        with answering():
            typer.confirm(question, abort=True, err=True)


@contextmanager
def answering() -> Iterator[None]:
    """Around a question: Typer makes no difference between a no and Ctrl-C."""
    try:
        yield
    except typer.Abort as exc:
        if isinstance(exc.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def is_terminal() -> bool:
    """Whether somebody can answer."""
    return sys.stdin.isatty()


def images_at(path: str | Path) -> Sequence[str | Path]:
    """Returns the images in a folder, or the path itself if it is no folder."""
    is_folder = os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a name that is too long
    return images_in(Path(path)) if is_folder else [path]


def images_in(folder: Path) -> list[Path]:
    """Returns the images in a folder. Notes name links that lead out of it, which are left out."""
    from zsvec.inputs.folders import find_images

    with output.left_out() as report:
        return find_images(folder, on_outside=report)


def check_exists(path: str | Path) -> None:
    """Refuse a path that does not exist, as who reads it would, but before encoders are loaded.

    Raises:
        ImageError: It does not exist.
    """
    from zsvec import content_hash

    if not os.path.exists(path):  # noqa: PTH110 - Path.exists raises for a name that is too long
        content_hash(path)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zsvec {__version__}")
        raise typer.Exit


@app.callback()
def target(
    context: typer.Context,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL|DIR", help="Qdrant server, or folder of an embedded store.  [default: ./zsvec-store]"
        ),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(metavar="NS", help="Prefix of the store's collections.  [default: zsvec]"),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Encoders: base (CLIP and DINOv2), plus (a stronger CLIP), offline (no download), or your own "
            "profile.  [default: base]",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keep the global options for the command."""
    context.obj = Target(store, namespace, profile)
