"""The `overtone` command: what it answers, whatever goes wrong. The commands are in commands.py."""

import io
import os
import signal
import sys
import traceback

import click

from pipeline.commands import DEBUG, top

USER_ERROR = 2


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done; 1 something is unfinished, damaged or missing, or too much was rejected; 2 a
    mistake that the user can correct, in one sentence; 130 stopped by Ctrl-C."""
    if "_OVERTONE_COMPLETE" in os.environ:
        top.main(prog_name="overtone")  # answers the shell and exits
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):  # names of files need not be UTF-8, nor the terminal
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        # not top.main: it turns Ctrl-C and a closed pipe into codes of its own
        with top.make_context("overtone", sys.argv[1:] if argv is None else [*argv]) as context:
            return top.invoke(context) or 0
    except click.exceptions.Exit as end:  # of --help and --version
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USER_ERROR
    except click.UsageError as error:
        return _failed(error, _usage(error))
    except ValueError as error:
        return _failed(error, str(error))
    except ModuleNotFoundError as error:
        from pipeline.doctor import remedy

        if error.name is None or error.name.startswith(("pipeline", "stages", "cluster")):
            raise
        return _failed(error, remedy(error.name))
    except KeyboardInterrupt as error:
        print(file=sys.stderr)
        return _failed(error, "stopped; what is finished is kept, the same command goes on from there", 130)
    except BrokenPipeError:
        return 0
    except OSError as error:
        return _failed(error, str(error), 1)


def _failed(error: BaseException, text: str, code: int = USER_ERROR) -> int:
    if os.environ.get(DEBUG):
        cause: BaseException | None = error
        while cause:  # what `from None` hides belongs to the reason
            cause.__suppress_context__ = False
            cause = cause.__cause__ or cause.__context__
        traceback.print_exception(error)
    print(f"overtone: {text}", file=sys.stderr)
    return code


def _usage(error: click.UsageError) -> str:
    """With the nearest command or option, or where they are listed."""
    near = getattr(error, "possibilities", None)
    text = (error.message if near else error.format_message()).rstrip(".")
    path = error.ctx.command_path if error.ctx else "overtone"
    hint = f"did you mean {near[0]!r}?" if near else f"see {path} --help"
    return f"{text[:1].lower()}{text[1:]}: {hint}"
