"""The command that serves a classifier over HTTP."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated

import typer

from zsvec.cli import output
from zsvec.cli.app import Keep, app
from zsvec.cli.exporting import ExportYes, prepare_encoders
from zsvec.cli.process import HarmlessFormatter
from zsvec.errors import needs_extra

if TYPE_CHECKING:
    from zsvec.service.auth.keys import Keys


@app.command()
def serve(
    context: typer.Context,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address to listen on; beyond this machine, a key is needed.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    keep: Keep = None,
    label_studio: Annotated[
        str | None,
        typer.Option("--label-studio", metavar="URL", help="Be a machine learning backend of this Label Studio."),
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log JSON lines.")] = False,
    yes: ExportYes = False,
) -> None:
    """Serve an HTTP API and web pages, until interrupted.

    On 127.0.0.1, clients need no key. On any other address, the first start prints a new key, unless you set
    ZSVEC_SERVE_KEYS (see `zsvec docs service`). Put a TLS reverse proxy in front.
    """
    with needs_extra("serve", "a service"):
        from zsvec.service import create_app
        from zsvec.service.label_studio import LabelStudio
        from zsvec.service.server import JsonLines, listening, log_to_stderr
        from zsvec.service.server import serve as run
    log_to_stderr(JsonLines() if log_json else HarmlessFormatter("%(asctime)s %(levelname)s %(message)s"))
    with listening(host, port) as listener, context.obj.open(keep=keep) as classifier:
        settings, studio = classifier.settings, None
        if label_studio is not None:
            token = settings.label_studio_token and settings.label_studio_token.get_secret_value()
            studio = LabelStudio(label_studio, token, allow_http=settings.allow_http)
        prepare_encoders(classifier, yes=yes, adds=True)
        name, number = listener.getsockname()[:2]
        keys, secret = _keys(name)
        shown = "localhost" if ip_address(name).is_unspecified else f"[{name}]" if ":" in name else name
        output.print_note(f"zsvec serves http://{shown}:{number}/" + (f"#key={secret}" if secret else ""))
        if not keys:
            output.print_note("no key is needed: every user of this machine may use the service")
        run(create_app(classifier, keys=keys, label_studio=studio), listener)


def _keys(host: str) -> tuple[Keys, str | None]:
    """Returns the valid keys at an address, and the secret of a key that was just created, or ``None``."""
    from zsvec.service.auth.guard import is_loopback
    from zsvec.service.auth.keys import VARIABLE, Keys, first_key, key_file

    keys = Keys.from_environment()
    if keys or is_loopback(host):
        return keys, None
    keys, secret = first_key()
    if secret:
        output.print_note(f"the key is shown only this once; {key_file()} has its digest")
    else:
        output.print_note(
            f"the key was shown at the first start; delete {key_file()} for another one, or set {VARIABLE}"
        )
    return keys, secret
