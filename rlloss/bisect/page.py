"""What bisecting found, as a page: each pair's finding, its steps on a line, and where in the losses' graphs it is."""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter

from rlloss import figures
from rlloss.bisect.found import Finding
from rlloss.errors import ConfigError
from rlloss.graph.data import Graph
from rlloss.graph.graph import trace
from rlloss.graph.page import document, figure
from rlloss.runs.reader import RunFolder
from rlloss.templates import environment
from rlloss.verify import drift, may_load

TEMPLATES = environment("rlloss.bisect", "assets")
FEW = 20  # optimiser steps, of which less have a tick each
MARKED = "Outlined: the operations through which the first gradient that differs comes."
ELSEWHERE = "The operation that parts them is none of the loss's own."


def page(findings: Sequence[Finding], headings: Sequence[str] = ()) -> str:
    """One self-contained page: a section for each finding, which the run folders still complete."""
    sections = [_section(found, title) for found, title in zip(findings, headings or [""] * len(findings), strict=True)]
    lead = "The first optimiser step after which two runs differ, the operation in it, and the cause."
    return document("Where runs part, and why", lead, "\n".join(sections))


def _title(a: RunFolder, b: RunFolder) -> str:
    """By their losses, or by their folders where these do not tell them apart."""
    if a.loss == b.loss:
        return f"{a.path.name} | {b.path.name}"
    return f"{a.loss} | {b.loss}" + (f", {a.config['env.id']}" if "env.id" in a.config else "")


def _section(found: Finding, heading: str) -> str:
    a, b = (RunFolder(Path(path)) for path in (found.run_a, found.run_b))
    heading = heading or _title(a, b)
    graphs = _graphs(a, b) if found.operation else []
    marked = [marks(graph, parts) for graph, parts in zip(graphs, (found.parts_a, found.parts_b), strict=False)]
    return TEMPLATES.get_template("section.html").render(
        heading=heading,
        rows=found.rows() | {"runs": f"a = {a.path.name}, b = {b.path.name}"},
        evidence=found.evidence,
        timeline=_uri(timeline(found, a, b)) if found.steps else "",
        told=_told(found),
        where="" if not graphs else MARKED if any(marked) else ELSEWHERE,
        graphs=figure(graphs, marked=marked) if any(marked) else "",
    )


def _told(found: Finding) -> str:
    if not found.differs:
        return f"No difference in {found.steps:,} optimiser steps."
    if found.step is None:
        return f"Equal after each of {found.steps:,} optimiser steps."
    if found.step == 0:
        return "Unlike from the start."
    if found.step == 1:
        return f"Unlike from the first of {found.steps:,} optimiser steps on."
    return f"Equal up to optimiser step {found.step - 1:,}, and unlike from {found.step:,} on, of {found.steps:,}."


def marks(graph: Graph, parts: Iterable[str]) -> set[int]:
    """The nodes of a loss's graph that are these operations: of that kind, on that line, passing a gradient on.

    On a line that has none of that kind, as where autograd calls it otherwise: all that pass one on.
    """
    found: set[int] = set()
    for part in parts:
        op, _, line = part.partition(", ")
        there = [n for n in graph.nodes if n.requires_grad and n.line.replace(", line ", ":") == line]
        found |= {n.id for n in [n for n in there if n.op == op] or there}
    return {n for n in found if not found & set(graph.nodes[n].args)}  # the first of a line, which the others take up


def _graphs(a: RunFolder, b: RunFolder) -> list[Graph]:
    """Of the losses of both runs, each once; of those that can be drawn, and may be loaded."""
    if not (a.loss and b.loss and may_load(a, b)):
        return []
    try:
        places = {str(run.config["loss.name"]): float(run.config["clip_coef"]) for run in (a, b)}
        return [trace(loss, clip_coef=clip_coef) for loss, clip_coef in places.items()]
    except (ConfigError, KeyError, ValueError):  # a record of another trainer, whose loss is a word
        return []


def timeline(found: Finding, a: RunFolder, b: RunFolder) -> Figure:
    """The steps on a line, equal and unlike; above it how far the parameters are apart, at the snapshots of both."""
    step = found.step if found.step is not None else found.steps + 1
    rows = [row for row in drift(a, b) if row.max_abs > 0] if found.step else []
    with figures.style():
        drawing, axes = figures.panels(2 if rows else 1, 1, figures.TEXT, 1.9 if rows else 0.9, sharex=True,
                                       **({"height_ratios": (3, 1)} if rows else {}))  # fmt: skip
        line = axes[-1, 0]
        if step > 1:
            line.barh(0, step - 1 + 0.5, left=0.5, color=figures.GREEN, label="equal digests")
        if step <= found.steps:
            line.barh(0, found.steps - step + 1, left=max(step, 1) - 0.5, color=figures.PURPLE, label="unlike digests")
            line.axvline(max(step, 1), color="black", linewidth=0.9)
        few = found.steps < FEW
        line.set(xscale="linear" if few else "log", xlim=(0.5, max(found.steps, 1) + 0.5), yticks=[])
        line.grid(visible=False)
        if few:
            line.set_xticks(range(1, found.steps + 1))
        line.xaxis.set_major_formatter(EngFormatter(sep=""))
        line.xaxis.set_minor_formatter(NullFormatter())
        line.set_xlabel("optimiser step")
        if rows:
            above = axes[0, 0]
            points = {"marker": "o", "clip_on": False} if len(rows) < 3 else {}
            above.plot([row.step for row in rows], [row.max_abs for row in rows], color=figures.PURPLE,
                       label="largest difference of a parameter", **points)  # fmt: skip
            above.set(yscale="log")
            above.yaxis.set_minor_formatter(NullFormatter())
            above.axvline(max(step, 1), color="black", linewidth=0.9)
        handles = [handle for one in axes[:, 0] for handle in one.get_legend_handles_labels()[0]]
        drawing.legend(handles=handles, loc="outside upper center", ncols=3)
        return drawing


def _uri(drawing: Figure) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(figures.svg(drawing).encode()).decode()}"
