"""Being asked to stop: SIGINT and SIGTERM end a run after its iteration; a second one ends the process at once.

Before its first iteration there is nothing to keep, and the first one ends it.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rlloss.errors import Interrupted

STOP = (signal.SIGINT, signal.SIGTERM)
SAID = "\nrlloss: ends after this iteration; once more ends at once\n"

_asked = 0
_nothing_to_keep = False


def asked_to_stop() -> int:
    """The number of the signal that has asked this process to stop, or 0."""
    return _asked


def listen(
    signals: Sequence[signal.Signals] = STOP, *, say: str = "", forward: Callable[[int], None] | None = None
) -> None:
    """From now on these signals ask this process to stop, the first of them; any after that has its usual effect.

    ``say`` is then written to standard error; ``forward`` is called with the signal's number. While a run is set up,
    Interrupted is raised instead.
    """

    def ask(signum: int, frame: FrameType | None) -> None:
        global _asked
        _asked = signum
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        if _nothing_to_keep:
            raise Interrupted("interrupted while it was set up; the same command begins again", signum)
        if say:
            os.write(2, say.encode())
        if forward is not None:
            forward(signum)

    for each in signals:
        signal.signal(each, ask)


@contextmanager
def setting_up() -> Iterator[Callable[[], None]]:
    """Within, until what it yields is called: a run is set up, and being asked to stop raises Interrupted at once."""
    global _nothing_to_keep

    def done() -> None:
        global _nothing_to_keep
        _nothing_to_keep = False

    _nothing_to_keep = True
    try:
        yield done
    finally:
        done()


@contextmanager
def terminated(message: str) -> Iterator[None]:
    """Within: SIGTERM raises Interrupted, as Ctrl-C raises KeyboardInterrupt, so that there is time to tidy up."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(message, signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def listening(
    signals: Sequence[signal.Signals] = STOP, *, say: str = SAID, forward: Callable[[int], None] | None = None
) -> Iterator[None]:
    """The same within, where signals can be handled: in the main thread."""
    global _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {each: signal.getsignal(each) for each in signals}
    listen(signals, say=say, forward=forward)
    try:
        yield
    finally:
        _asked = 0
        for each, handler in before.items():
            signal.signal(each, handler)
