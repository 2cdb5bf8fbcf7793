"""Environments that fail: what they raised, in words, an end to a step that hangs, and closing them all the same."""

import logging
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rlloss.errors import PASSED_ON, RunFailed

LOOKS = 8  # within the time that a step may take

_said: set[str] = set()  # in this process, of environments that cannot be closed
log = logging.getLogger("rlloss")


class Hanging(BaseException):
    """A step of an environment that did not return in time. Not an Exception, which the environment may catch."""


def raised(error: BaseException) -> str:
    """What went wrong in somebody's code, and where."""
    if type(error.__cause__) is type(error):  # as Gymnasium raises it once more, in words of its own
        error = error.__cause__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    theirs = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith("<")] or frames
    where = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})"
    text = " ".join(str(error).split())
    if isinstance(error, SyntaxError):  # which says where
        return f"raised {type(error).__name__}: {text}"
    return f"{text}{where}" if isinstance(error, Hanging) else f"raised {type(error).__name__}: {text}{where}"


def close_all(envs: Iterable[Any]) -> None:
    """Close environments. One that raises spoils nothing that was done with it: that is logged, once a process."""
    for env in envs:
        try:
            env.close()
        except Exception as error:
            name = env.spec.id if env.spec else type(env.unwrapped).__name__
            note = f"note: {name}: close {raised(error)}; the run is none the worse for it"
            if note not in _said:
                _said.add(note)
                log.warning(note)


@contextmanager
def staying(error: type[Exception] = RunFailed, what: str = "") -> Iterator[None]:
    """Within: what is no Exception and would end the process without a word, as sys.exit() does, is one like any other.

    Ctrl-C stays what it is. Raises: ``error``, which says where, after ``what``.
    """
    try:
        yield
    except (Exception, *PASSED_ON):
        raise
    except BaseException as exit_:
        raise error(f"{what}{raised(exit_)}") from exit_


@contextmanager
def watchdog(progress: Callable[[], int | None], seconds: float) -> Iterator[None]:
    """Within: if ``progress`` returns one and the same number for ``seconds``, the main thread raises Hanging.

    ``progress`` returns None while nothing can hang. 0 seconds: nothing is watched. The exception comes from a signal,
    which interrupts Python code, and waiting, but no loop in an extension that never returns to Python. Outside the
    main thread, and where there are no such signals, nothing is watched.
    """
    here = threading.current_thread() is threading.main_thread()
    if not seconds or not here or not hasattr(signal, "pthread_kill"):
        yield
        return
    hanging, done, main = threading.Event(), threading.Event(), threading.get_ident()

    def interrupt(signum: int, frame: FrameType | None) -> None:
        if hanging.is_set():
            hanging.clear()
            raise Hanging(f"did not return within {seconds:g} s")
        if callable(before):  # somebody else's alarm
            before(signum, frame)

    def watch() -> None:
        last, since = progress(), time.monotonic()
        while not done.wait(min(seconds / LOOKS, threading.TIMEOUT_MAX)):
            now = progress()
            if now is None or now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since >= seconds:
                hanging.set()
                signal.pthread_kill(main, signal.SIGALRM)
                since = time.monotonic()

    before: Any = signal.signal(signal.SIGALRM, interrupt)
    thread = threading.Thread(target=watch, daemon=True, name="rlloss-watchdog")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        signal.signal(signal.SIGALRM, before)
