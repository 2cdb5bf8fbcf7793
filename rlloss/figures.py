"""Paper-style figures: one style, one palette, sized for a column or a page; byte-for-byte the same when made twice."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

COLUMN, TEXT, PAGE = 3.25, 5.5, 6.75  # inches: a column of ICML, the text width of NeurIPS, both columns of ICML

# Okabe and Ito's palette, told apart under every common colour-vision deficiency.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
BLUE, VERMILION, GREEN, PURPLE, ORANGE = PALETTE
GREY = "#8C8C8C"
COLOURS = {
    "ppo_clip": BLUE,
    "reinforce": VERMILION,
    "reinforce_textbook": GREEN,
    "reinforce_mask": PURPLE,
    "reinforce_logratio": BLUE,
    "ppo_masked": PURPLE,
    "klip": ORANGE,
    "klip_matched": GREEN,
    "reinforce_undetached": VERMILION,
    "two_sided_mask": PURPLE,
    "cispo": ORANGE,
    "ppo_clip_ulp": GREEN,
}
LABELS = {
    "ppo_clip": "PPO clip",
    "reinforce": "REINFORCE, order-matched",
    "reinforce_textbook": "REINFORCE, textbook order",
    "reinforce_mask": "REINFORCE, masked weight",
    "reinforce_logratio": "REINFORCE, log ratio",
    "ppo_masked": "PPO, masked",
    "klip": "KLip-PPO, as published",
    "klip_matched": "KLip-PPO, order-matched",
    "reinforce_undetached": "weight not detached",
    "two_sided_mask": "two-sided mask",
    "cispo": "CISPO",
    "ppo_clip_ulp": "advantages moved by 1 ulp",
}

STYLE: dict[str, Any] = {
    "font.family": "STIXGeneral",  # ships with matplotlib: the same glyphs on every machine
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": True,
    "grid.linewidth": 0.3,
    "grid.color": "#D9D9D9",
    "lines.linewidth": 1.1,
    "figure.dpi": 200,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # TrueType, as conferences ask
    "svg.fonttype": "path",
    "svg.hashsalt": "rlloss",
}


# No date, version or program in a file: made twice, it is the same.
METADATA: dict[str, dict[str, Any]] = {
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
}


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's settings for everything drawn inside."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem``.pdf, .png and .svg."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(stem.name + suffix) for suffix in METADATA]
    with style():
        figure.draw_without_rendering()  # lays it out, once for all three
        figure.set_layout_engine("none")
        for path in paths:
            figure.savefig(path, metadata=METADATA[path.suffix])
    return paths


def svg(figure: Figure) -> str:
    """The figure as SVG, for a page."""
    out = io.StringIO()
    with style():
        figure.savefig(out, format="svg", metadata=METADATA[".svg"])
    return out.getvalue()


def panels(rows: int, columns: int, width: float, height: float, **kwargs: Any) -> tuple[Figure, Any]:
    """A figure and its [rows, columns] axes. Call it, and everything that draws, inside ``style()``."""
    figure = Figure(figsize=(width, height))
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def finish(figure: Figure, axes: Any, columns: int) -> Figure:
    """The legend of the first panel above all of them, in so many columns, and the labels of the y axes in one line."""
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=columns)
    figure.align_ylabels(axes[:, 0])
    return figure


def steps_axis(axes: Axes, label: str | None = "environment steps") -> None:
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.locator_params(axis="x", nbins=4)
    if label:
        axes.set_xlabel(label)


def label(loss: str) -> str:
    """What a legend calls a loss: the name itself if it has no label here."""
    return LABELS.get(loss, loss)


def colours(losses: Sequence[str]) -> list[str]:
    """A colour for each loss of a figure: its own, unless an earlier one has it; else the next that is free."""
    chosen: list[str] = []
    for loss in losses:
        own = COLOURS.get(loss)
        taken = {*chosen, *(COLOURS.get(other) for other in losses)}
        free = [colour for colour in PALETTE if colour not in taken] or [c for c in PALETTE if c not in chosen]
        chosen.append(own if own and own not in chosen else (free or [GREY])[0])
    return chosen


def twin_curves(
    axes: Axes, x: Sequence[Any], y: Sequence[Any], losses: Sequence[str], labels: Sequence[str] = ()
) -> None:
    """Curves that may coincide: the first wide and pale, the second thin and dashed on top, so both are seen."""
    for i, (colour, name) in enumerate(zip(colours(losses), labels or map(label, losses), strict=True)):
        wide = {"linewidth": 3.0, "alpha": 0.45} if i == 0 else {"linewidth": 0.9, "linestyle": (0, (4, 2))}
        point: dict[str, Any] = (
            {"marker": "o", "markersize": 5 - 2.5 * i} if len(x[i]) == 1 else {}
        )  # which no line would show
        axes.plot(x[i], y[i], solid_capstyle="butt", color=colour, label=name, **wide, **point)
