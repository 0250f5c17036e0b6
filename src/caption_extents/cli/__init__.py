"""The command line: parse into a job, make one library call, print the result."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from caption_extents.cli import checks, jobs, region, results
from caption_extents.cli.errors import EXIT_FAILED
from caption_extents.interrupts import exit_past_threads, interrupt_on_signals
from caption_extents.version import __version__

app = typer.Typer(
    help="Find burned-in captions in video, exact to the frame.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    jobs.run,
    region.crop,
    results.subtitles,
    results.report,
    results.import_corrections,
    results.versions,
    results.prune,
    checks.evaluate,
    jobs.batch,
    jobs.compare,
    checks.doctor,
):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the ``caption-extents`` command."""
    logging.basicConfig(format="caption-extents: %(message)s", level=logging.WARNING)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    interrupt_on_signals()
    try:
        app()
    except SystemExit as ended:
        if isinstance(ended.code, int) and ended.code:
            exit_past_threads(ended.code)
        raise
    except OSError as error:
        # stdout is not writable. Redirect it, so that the interpreter does not fail again when it flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        typer.echo(f"caption-extents: could not print the result: {error.strerror or error}", err=True)
        raise SystemExit(EXIT_FAILED) from error
