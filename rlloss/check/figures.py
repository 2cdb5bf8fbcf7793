"""Pictures of a comparison: value and gradient against the ratio, the map of agreement, the equivalence matrix."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from rlloss import figures
from rlloss.check.comparison import CLIP_COEF, AnyLoss
from rlloss.check.measure import contrast, measure
from rlloss.check.probes import Probe
from rlloss.check.result import ORDER
from rlloss.check.survey import check_kinds
from rlloss.errors import LossError
from rlloss.losses.formulation import Formulation, resolve

OLD_LOGP = -1.5  # in every picture; it moves a REINFORCE loss's value, and the gradient of the undetached one alone
FARTHEST = 4.0  # ratio
MAP_RATIOS, MAP_ADVANTAGES = 160, 80
# Agreement, from the last bit to not at all: dark to light, then one warm colour.
SHADES = ("#08519C", "#4292C6", "#9ECAE1", "#DEEBF7", "#F4C95D", figures.VERMILION)
MAP_LABELS = ("identical", "1 ulp", "2 ulp", "3 ulp or more", "at an edge", "different")


def pair_figure(f: AnyLoss, g: AnyLoss, *, clip_coef: float = CLIP_COEF) -> Figure:
    """PPO's classic figure with the twin laid over it, and where in the (ratio, A) plane the two gradients agree.

    Values and gradients for A = 1 and A = -1 in float64; the map in float32, in a batch whose size is no power of two.
    Call it inside ``figures.style()``. Raises: LossError for sequence losses, which have no such plane.
    """
    left, right = resolve(f), resolve(g)
    check_kinds(left, right)
    if left.sequence:
        raise LossError(f"{left.name} is a sequence loss; its gradient is no function of one ratio and one advantage")
    drawing = Figure(figsize=(figures.PAGE, 3.3))
    axes = drawing.subplot_mosaic([["v+", "v-", "map"], ["g+", "g-", "map"]], width_ratios=(1, 1, 1.35))
    for A, sign in ((1.0, "+"), (-1.0, "-")):
        for row, label in (("v", "loss"), ("g", r"gradient, $\partial$ loss / $\partial \log\pi$")):
            draw_curves(axes[row + sign], (left, right), A, clip_coef, gradient=row == "g")
            if sign == "+":
                axes[row + sign].set_ylabel(label)
        axes["v" + sign].set_title(f"$A = {A:+.0f}$")
        axes["g" + sign].set_xlabel(r"ratio $\rho = \pi/\pi_{\mathrm{old}}$")
        axes["v" + sign].tick_params(labelbottom=False)
    handles = draw_map(axes["map"], left, right, clip_coef)
    drawing.legend(*axes["v+"].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    drawing.legend(handles=handles, loc="outside upper right", ncols=3, handlelength=1.2, columnspacing=1.0)
    drawing.align_ylabels([axes["v+"], axes["g+"]])
    return drawing


def draw_curves(axes: Axes, losses: Sequence[Formulation], A: float, clip_coef: float, *, gradient: bool) -> None:
    ratio = torch.linspace(0.02, 2.0, 1981, dtype=torch.float64)
    old_logp = torch.full_like(ratio, OLD_LOGP)
    probe = Probe("curve", False, old_logp + ratio.log(), old_logp, torch.full_like(ratio, A), grid=True)
    measured = [measure(loss, probe, clip_coef) for loss in losses]
    if gradient:
        curves = [m.gradient for m in measured]
    else:
        curves = [
            m.values if m.values.size > 1 else scalar_values(loss, probe, clip_coef)
            for m, loss in zip(measured, losses, strict=True)
        ]
    broken = [broken_at_jumps(ratio.numpy(), y) for y in curves]
    names = [loss.name for loss in losses]
    figures.twin_curves(axes, [x for x, _ in broken], [y for _, y in broken], names, labels=names)
    for edge in (1 - clip_coef, 1 + clip_coef):
        axes.axvline(edge, color=figures.GREY, linewidth=0.6, linestyle=":", zorder=0)
    axes.plot([1], [0], alpha=0)  # keeps 0 in view
    axes.set_xticks([0, 1 - clip_coef, 1 + clip_coef, 2], ["0", r"$1-\epsilon$", r"$1+\epsilon$", "2"])
    axes.tick_params(axis="x", labelsize=6)


def broken_at_jumps(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """A curve with a gap wherever it jumps, so that no line is drawn there."""
    jumps = np.flatnonzero(np.abs(np.diff(y)) > 0.05 * max(1.0, np.ptp(y)))
    return np.insert(x, jumps + 1, np.nan), np.insert(y, jumps + 1, np.nan)


def scalar_values(loss: Formulation, probe: Probe, clip_coef: float) -> NDArray[np.float64]:
    """A loss that returns one scalar, taken sample by sample."""
    columns = zip(*(x.unsqueeze(1).unbind() for x in (probe.logp, probe.old_logp, probe.advantages)), strict=True)
    singles = (Probe("sample", False, logp, old_logp, A) for logp, old_logp, A in columns)
    return np.array([measure(loss, single, clip_coef).values[0] for single in singles])


def draw_map(axes: Axes, left: Formulation, right: Formulation, clip_coef: float) -> list[Patch]:
    """Where the gradients agree, and to how many ulp, in float32."""
    x, y = (
        torch.exp(torch.linspace(-np.log(FARTHEST), np.log(FARTHEST), MAP_RATIOS)),
        torch.linspace(-2, 2, MAP_ADVANTAGES),
    )
    ratio, A = (t.flatten() for t in torch.meshgrid(x, y, indexing="xy"))
    old_logp = torch.full_like(ratio, OLD_LOGP)
    probe = Probe("map", False, old_logp + ratio.log(), old_logp, A)
    c = contrast(measure(left, probe, clip_coef), measure(right, probe, clip_coef))
    level = np.minimum(c.ulp, 3)
    level = np.where(c.real, 5, np.where(c.edge, 4, level)).reshape(MAP_ADVANTAGES, MAP_RATIOS)
    axes.pcolormesh(
        x.numpy(),
        y.numpy(),
        level,
        cmap=ListedColormap(SHADES),
        norm=BoundaryNorm(np.arange(7) - 0.5, 6),
        rasterized=True,
    )
    axes.set_xscale("log")
    for edge in (1 - clip_coef, 1 + clip_coef):
        axes.axvline(edge, color="white", linewidth=0.6, linestyle=":")
    axes.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
    axes.minorticks_off()
    axes.set_xlabel(r"ratio $\rho$")
    axes.set_ylabel("advantage $A$")
    axes.set_title("agreement of the gradients, float32")
    axes.grid(False)
    return [Patch(color=SHADES[i], label=MAP_LABELS[i]) for i in range(6) if (level == i).any()]


def matrix_figure(pairs: pd.DataFrame, names: Sequence[str]) -> Figure:
    """The equivalence matrix, on-policy and off-policy side by side. Call it inside ``figures.style()``."""
    place = {name: i for i, name in enumerate(names)}
    colours = ListedColormap([SHADES[0], SHADES[2], "#FBE3D6", "white"])
    side = 0.092 * max(len(names), 12)  # inches a panel takes
    drawing, axes = figures.panels(1, 2, 2 * side + 0.85, side + 1.75)
    handles: list[Line2D] = []
    titles = {"on-policy": r"on-policy: $\rho = 1$", "off-policy": "off-policy"}
    for panel, (column, title) in zip(axes[0], titles.items(), strict=True):
        cells = np.full((len(names), len(names)), 3)
        np.fill_diagonal(cells, 0)
        for a, b, verdict in pairs[["a", "b", column]].itertuples(index=False, name=None):
            cells[place[a], place[b]] = cells[place[b], place[a]] = ORDER.index(verdict)
        norm = BoundaryNorm(np.arange(5) - 0.5, 4)
        panel.imshow(cells, cmap=colours, norm=norm, extent=(0, len(names), len(names), 0), interpolation="nearest")
        for line in range(1, len(names)):
            panel.axhline(line, color="white", linewidth=0.5)
            panel.axvline(line, color="white", linewidth=0.5)
        if column == "off-policy":  # what is proved is proved of every input
            handles = draw_proofs(panel, pairs, place)
        panel.set_title(title)
        ticks = np.arange(len(names)) + 0.5
        panel.set_xticks(ticks, names, rotation=90, fontsize=5)
        panel.set_yticks(ticks, names if column == "on-policy" else [], fontsize=5)
        panel.tick_params(length=0)
        panel.grid(False)
        panel.spines[:].set_visible(False)
    labels = ("identical to the last bit", "equal up to rounding", "different", "not comparable")
    shown = [0, 1, 2] + ([3] if (cells == 3).any() else [])
    patches = [Patch(facecolor=colours(i), edgecolor="#BBBBBB", linewidth=0.4, label=labels[i]) for i in shown]
    drawing.legend(handles=[*patches, *handles], loc="outside upper center", ncols=3)
    return drawing


PROOFS = {"bits": ("proved, bit for bit", True), "exact": ("proved, exact arithmetic", False)}
"""How a cell is known: its label, and whether its dot is full."""


def draw_proofs(panel: Axes, pairs: pd.DataFrame, place: Mapping[str, int]) -> list[Line2D]:
    """A dot in each cell that is proved, full for a proof of bits; their legend. An edge is proved but for a point."""
    legend = []
    how = pairs["proof"].replace("edges", "exact")
    for known, (label, full) in PROOFS.items():
        cells = [
            (place[a], place[b]) for a, b in pairs.loc[how == known, ["a", "b"]].itertuples(index=False, name=None)
        ]
        if cells:
            x, y = np.array([*cells, *(cell[::-1] for cell in cells)]).T + 0.5
            dots = panel.plot(
                x, y, "o", markersize=1.6, markeredgewidth=0.4, color="white", fillstyle="full" if full else "none"
            )
            legend += [Line2D([], [], color="black", fillstyle=dot.get_fillstyle(), label=label) for dot in dots]
    for line in legend:
        line.set(linestyle="none", marker="o", markersize=3, markeredgewidth=0.5)
    return legend
