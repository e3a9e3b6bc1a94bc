"""The command ``arcsm``: its groups of commands, exit codes and one-line errors.

Nothing here imports torch, which takes seconds, before a command is known: help and completion come at once.
"""

import atexit
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from inspect import cleandoc
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from arcsm import __version__
from arcsm._runtime.launcher import ProcessError, launch, process_count, report_to_launcher, was_started
from arcsm._runtime.progress import one_command
from arcsm._runtime.signals import Terminated, ignore_termination, raise_on_termination
from arcsm._runtime.terminal import printable
from arcsm.cli.console import Stopped, fail
from arcsm.cli.launching import SeveralProcesses

#: The commands of each module, which is imported when one is used, and the first sentences of their help.
_SUMMARIES = {
    "training": {
        "quickstart": "Train on 8x8 digits, sample, score and write a report. Takes about a minute on two cores.",
        "train": "Train a model. A run that is killed at any moment resumes (--resume) to exactly the same weights.",
        "distil": "Turn a trained model into one whose densities, quantiles and samples take one evaluation each.",
    },
    "models": {
        "sample": "Draw samples from a trained model. The same seed and number of devices give the same samples.",
        "score": "Compute the log density of each row in nats, and its least likely column.",
        "denoise": "Remove noise from images, with a model of clean images.",
    },
    "pages": {
        "report": "Write a self-contained HTML page: curves, samples, calibration, likelihoods and configuration.",
        "serve": "Serve an interactive page: likelihoods, surprise, denoising, completion and sampling. Needs the "
        'extra "web".',
        "info": "Print the parts of a model and the configuration of its run, or what a fitted table holds.",
    },
    "tables": {
        "impute": "Fill in the missing values of a table, given the other values of each row.",
        "synthesize": "Draw synthetic rows like those of a table.",
    },
    "outliers": {"detect": "Find outliers in a table, and the columns that make them so."},
    "fitting": {
        "fit": "Fit a table once; detect, impute, synthesize and score use it with --model, here or on another machine."
    },
    "reproduce": {"reproduce": "Run an experiment; write its metrics, configuration, versions and pictures."},
}
_MODULE_OF = {name: module for module, names in _SUMMARIES.items() for name in names}
_SHARED = ("train", "sample", "score", "reproduce")  # commands that several processes can share


class _Commands(TyperGroup):
    """The commands of all modules. Lists of them show summaries and import none."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.commands = {
            name: TyperCommand(name, help=summary, rich_markup_mode="rich")
            for names in _SUMMARIES.values()
            for name, summary in names.items()
        }
        self._shows_list = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _MODULE_OF or self._shows_list:
            return self.commands.get(cmd_name)
        command = get_group(import_module(f"arcsm.cli.{_MODULE_OF[cmd_name]}").app).commands[cmd_name]
        command.help = _without_line_ends(command.help or "")
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with self._listed():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        with self._listed():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _listed(self) -> Iterator[None]:
        self._shows_list = True
        try:
            yield
        finally:
            self._shows_list = False


def _without_line_ends(text: str) -> str:
    """Join the lines of each paragraph of a help text, which typer would print as they are broken in the source."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in cleandoc(text).split("\n\n"))


app = typer.Typer(cls=_Commands, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"arcsm {__version__}")
        raise typer.Exit


@app.callback()
def callback(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Score-based autoregressive density models: train by scores, get likelihoods, samples and calibrated CDFs."""
    command = context.invoked_subcommand
    if command not in _SHARED and process_count() > 1:
        raise ValueError(f"{command}: runs in one process, but {process_count()} were started")


def main() -> None:
    """Run the command and exit. A user's mistake prints one line on standard error."""
    warnings.showwarning = warn_in_one_line
    alone = not was_started()  # the launcher of several processes needs to see which signal ended each
    ended: list[int] = []
    if alone:
        raise_on_termination()
    else:
        atexit.register(_end_at_once, ended)  # before the group is joined, so after it is left
    code = run(sys.argv[1:])
    if alone:
        ignore_termination()
    ended.append(code)
    sys.exit(code)


def _end_at_once(ended: Sequence[int]) -> None:
    """End the process with its exit code, if it has one, without shutting down Python.

    Threads of ``torch.distributed`` that still run would need Python then, and abort the process.
    """
    if ended:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(ended[0])


def run(arguments: Sequence[str]) -> int:
    """Run the command with arguments and return its exit code."""
    try:
        with one_command():
            code = app(args=list(arguments), prog_name="arcsm", standalone_mode=False)
    except SeveralProcesses as request:
        return _start(arguments, request)
    except Stopped as stop:
        return fail(stop, 130)
    except KeyboardInterrupt:
        return fail("interrupted", 130)
    except Terminated:
        return fail("terminated", 143)
    except ValueError as error:
        return fail(error, 1)
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else error, 1)
    except MemoryError as error:
        return fail(f"out of memory ({error})" if str(error) else "out of memory", 1)
    except Exception as error:  # includes usage errors, whose class depends on the version of typer
        if type(error).__name__ == "Abort":
            return fail("interrupted", 130)
        if not hasattr(error, "format_message"):
            code = _code_of_failure(error)
            if code is None:
                raise
            return code
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return 2
        return fail(f"{error.format_message()} (see arcsm --help)", 2)
    if code == 130:  # some versions of typer catch the interruption
        return fail("interrupted", 130)
    return code if isinstance(code, int) else 0


def _code_of_failure(error: Exception) -> int | None:
    """Report what ended a command, and return its exit code; ``None`` for an error of this program."""
    from arcsm._runtime.process_group import LOST_CONTACT, is_lost_contact  # these load torch, as the command did
    from arcsm.errors import NoDensityError
    from arcsm.training.loop import TrainingDiverged

    if isinstance(error, NoDensityError | TrainingDiverged):
        return fail(error, 1)
    if _is_out_of_memory(error):
        return fail(f"out of memory: {str(error).strip().splitlines()[0]}", 1)
    if is_lost_contact(error):
        return 1 if report_to_launcher(f"arcsm: {LOST_CONTACT}\n{error}") else fail(LOST_CONTACT, 1)
    return 1 if report_to_launcher("".join(traceback.format_exception(error)).rstrip()) else None


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether torch got no memory, on an accelerator or, for which it has no class of errors, on a CPU."""
    name = type(error).__name__
    return name == "OutOfMemoryError" or (name == "RuntimeError" and "can't allocate memory" in str(error))


def _start(arguments: Sequence[str], request: SeveralProcesses) -> int:
    try:
        return launch(arguments, request.devices, request.nodes)
    except ValueError as error:
        return fail(error, 1)
    except ProcessError as error:
        return fail(f"{error}; {request.hint}" if request.hint else error, 1)
    except KeyboardInterrupt as stop:
        return fail(str(stop).removeprefix("arcsm: ") or "interrupted", 130)
    except Terminated:
        return fail("terminated", 143)


def warn_in_one_line(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(printable(f"arcsm: warning: {message}"), file=sys.stderr)


if __name__ == "__main__":
    main()
