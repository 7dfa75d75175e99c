"""The command-line application.

Holds the global options, options shared by several commands, and helpers that check paths and ask for confirmation.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from zsvec import __version__
from zsvec.cli import output
from zsvec.errors import CategoryNotFoundError, InvalidInputError, StoreError, harmless

if TYPE_CHECKING:
    from zsvec import Category, Classifier, Settings
    from zsvec.store import Store

F = TypeVar("F", bound=Callable[..., Any])

_MAY_BE_EMPTY = {"parent"}  # `zsvec set NAME --parent ''` removes the parent


@contextmanager
def _harmless_errors() -> Iterator[None]:
    """Escapes control characters in usage errors, which may quote file names that a shell expanded from a pattern."""
    try:
        yield
    except Exception as exc:  # the module of typer's errors differs between versions
        if isinstance(message := getattr(exc, "message", None), str):
            exc.message = harmless(message)  # type: ignore[attr-defined]
        raise


class _Conventions:
    """Mixin of commands and groups.

    Help names a flag without a type, as ``--json`` instead of ``--json <bool>``. An empty value is refused, because an
    empty path would be the working directory.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        given = list(args)
        rest = super().parse_args(ctx, args)  # type: ignore[misc]
        if ctx.resilient_parsing:  # the shell completes a line
            return rest
        values, _, _ = self.make_parser(ctx).parse_args(args=given)  # type: ignore[attr-defined]
        for parameter in self.get_params(ctx):
            value = values.get(parameter.name)
            if parameter.name not in _MAY_BE_EMPTY and "" in (value if isinstance(value, list | tuple) else [value]):
                raise typer.BadParameter("the value must not be empty. Got ''", ctx=ctx, param=parameter)
        return rest

    def get_params(self, ctx: Any) -> Any:
        parameters = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class _Command(_Conventions, TyperCommand):
    pass


class _Group(_Conventions, TyperGroup):
    pass


class App(typer.Typer):
    """An application, or a group of commands such as `zsvec inbox`."""

    def __init__(self, *, cls: type[TyperGroup] = _Group, **options: Any) -> None:
        super().__init__(cls=cls, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Returns a decorator that registers a function as a command."""
        return super().command(name, cls=_Command, **options)


class _AllCommands(_Group):
    """The group of all commands. Escapes usage errors, and explains a global option that follows the command."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        with _harmless_errors():
            return super().make_context(*args, **options)

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            with _harmless_errors():
                return super().invoke(ctx)
        except Exception as exc:  # the module of typer's errors differs between versions
            option = getattr(exc, "option_name", None)
            if any(option in parameter.opts for parameter in self.params):
                raise typer.BadParameter(
                    f"{option} stands before the command: zsvec {option} … {ctx.invoked_subcommand} …"
                ) from exc
            raise


app = App(
    cls=_AllCommands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Classify images by categories that live in Qdrant. Change categories at any time, without retraining.\n\n"
    "Start with `zsvec demo`; then `zsvec --profile offline import FOLDER` and `zsvec classify PHOTO`.",
    epilog="Settings also come from the environment (ZSVEC_STORE, ZSVEC_PROFILE, ZSVEC_API_KEY …) or from zsvec.toml. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.",
)

HOW_TO_MAKE_A_STORE = "`zsvec import` and `zsvec add` make it"

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the category.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines.")]
Explain = Annotated[bool, typer.Option(help="Show rankings and nearest references by expert.")]
Stats = Annotated[bool, typer.Option("--stats", help="Show rate, stages and queues live on stderr.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace stored images, or texts, instead of adding to them.")]
Sheet = Annotated[Path | None, typer.Option("--sheet", metavar="FILE.html", help="Write a contact sheet.")]
TopK = Annotated[int, typer.Option("--top-k", min=1, help="Categories in the ranking.")]
Yes = Annotated[bool, typer.Option("--yes", help="Skip the confirmation prompt.")]
KeepImages = Annotated[
    str | None,
    typer.Option(
        "--keep-images",
        metavar="small|none",
        help="Keep small copies of the images.  [default: as the store; a new store keeps them]",
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="one|many",
        help="Categories of an image.  [default: as the store; a new store has one]",
    ),
]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep", metavar="none|uncertain|all", help="Images to keep in the inbox.  [default: the setting, or none]"
    ),
]
Fusion = Annotated[
    str | None, typer.Option("--fusion", metavar="NAME", help="Fusion strategy; see `zsvec docs decides`.")
]


@dataclass(frozen=True)
class Target:
    """The global options, which users give before the command."""

    store: str | None
    namespace: str | None
    profile: str | None
    encoders: str | None

    @contextmanager
    def open(self, *, runs_encoders: bool = True, **settings: Any) -> Iterator[Classifier]:
        """Opens the classifier with these options.

        Args:
            runs_encoders: Whether the command always runs encoders. If not, there must be a store, a profile of other
                encoders opens the store, too, and encoders in Python are imported on first use.
            **settings: Further settings of the command.
        """
        from zsvec.classifier import open_classifier

        chosen = self.settings(**settings)
        if runs_encoders and chosen.encoders is not None and output.err.is_terminal:
            output.print_note(f"loading the encoders {chosen.encoders} …")
        with open_classifier(chosen, runs_encoders=runs_encoders) as classifier, _nearest_name(classifier.categories):
            yield classifier

    def settings(self, **more: Any) -> Settings:
        """Returns the settings with these options, and with more settings.

        Raises:
            InvalidInputError: An option is invalid, no profile has this name, or the store is in memory and would end
                with the command.
            WeightsUnavailableError: The profile is a folder, and the exported encoders there are missing or damaged.
        """
        from zsvec.settings.settings import load_settings

        chosen = {"store": self.store, "namespace": self.namespace, "profile": self.profile, "encoders": self.encoders}
        settings = load_settings(**chosen, **more)
        if settings.store == ":memory:":
            raise InvalidInputError(
                "the store ':memory:' would be gone when this command ends: give a folder or the URL of a server"
            )
        if settings.encoders is None:
            settings.encoder_specs()  # refuses a mistyped profile, also for a command that runs no encoder
        return settings

    @contextmanager
    def open_store(self) -> Iterator[Store]:
        """Opens the store without a classifier, also if the profile has other encoders than the store.

        Raises:
            StoreError: There is no store yet.
        """
        with self.settings().open_store() as store, _nearest_name(store.categories):
            if not store.encoders():
                raise StoreError(f"there is no store in {store.location} yet: {HOW_TO_MAKE_A_STORE}")
            yield store


@contextmanager
def _nearest_name(categories: Callable[[], Sequence[Category]]) -> Iterator[None]:
    """Adds the most similar category name to a CategoryNotFoundError."""
    try:
        yield
    except CategoryNotFoundError as exc:
        from zsvec.settings.settings import did_you_mean

        there = {category.name for category in categories()}
        near = did_you_mean(exc.name, sorted(there))
        if exc.name in there:
            near = ". Only attached collections have it, which zsvec does not change: see `zsvec attached`"
        raise CategoryNotFoundError(f"{exc}{near}") from exc


def confirm(question: str, *, yes: bool, final: bool = False) -> None:
    """Asks on stderr, and aborts unless the answer is yes. Does not ask if `yes` is true, or stdin is not a terminal.

    Raises:
        InvalidInputError: The action is `final`, which means that it cannot be undone, and stdin is not a terminal.
    """
    if yes:
        return
    if is_terminal():
        with answering():
            typer.confirm(harmless(question), abort=True, err=True)
    elif final:
        raise InvalidInputError("this cannot be undone, and stdin must be a terminal to be asked. Give --yes to go on")


@contextmanager
def answering() -> Iterator[None]:
    """Turns Ctrl-C at a prompt into KeyboardInterrupt.

    typer raises Abort both for Ctrl-C and for the answer "no", so callers could not tell them apart.
    """
    try:
        yield
    except typer.Abort as exc:
        if isinstance(exc.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def is_terminal() -> bool:
    """Returns whether stdin is a terminal."""
    return sys.stdin.isatty()


def images_at(path: str | Path) -> Sequence[str | Path]:
    """Returns the images in a folder, or a list of the path itself if the path is not a folder."""
    is_folder = os.path.isdir(path)  # noqa: PTH112 - Path.is_dir raises for a name that is too long
    return images_in(Path(path)) if is_folder else [path]


def images_in(folder: Path, *, follow_links: bool = False) -> list[Path]:
    """Returns the images in a folder. Reports and leaves out links that `find_images` does not follow."""
    from zsvec.inputs.folders import find_images

    with output.left_out() as report:
        return find_images(folder, follow_links=follow_links, on_outside=report)


def check_exists(path: str | Path) -> None:
    """Raises an error for a missing path before encoders are loaded.

    Raises:
        ImageError: The path does not exist. Reading the image would raise the same error.
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
        str | None, typer.Option(metavar="NS", help="Prefix of the store's collections.  [default: zsvec]")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Encoders: base (CLIP and DINOv2), plus (a stronger CLIP), offline (no download), or your own "
            "profile.  [default: as the store; base for a new store]",
        ),
    ] = None,
    encoders: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:OBJECT",
            help="Encoders in Python instead of a profile, from a module on the Python path or in this folder; see "
            "`zsvec docs encoders`.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Pass the global options to the command."""
    if encoders is not None:
        from zsvec.settings.import_string import located

        encoders = located(encoders)
    context.obj = Target(store, namespace, profile, encoders)
