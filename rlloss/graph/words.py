"""What is written on a graph's boxes, on the page and in print: titles, formulas, numbers."""

from collections.abc import Sequence

from rlloss.graph.graph import LONG, Graph, Node
from rlloss.graph.ops import ATOM, OPS, write

SIGNS = {
    "add": "+", "sub": "−", "mul": "×", "div": "÷", "rdiv": "÷", "neg": "−", "pow": "power", "clamp": "clip",
    "clamp_min": "max", "clamp_max": "min", "minimum": "min", "maximum": "max", "amin": "min", "amax": "max",
    "gt": ">", "ge": "≥", "lt": "<", "le": "≤", "eq": "=", "ne": "≠", "detach": "sg", "log": "ln", "abs": "abs",
    "log1p": "ln(1 + ·)", "sqrt": "√", "nextafter": "next", "logsigmoid": "ln sigmoid",
}  # fmt: skip
BRIEF = 12  # characters


def title(graph: Graph, node: Node) -> str:
    """What stands at the top of a node's box: the author's name for it, or the operation's sign."""
    sign = SIGNS.get(node.op, node.op)
    return node.name or (f"loss ({sign})" if node.id == graph.loss else sign)


def labels(graphs: Sequence[Graph]) -> list[str]:
    """A name for each graph: without its folders, unless that makes two the same."""
    brief = [graph.title.rpartition("/")[2] for graph in graphs]
    return [graph.title if brief.count(name) > 1 else name for graph, name in zip(graphs, brief, strict=True)]


def short(graph: Graph, node: Node) -> str:
    """A node's operation on its arguments' names; an argument without one shows
    its formula, if brief, or its operation. Nothing for an input."""
    if node.op == "input":
        return ""

    def argument(arg: int | float) -> tuple[str, int]:
        if not isinstance(arg, int):
            return f"{arg:g}".replace("-", "−"), ATOM
        other = graph.nodes[arg]
        if other.name or other.op == "input":
            return other.name, ATOM
        text = other.formula
        if not other.number and len(text) <= LONG:  # or its own arguments would be gone through again and again
            text = short(graph, other)
        if other.number or len(text) <= BRIEF:
            return text, OPS[other.op].level
        sign = SIGNS.get(other.op, other.op)
        return sign if sign.isalpha() else "·", ATOM

    return write(node.op, [argument(a) for a in node.args])[0]


def number(x: float | None, digits: int = 5) -> str:
    """A few significant digits and a real minus sign, none for zero; a dash for None."""
    return "–" if x is None else f"{x + 0.0:.{digits}g}".replace("-", "−").replace("inf", "∞")
