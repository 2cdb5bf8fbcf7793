"""Graphs for papers: the page's graphs printed, and the table that compares losses by what their graphs say."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path as Curve

from rlloss import figures
from rlloss.figures import BLUE, GREY, LABELS, VERMILION
from rlloss.graph.graph import Edge, Graph, Node
from rlloss.graph.layout import LINE, Box, Layout, Link, layout
from rlloss.graph.words import labels, number, short, title

BOX, GAP = 96, 26  # narrower than on the page
POINTS = 0.6  # per pixel of the layout
SMALL, LARGE = 6.0, 7.2  # points, in the figure's own size
FITS = 20  # characters across a box
COLOURS = (BLUE, VERMILION)


@dataclass(frozen=True)
class _Sheet:
    """One graph on its axes."""

    axes: Axes
    graph: Graph
    places: Layout
    colour: str

    def edges(self, link: Link) -> list[Edge]:
        return [e for e in self.graph.edges if (e.target, e.position) in link.via]


def graph_figure(graphs: Sequence[Graph], *, fold: bool = True) -> Figure:
    """Graphs one below the other, with values and gradients, each in its own colour; call it inside ``figures.style``.

    Solid: a gradient comes back along it (the arrow points that way); dashed: cut; thin: none.
    """
    places = [layout(graph, fold, BOX, GAP) for graph in graphs]
    width, heading = max(it.width for it in places), 2 * LINE
    height = sum(it.height + heading for it in places)
    figure = Figure(figsize=(width * POINTS / 72, height * POINTS / 72))
    figure.set_layout_engine("none")
    top, names = height, labels(graphs)
    for i, (graph, it) in enumerate(zip(graphs, places, strict=True)):
        axes = figure.add_axes(
            (0, (top - it.height - heading) / height, it.width / width, (it.height + heading) / height)
        )
        axes.set(xlim=(0, it.width), ylim=(it.height, -heading))
        axes.axis("off")
        sheet = _Sheet(axes, graph, it, COLOURS[i % 2])
        name = LABELS.get(graph.title, names[i])
        value = f"{graph.nodes[graph.loss].formula} = {number(graph.nodes[graph.loss].value)}"
        axes.text(12, -heading / 2, name, fontsize=LARGE + 1, color=sheet.colour, weight="bold", va="center")
        axes.text(12 + 7.6 * len(name) + 20, -heading / 2, value, fontsize=LARGE, va="center")
        for link in it.links:
            _draw_link(sheet, link)
        for box in it.boxes:
            _draw_box(sheet, box)
        top -= it.height + heading
    return figure


def _draw_link(sheet: _Sheet, link: Link) -> None:
    edges = sheet.edges(link)
    members = next(box.members for box in sheet.places.boxes if box.node == link.target)
    flows = any(edge.outgoing is not None for edge in edges)
    wants = sheet.graph.nodes[link.source].requires_grad
    cut = wants and not flows and any(sheet.graph.nodes[n].cut for n in members or (link.target,))
    points, codes = [link.points[0]], [Curve.MOVETO]
    for i in range(0, len(link.points), 2):
        (x0, y0), (x1, y1) = link.points[i : i + 2]
        if i:
            points.append((x0, y0))
            codes.append(Curve.LINETO)
        middle = (x0 + x1) / 2
        points += [(middle, y0), (middle, y1), (x1, y1)]
        codes += [Curve.CURVE4] * 3
    colour, line = (sheet.colour, "-") if flows else ("black", (0, (3, 2))) if cut else (GREY, "-")
    sheet.axes.add_patch(
        FancyArrowPatch(
            path=Curve(points, codes), arrowstyle="<|-" if flows else "-|>", mutation_scale=5, color=colour,
            linewidth=1.1 if flows else 0.7 if cut else 0.5, linestyle=line, shrinkA=0, shrinkB=0, fill=False,
        )
    )  # fmt: skip
    if cut:
        (x0, y0), (x1, y1) = link.points[1:3] if len(link.points) > 2 else link.points
        halo = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
        sheet.axes.text((x0 + x1) / 2, (y0 + y1) / 2, "cut", fontsize=SMALL, ha="center", va="center", bbox=halo)


def _draw_box(sheet: _Sheet, box: Box) -> None:
    node = sheet.graph.nodes[box.node]
    carries = node.gradient is not None
    lines = _lines(sheet, box)
    height = len(lines) * LINE + 8
    goal = carries and node.op == "input"
    sheet.axes.add_patch(
        FancyBboxPatch(
            (box.x - BOX / 2, box.y - height / 2), BOX, height, boxstyle="round,pad=0,rounding_size=4",
            facecolor="white",
            edgecolor=sheet.colour if carries else "black" if node.cut else GREY,
            linewidth=1.6 if goal else 0.9 if carries or node.cut else 0.5, linestyle="--" if node.cut else "-",
        )
    )  # fmt: skip
    for i, (text, size, weight, colour) in enumerate(lines):
        y = box.y - height / 2 + 4 + (i + 0.55) * LINE
        sheet.axes.text(box.x, y, text, fontsize=size, weight=weight, color=colour, ha="center", va="center")


def _lines(sheet: _Sheet, box: Box) -> list[tuple[str, float, str, str]]:
    """(text, size, weight, colour) of each line in a box: title, formula, value, gradient, its parts, what leaves."""
    graph, node = sheet.graph, sheet.graph.nodes[box.node]
    lines = [(title(graph, node), LARGE, "bold", "black")]
    formula = f"{node.scope}(…)" if box.members else short(graph, node)
    if formula:
        lines.append((formula if len(formula) <= FITS else formula[: FITS - 1] + "…", SMALL, "normal", "#555555"))
    lines.append((number(node.value), SMALL, "normal", "black"))
    if node.gradient is None:
        return lines
    size = LARGE if node.op == "input" else SMALL
    lines.append((f"∂ {number(node.gradient)}", size, "bold", sheet.colour))
    parts = [e.outgoing for e in graph.edges if e.source == node.id and e.outgoing is not None][::-1]
    if len(parts) > 1:
        signs = ["" if i == 0 else "− " if part < 0 else "+ " for i, part in enumerate(parts)]
        sizes = [number(part if i == 0 else abs(part), 3) for i, part in enumerate(parts)]
        text = " ".join(map("".join, zip(signs, sizes, strict=True)))
        lines.append((f"= {text}" if len(text) <= FITS else f"sum of {len(parts)}", SMALL, "normal", sheet.colour))
    for edge in [e for e in graph.edges if e.target == node.id and e.outgoing is not None][:3]:
        lines.append((f"× {number(edge.local, 4)} = {number(edge.outgoing, 4)}", SMALL, "normal", sheet.colour))
    return lines


def graph_table(graphs: Sequence[Graph]) -> pd.DataFrame:
    """Losses compared by their graphs: value, gradient path, intermediate variables; then numbers at their start.

    Gradient path: what the gradient passes through on its way from the loss to the inputs, read from the inputs on.
    """
    columns = dict(zip(labels(graphs), map(_column, graphs), strict=True))
    return pd.DataFrame(columns).rename_axis("").reset_index()


def _column(graph: Graph) -> dict[str, str]:
    boxes = [graph.nodes[box.node] for box in layout(graph).boxes]
    telling = [node for node in boxes if node.op != "input" and node.id != graph.loss and _tells(graph, node)]
    goals = [given.label for given, node in zip(graph.inputs, graph.nodes, strict=False) if node.gradient is not None]
    passed = [title(graph, node) for node in telling if node.gradient is not None]
    cut = [title(graph, node) for node in boxes if node.cut]
    path = " → ".join([", ".join(goals), *passed, "loss"])
    return {
        "value": graph.nodes[graph.loss].formula,
        "gradient path": path + (f"; {', '.join(cut)} detached" if cut else ""),
        "intermediate variables": ", ".join(_variable(graph, node) for node in telling) or "none",
        "operations": str(sum(node.op != "input" and not node.number for node in graph.nodes)),
        f"value at {_at(graph)}": number(graph.nodes[graph.loss].value, 17),
        "gradient there": ", ".join(f"{graph.inputs[n].label}: {number(graph.nodes[n].gradient, 17)}"
                                    for n in range(len(graph.inputs)) if graph.nodes[n].gradient is not None),
    }  # fmt: skip


def _tells(graph: Graph, node: Node) -> bool:
    """Whether a node is worth a word: the author named it, or it is more than arithmetic."""
    return bool(node.name) or title(graph, node).isalpha()


def _variable(graph: Graph, node: Node) -> str:
    text = title(graph, node) if node.name else short(graph, node)
    return f"{text} (stop-gradient)" if node.cut else text


def _at(graph: Graph) -> str:
    return ", ".join(f"{given.label} = {number(given.value)}" for given in graph.inputs)


def save_figure(graphs: Sequence[Graph], path: Path, *, fold: bool = True) -> None:
    """Write one .svg, .pdf or .png, the same bytes whenever it is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with figures.style():
        graph_figure(graphs, fold=fold).savefig(path, metadata=figures.METADATA[path.suffix])
