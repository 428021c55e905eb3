"""Runs one command, prints its answer or its error, and ends with its exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import version

import typer

from mbqc.cli.bench import bench
from mbqc.cli.compile import compile_
from mbqc.cli.eval import evaluate
from mbqc.cli.inspect import inspect
from mbqc.cli.output import Answer, print_json
from mbqc.cli.passes import passes
from mbqc.cli.run import run
from mbqc.errors import MbqcError, UsageError

WRONG_CALL = typer.BadParameter.__bases__[0]
"""The parser's own base of errors about the call; typer has no public name for it."""

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point `mbqc`."""
    sys.exit(run_command(list(sys.argv[1:] if arguments is None else arguments)))


def run_command(arguments: list[str]) -> int:
    """Runs one command and returns its exit code."""
    as_json = "--json" in arguments
    try:
        # with --json nothing but JSON goes to stdout, whatever a user's model file prints
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            answer = typer.main.get_command(_app()).main(
                arguments or ["--help"], prog_name="mbqc", standalone_mode=False
            )
        _print(answer, as_json)
        return answer if isinstance(answer, int) else 0
    except MbqcError as error:
        return _report(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # the reader of the output has gone, as in `mbqc inspect m.mbqc | head`
        _drop_output()
        return 1
    except Exception as error:
        if isinstance(error, WRONG_CALL):
            return _report(_usage_error(error), as_json)
        traceback.print_exc()
        return _report(MbqcError(f"internal error, please report it: {type(error).__name__}: {error}"), as_json)


def _print(answer: object, as_json: bool) -> None:
    if sys.stdout is None:  # as in `mbqc inspect m.mbqc >&-`
        raise MbqcError("cannot write the answer: standard output is closed")
    try:
        if isinstance(answer, Answer):
            print_json(answer) if as_json else answer.show()
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _drop_output()
        raise MbqcError(f"cannot write the answer: {error.strerror or error}") from error


def _drop_output() -> None:
    """Lets what could not be written go, or it would fail once more at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _app() -> typer.Typer:
    app = typer.Typer(
        help="Multi-bit quantization compiler: one artifact that runs at any width from 8 bits down to 1.",
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common)
    commands: dict[str, Callable[..., Answer | None]] = {
        "compile": compile_,
        "run": run,
        "eval": evaluate,
        "bench": bench,
        "inspect": inspect,
        "passes": passes,
    }
    for name, function in commands.items():
        app.command(name)(function)
    return app


def _common(
    show_version: bool = typer.Option(
        False, "--version", help="Print the version.", is_eager=True, callback=lambda given: _print_version(given)
    ),
) -> None:
    """What stands before the command."""


def _print_version(given: bool) -> None:
    if given:
        print(version("mbqc"))
        raise typer.Exit


def _usage_error(error: Exception) -> UsageError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "mbqc"
    message: str = error.format_message()  # type: ignore[attr-defined]
    return UsageError(message.rstrip("."), hint=f"{command} --help")


def _report(error: MbqcError, as_json: bool) -> int:
    """One message on stderr, and with --json an object on stdout."""
    print(f"error: {error}", file=sys.stderr)
    if as_json:
        fields = {"message": error.message, "where": error.where, "hint": error.hint}
        print_json({"error": {"type": type(error).__name__, **fields, "exit_code": error.exit_code}})
    return error.exit_code
