"""Graphs as one self-contained page: data from the traces, scripts and styles inlined, nothing fetched."""

import json
from collections.abc import Collection, Sequence
from importlib import resources
from typing import Any

from rlloss.graph.graph import Graph, Node
from rlloss.graph.layout import WIDTH, Layout, layout
from rlloss.graph.ops import OPS
from rlloss.graph.words import labels, short, title
from rlloss.templates import environment

SCRIPTS = ("exact.js", "ops.js", "engine.js", "words.js", "draw.js", "curves.js", "detail.js", "figure.js", "start.js")

TEMPLATES = environment("rlloss.graph", "assets")


def asset(name: str) -> str:
    """A file of ``assets``, as text."""
    return (resources.files("rlloss.graph") / "assets" / name).read_text(encoding="utf-8")


def graph_data(graph: Graph, label: str, marked: Collection[int] = ()) -> dict[str, Any]:
    """A graph as the page's scripts read it (``assets/engine.js`` says how). ``marked``: nodes to be outlined."""
    folded = layout(graph)
    groups = {box.node: box for box in folded.boxes if box.members}

    def record(node: Node) -> dict[str, Any]:
        text = short(graph, node)
        if node.id in groups:
            text = f"{node.scope}(…)"
        data = {
            "op": node.op,
            "args": [a if isinstance(a, int) else [_constant(a)] for a in node.args],
            "slopes": [] if node.op == "input" else [OPS[node.op].has_slope(i) for i in range(len(node.args))],
            "title": title(graph, node),
            "text": text,
            "formula": node.formula,
            "line": node.line,
        }
        return data | ({"number": True} if node.number else {})

    return {
        "title": label,
        "inputs": [{k: getattr(i, k) for k in ("name", "label", "value", "low", "high", "step")} for i in graph.inputs],
        "nodes": [record(node) for node in graph.nodes],
        "loss": graph.loss,
        "cuts": sorted(graph.cuts()),
        "marked": sorted(marked),
        "goals": [n for n, given in enumerate(graph.inputs) if given.grad],
        "folded": _places(folded),
        "full": _places(layout(graph, fold=False)),
    }


def _constant(value: float) -> float | str:
    """JSON has no infinity: a string, which the page turns back into a number."""
    return value if value - value == 0 else {"inf": "Infinity", "-inf": "-Infinity"}.get(str(value), "NaN")


def _places(it: Layout) -> dict[str, Any]:
    return {
        "width": it.width,
        "height": it.height,
        "box": WIDTH,
        "boxes": [{"n": b.node, "x": b.x, "y": b.y, "members": b.members} for b in it.boxes],
        "links": [{"source": k.source, "target": k.target, "via": k.via, "points": k.points} for k in it.links],
    }


def figure(graphs: Sequence[Graph], *, mode: str = "backward", marked: Sequence[Collection[int]] = ()) -> str:
    """One live figure as a fragment of HTML: its data. ``document`` brings the scripts that start it.

    ``mode``: graph, forward or backward, what it shows first. ``marked``: of each graph, the nodes to be outlined.
    """
    ratio = all({"logp", "old_logp"} <= {i.name for i in g.inputs} for g in graphs)
    loss = all(any(i.name.startswith("logp") for i in g.inputs) for g in graphs)
    options = {"mode": mode, "curves": ratio, "batch": loss}
    data = {"graphs": list(map(graph_data, graphs, labels(graphs), marked or [()] * len(graphs))), "options": options}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" class="rl-data">{text}</script>\n'


def document(heading: str, lead: str, body: str) -> str:
    """A whole page around a body that holds figures."""
    scripts = "\n".join(map(asset, SCRIPTS)).replace("</script", "<\\/script")
    template = TEMPLATES.get_template("page.html")
    return template.render(heading=heading, lead=lead, style=asset("style.css"), scripts=scripts, body=body)


def page(graphs: Sequence[Graph]) -> str:
    """The page of one graph or several: linked sliders, the same modes, one banner."""
    names = " and ".join(labels(graphs))
    return document(f"{names}: computation graph", "Traced from PyTorch, computed in this page.", figure(graphs))
