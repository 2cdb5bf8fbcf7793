"""Compiled, the same losses are one as in eager mode, unless the compiler decides loss by loss how it vectorises."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rlloss import figures
from rlloss.claims import Claim, Finding, Overrides
from rlloss.losses import LOSSES
from rlloss.runs import RunFolder
from rlloss.verify import first_difference

EAGER, UNIFORM, HEURISTICS = "eager", "compiled", "compiled, heuristics on"
WAYS: dict[str, Overrides] = {
    EAGER: (),
    UNIFORM: ("update=compiled",),
    HEURISTICS: ("update=compiled", "compiler_heuristics=true"),
}
REFERENCE = "ppo_clip"
FAULTY = "ppo_softmin"  # of whose logsumexp the compiled code of torch 2.13 makes nan, at the third step
QUICK = (REFERENCE, "reinforce", "reinforce_logratio", "reinforce_textbook", "ppo_max")
SIZES = {"quick": (100, 128), "paper": (100, 120, 125, 128)}  # of minibatches, four in an epoch
COLOURS = dict(zip(WAYS, (figures.GREY, figures.BLUE, figures.VERMILION), strict=True))


def losses(preset: str) -> list[str]:
    return [REFERENCE, *(name for name in (QUICK if preset == "quick" else LOSSES) if name not in (REFERENCE, FAULTY))]


def runs(preset: str) -> list[Overrides]:
    steps = 16  # iterations, of sixteen optimiser steps
    return [
        (
            f"num_steps={size}", "learning_rate=0.003", "snapshot_every=0",
            f"total_timesteps={4 * size * steps}", f"loss={loss}", *way,
        )
        for size, way, loss in product(SIZES[preset], WAYS.values(), losses(preset))
    ]  # fmt: skip


def grouped(runs: Sequence[RunFolder]) -> Iterator[tuple[int, str, list[RunFolder]]]:
    """(minibatch, way, its runs), in the order of ``runs``."""
    settings: dict[tuple[int, str], list[RunFolder]] = {}
    for run in runs:
        way = EAGER if run.config["update"] != "compiled" else UNIFORM
        way = HEURISTICS if run.config["compiler_heuristics"] else way
        settings.setdefault((run.config["num_steps"], way), []).append(run)
    for (size, way), found in settings.items():
        yield size, way, found


def classes(runs: Sequence[RunFolder]) -> list[list[str]]:
    """The losses whose runs have the same parameters after every step, together."""
    found: dict[bytes, list[str]] = {}
    for run in runs:
        found.setdefault(run.digests.tobytes(), []).append(run.loss)
    return list(found.values())


def judge(runs: Sequence[RunFolder]) -> Finding:
    """Holds if the compiled runs, decided alike, fall into the classes of the eager ones at every size."""
    partitions = {(size, way): classes(found) for size, way, found in grouped(runs)}
    rows = []
    for (size, way), parts in partitions.items():
        mine = next(part for part in parts if REFERENCE in part)
        rows.append({
            "minibatch": size,
            "update": way,
            "losses": sum(map(len, parts)),
            "classes": len(parts),
            f"with the bits of {REFERENCE}": ", ".join(name for name in mine if name != REFERENCE) or "none",
            "classes as in eager": parts == partitions[size, EAGER],
        })  # fmt: skip
    table = pd.DataFrame(rows)
    uniform, own = (table[table["update"] == way] for way in (UNIFORM, HEURISTICS))
    parted = ", ".join(map(str, own[~own["classes as in eager"]]["minibatch"])) or "none"
    summary = (
        f"classes of {len(losses_of(runs))} losses as in eager mode at {uniform['classes as in eager'].sum()} of "
        f"{len(uniform)} minibatch sizes; by the compiler's own heuristics other classes at minibatches of {parted}"
    )
    return Finding(bool(uniform["classes as in eager"].all()), summary, table)


def losses_of(runs: Sequence[RunFolder]) -> list[str]:
    return list(dict.fromkeys(run.loss for run in runs))


def figure(runs: Sequence[RunFolder]) -> Figure:
    """At which optimiser step each loss parts from PPO's, by the way that steps are made; at the right, never."""
    names = [name for name in losses_of(runs) if name != REFERENCE]
    settings = list(grouped(runs))
    sizes = list(dict.fromkeys(size for size, _, _ in settings))
    height = 1.1 + 0.16 * len(names)
    drawing, axes = figures.panels(1, len(sizes), figures.TEXT, height, sharey=True)
    never = 10 ** np.ceil(np.log10(max(len(run.digests) for run in runs)) + 0.3)
    for size, way, found in settings:
        panel, place = axes[0, sizes.index(size)], list(WAYS).index(way)
        theirs = next(run for run in found if run.loss == REFERENCE)
        others = [run for run in found if run.loss != REFERENCE]
        x = [first_difference(theirs, run) or never for run in others]
        y = [names.index(run.loss) + 0.22 * (place - 1) for run in others]
        panel.plot(x, y, "o", color=COLOURS[way], markersize=3.2, label=way)
    for panel, size in zip(axes[0], sizes, strict=True):
        panel.set_title(f"minibatch {size}", loc="left")
        panel.set_xscale("log")
        ticks = [float(10**k) for k in range(int(np.log10(never)))]
        panel.set_xticks([*ticks, never], [*(f"{tick:,.0f}" for tick in ticks), "never"])
        panel.set_xlim(0.8, never * 1.6)
        panel.minorticks_off()
        panel.axvline(never / 1.8, color=figures.GREY, linewidth=0.6)
        panel.set_xlabel("optimiser step")
    axes[0, 0].set_yticks(range(len(names)), [figures.label(name) for name in names], fontsize=6)
    axes[0, 0].invert_yaxis()
    return figures.finish(drawing, axes, columns=3)


CLAIM = Claim(
    sentence=(
        "Compiled, an update has other bits than eager, and losses that are one to the last bit in eager mode stay "
        "one, if the compiler decides alike for all of them how loops are vectorised. Left to its heuristics it "
        "decides loss by loss, and may part what is one."
    ),
    runs=runs,
    judge=judge,
    figure=figure,
    order=45,
    on_request="its bits are those of one CPU and its compiler, and it compiles for minutes",
)
