"""The ``rlloss`` command: its verbs, and what becomes of errors. A verb's module is loaded when it is called."""

import errno
import importlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Sequence

from rlloss.cli.arguments import Parser
from rlloss.cli.exits import Exit
from rlloss.cli.loading import unswept
from rlloss.errors import ConfigError, EnvironmentFailed, Interrupted, RunFailed
from rlloss.train.numerics import available, is_own, own, relaunch
from rlloss.version import __version__

VERBS = {  # each is a module of this package with a function run(arguments)
    "train": "one run, or with --multirun a sweep",
    "verify": "do twin runs have identical parameters at every optimiser step?",
    "certify": "a certificate of a run, which `verify --certificate` plays again",
    "bisect": "where two runs part: step, tensor, operation, and the cause",
    "evaluate": "play a trained policy: returns, and a video",
    "check": "have two losses the same gradient? without training anything",
    "graph": "the computation graphs of losses, live: forward, backward, stop-gradient",
    "reproduce": "run every claim's experiments, judge them, draw the figures",
    "report": "judge and draw the claims from what has been run",
    "benchmark": "speed: of training beside its peers, checks, sweeps, graph pages, watching",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Bad input is one line on standard error; a programming error keeps its traceback.

    Without ``argv`` the process is this command's own.
    """
    if argv is None:
        own()
    arguments = list(sys.argv[1:] if argv is None else argv)
    code: int = 128 + signal.SIGPIPE  # until the command has an answer
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an encoding without the lines of a table ends no command
    try:
        verb = parser().parse_args(arguments[:1]).verb
        if argv is None and verb == "verify":
            # pandas would load it if a trainer brought it: 50 MB, for a kind of table that no run folder has
            sys.modules.setdefault("pyarrow", None)  # type: ignore[arg-type]
        if is_own() and is_portable(verb, arguments) and available():
            relaunch()  # before anything is loaded that would have to be loaded again
        with unswept():
            module = importlib.import_module(f"rlloss.cli.{verb}")
        code = module.run(arguments[1:])
        sys.stdout.flush()  # here, where what cannot be written is told
        return code
    except ConfigError as error:
        print(f"rlloss: {error}", file=sys.stderr)
        return Exit.BAD_INPUT
    except Interrupted as error:
        print(f"rlloss: {error}", file=sys.stderr)
        return 128 + error.signum
    except RunFailed as error:
        if isinstance(error, EnvironmentFailed) and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)  # somebody's program, who wants to see where
        print(f"rlloss: the run failed: {error}", file=sys.stderr)
        return Exit.FAILS
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return code
    except KeyboardInterrupt:
        print("rlloss: interrupted; finished runs are kept; the same command runs the rest", file=sys.stderr)
        return Exit.INTERRUPTED
    except OSError as error:
        if error.filename is None:
            if error.errno != errno.ENOSPC:
                return crashed()
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(f"rlloss: standard output: {error.strerror}; free some space", file=sys.stderr)
            return Exit.FAILS
        print(f"rlloss: {error.filename}: {error.strerror}; name another path", file=sys.stderr)
        return Exit.BAD_INPUT
    except Exception:
        return crashed()


def is_portable(verb: str, arguments: Sequence[str]) -> bool:
    """Whether this process is to compute portable numbers, as far as the words of a command tell."""
    if verb in ("reproduce", "report"):
        return "-h" not in arguments and not any("native" in word or "--h" in word for word in arguments)
    return verb == "train" and "numerics=portable" in arguments and not {"-m", "--multirun"}.intersection(arguments)


def crashed() -> int:
    """A fault of this program: its traceback, and an exit code of its own, since 1 means "does not hold"."""
    traceback.print_exc()
    return Exit.CRASHED


def parser() -> Parser:
    top = Parser(
        prog="rlloss",
        description="Do two policy-gradient losses train alike, to the last bit?",
        epilog="`rlloss COMMAND --help` says more. Exit code: 0 holds, 1 does not hold, 2 bad input, "
        "3 a fault of this program.",
    )
    top.add_argument("--version", action="version", version=f"rlloss {__version__}")
    verbs = top.add_subparsers(title="commands", required=True, dest="verb", metavar="COMMAND")
    for verb, text in VERBS.items():
        verbs.add_parser(verb, help=text, add_help=False)
    return top
