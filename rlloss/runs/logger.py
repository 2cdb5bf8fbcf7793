"""Loggers beside the run folder's own files: ``logger=tensorboard`` writes the scalars that its users know."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rlloss.config.metrics import METRICS
from rlloss.errors import NotInstalled, lookup
from rlloss.runs.rows import Episode

EVENTS = "events.out.tfevents.*"


class Logger(Protocol):
    """Gets every iteration's metrics and the episodes that finished in it."""

    def iteration(self, row: Mapping[str, Any], episodes: Iterable[Episode]) -> None: ...

    def close(self) -> None: ...


class NoLogger:
    """``logger=none``: the run folder's files are all there is."""

    def __init__(self, folder: Path, goes_on: bool) -> None:
        pass

    def iteration(self, row: Mapping[str, Any], episodes: Iterable[Episode]) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Scalars against environment steps, in the run folder: ``tensorboard --logdir results/runs`` shows them.

    Raises: NotInstalled if TensorBoard is not installed.
    """

    def __init__(self, folder: Path, goes_on: bool) -> None:
        for left in [] if goes_on else folder.glob(EVENTS):  # of an unfinished run, which starts over
            left.unlink()
        self.folder, self.goes_on = folder, goes_on
        self.writer: Any = None

    def iteration(self, row: Mapping[str, Any], episodes: Iterable[Episode]) -> None:
        if self.writer is None:
            purge = {"purge_step": row["env_steps"]} if self.goes_on else {}  # hides what came after the checkpoint
            self.writer = _summary_writer()(log_dir=str(self.folder), **purge)
        for column, metric in METRICS.items():
            if metric.tag and not math.isnan(row[column]):
                self.writer.add_scalar(metric.tag, row[column], row["env_steps"])
        for episode in episodes:
            self.writer.add_scalar("charts/episodic_return", episode.episodic_return, episode.env_steps)
            self.writer.add_scalar("charts/episodic_length", episode.episodic_length, episode.env_steps)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _summary_writer() -> Callable[..., Any]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise NotInstalled("logger=tensorboard is not installed; pip install 'rlloss[tensorboard]'") from error
    return SummaryWriter


LOGGERS: dict[str, Callable[[Path, bool], Logger]] = {"none": NoLogger, "tensorboard": TensorBoard}


def check_logger(name: str) -> None:
    """Raises: ConfigError for an unknown logger, or one that is not installed."""
    lookup(LOGGERS, "logger", name)
    if name == "tensorboard":
        _summary_writer()
