"""Root of the command line: collects the commands, and turns errors into messages and exit codes."""

from __future__ import annotations

import inspect
import os
import re
import sys
from importlib.metadata import entry_points
from importlib.metadata import version as installed_version
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from twinspire._termination import EXIT_TERMINATED, sigterm_unwinds
from twinspire.cli import classify, doctor, index, search
from twinspire.cli.os_errors import StandardOutputError, describe, guarded_standard_output
from twinspire.error_status import STATUSES, error_status
from twinspire.errors import TwinspireError

EXIT_ERROR = STATUSES[TwinspireError].exit_code
_EPILOG = (
    "Exit status: 0 success; 1 `index verify` found damage or `doctor` a fault; 2 error; 3 some files failed and the "
    "others succeeded; 130 Ctrl-C; 143 SIGTERM."
)
_COMPLETION = ("--install-completion", "--show-completion")
EXIT_INTERRUPTED = 130
_ENDINGS = {EXIT_INTERRUPTED: "interrupted", EXIT_TERMINATED: "terminated"}


def application() -> typer.Typer:
    """Build the command-line application, with the commands of every installed package."""
    app = typer.Typer(
        name="twinspire",
        help="Search images by text: export, serve and query two-tower models such as CLIP.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        epilog=_EPILOG,
    )

    @app.callback()
    def options(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
        ] = False,
    ) -> None:
        pass

    app.add_typer(index.app, name="index")
    app.command("search")(search.search)
    app.command("classify")(classify.classify)
    app.command("doctor")(doctor.doctor)
    for entry_point in sorted(entry_points(group="twinspire.commands"), key=lambda entry: entry.name):
        entry_point.load()(app)
    _unwrap_help(app)
    return app


def _unwrap_help(app: typer.Typer) -> None:
    """Join the lines of each paragraph of a docstring, so that the terminal wraps them: typer joins the first only."""
    for command in app.registered_commands:
        text = command.help or inspect.getdoc(command.callback) or ""
        command.help = re.sub(r"(?<=\S)\n(?=[^\s*-])", " ", inspect.cleandoc(text))
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _unwrap_help(group.typer_instance)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"twinspire {installed_version('twinspire')}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Run `twinspire` and end the process.

    Exit status: 0 on success, 1 if `index verify` found damage or `doctor` a fault, 2 on an error, 3 if some files
    failed and the others succeeded, 130 on Ctrl-C, 143 on SIGTERM.
    """
    stderr = Console(stderr=True, soft_wrap=True)
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else gRPC logs each failed TLS handshake
    try:
        with sigterm_unwinds(), guarded_standard_output():
            application()(arguments, prog_name=_program_name(sys.argv[1:] if arguments is None else arguments))
    except TwinspireError as error:
        stderr.print(Text("error: ", style="bold red") + Text(str(error), style=""))
        sys.exit(error_status(error).exit_code)
    except StandardOutputError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at Python's exit
        if not error.is_broken_pipe:  # as for `twinspire ... | head`
            stderr.print(Text("error: ", style="bold red") + Text(str(error)))
        sys.exit(EXIT_ERROR)
    except OSError as error:  # one that no command handles
        stderr.print(Text("error: ", style="bold red") + Text(describe(error)))
        sys.exit(EXIT_ERROR)
    except KeyboardInterrupt:  # before typer handles it
        stderr.print("interrupted")
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit as ended:  # how typer ends, also when interrupted
        if ended.code in _ENDINGS:
            stderr.print(_ENDINGS[ended.code])
        raise


def _program_name(arguments: list[str]) -> str | None:
    """Return the program's name for usage lines; None: as it was started, such as `python -m twinspire`.

    Shell completion is by a command's name, so that it is always for `twinspire`.
    """
    asks_for_completion = bool(arguments) and arguments[0].split("=")[0] in _COMPLETION
    return "twinspire" if asks_for_completion else None
