"""The command line: one module a command, imported only when that command is called.

``main`` is the one place where an error becomes text and an exit code.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from importlib import import_module

import click

from kvbench.displays.streams import prepare, put, settle, talk
from kvbench.errors import ExitCode, KvbenchError, ResourceError, UnknownName, UsageError, told

COMMANDS = {
    "run": "Compare compression methods on a model and a text.",
    "sweep": "Run methods at every combination of some parameters' values.",
    "speed": "Time decoding beside what the bytes allow, or find what fits.",
    "list": "List methods, evaluators and suites, presets or corpora.",
    "compare": "Set one result against another, with tests.",
    "verify": "Check that a method does what it says.",
    "calibrate": "Make beforehand what a method needs of a model.",
    "watch": "Attach to a run, or look at one again.",
    "show": "Print a run's tables.",
    "report": "Write all that a run found as text, Markdown or HTML.",
    "new-method": "Write a package for a method of your own.",
    "new-evaluator": "Write a package for an evaluator of your own.",
}
"""Command → what it does. Module and function have the command's name, with _ for -."""


class Commands(click.Group):
    """Knows its commands by the table above, so that ``--help`` imports none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        home = "list_names" if name == "list" else name  # a module called list would hide the built-in in this one
        command: click.Command = getattr(import_module(f"kvbench.cli.{home}"), home)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise UnknownName("command", args[0], COMMANDS, hint="kvbench --help")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        import kvbench

        put(f"kvbench {kvbench.__version__}\n")
        ctx.exit()


@click.group(cls=Commands, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version and exit.")
@click.pass_context
def cli(context: click.Context) -> None:
    """Benchmark KV-cache compression: what a method costs in quality, and what it saves in memory and time.

    \b
    kvbench run                                    all methods on the embedded model
    kvbench run --model Qwen/Qwen2.5-0.5B --methods snapkv,kivi:bits=2
    kvbench list methods
    kvbench compare before after
    """
    if context.invoked_subcommand is None:
        put(f"{context.get_help()}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. Errors are one line and a hint, never a traceback."""
    prepare()
    code = _called(argv)
    dropped = settle()
    return code if dropped is None or code else _tell(dropped)


def _called(argv: Sequence[str] | None) -> int:
    try:
        code = cli.main(args=None if argv is None else list(argv), prog_name="kvbench", standalone_mode=False)
        return int(code or 0)
    except KvbenchError as error:
        return _tell(error)
    except click.ClickException as error:
        return _tell(UsageError(error.format_message(), hint=_help_hint(error)))
    except (click.Abort, KeyboardInterrupt):
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # the reader of our output left; nothing is wrong here
        settle()
        return int(ExitCode.OK)
    except OSError as error:
        if error.filename is None and error.errno in _FULL:  # what click itself writes, such as --help
            return _tell(settle(error) or ResourceError(str(error)))
        return _unexpected(error)
    except MemoryError:
        return _tell(ResourceError("there is not enough memory for this", hint="a smaller question, or a machine with more"))
    except (Exception, SystemExit, GeneratorExit) as error:  # a plug-in's sys.exit too: no code of its own is ours
        return _unexpected(error)


_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF})
"""How a stream that is full or closed answers."""


def _help_hint(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'kvbench'} --help"


def _tell(error: KvbenchError) -> int:
    talk(f"error: {error.message}")
    if error.hint:
        talk(f"try: {error.hint}")
    return int(error.exit_code)


def _unexpected(error: BaseException) -> int:
    """One line for the user; the traceback goes where it can be found."""
    import tempfile
    import traceback

    first = told(error) or "no message"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="kvbench-", suffix=".log", delete=False, encoding="utf-8", errors="replace") as file:
            traceback.print_exception(error, file=file)
        where = f"traceback in {file.name}"
    except OSError:
        where = f"its traceback could not be written to {tempfile.tempdir or 'the temporary folder'}"
    talk(f"error: unexpected {type(error).__name__}: {first} ({where})")
    return int(ExitCode.INTERNAL)
