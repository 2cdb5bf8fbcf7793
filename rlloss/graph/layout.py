"""Where the boxes of a graph stand: layers from left to right, as few crossings as a few sweeps find.

Layers by the longest path from the inputs (Sugiyama's first step), long edges through a waypoint in each layer that
they cross, order within a layer by the barycentre of the neighbours. Python numbers (``1 - clip_coef``) get no box:
their inputs are linked to where the numbers are used. A helper function that makes a weight without a gradient is
folded into one box.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from rlloss.graph.graph import Graph, Node
from rlloss.graph.ops import OPS

WIDTH, GAP, SPACE, MARGIN = 128, 52, 20, 12  # of a box; between layers; between boxes; around all, in pixels
FOLD_FROM = 4  # operations: a smaller helper function is shown in full
LINE = 15
SWEEPS = 24


@dataclass(frozen=True)
class Box:
    """A node's place: the middle of its box. ``members``: the nodes that a folded box stands for."""

    node: int
    x: float
    y: float
    height: float
    members: tuple[int, ...] = ()


@dataclass(frozen=True)
class Link:
    """A line from box to box: curved from the 1st of ``points`` to the 2nd, straight to the 3rd, and so on.

    ``via``: the graph's (operation, position) edges that it stands for.
    """

    source: int
    target: int
    via: tuple[tuple[int, int], ...]
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Layout:
    width: float
    height: float
    boxes: tuple[Box, ...]
    links: tuple[Link, ...]


def folds(graph: Graph) -> dict[int, tuple[int, ...]]:
    """For each helper function with one result that carries no gradient: the result's node, and all that made it."""
    scopes: dict[str, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        if node.scope and not node.number:
            scopes[node.scope].append(node)
    found = {}
    for members in scopes.values():
        inside = {node.id for node in members}
        used = {arg for node in graph.nodes if node.id not in inside for arg in node.args if isinstance(arg, int)}
        results = [node for node in members if node.id in used]
        if len(members) >= FOLD_FROM and len(results) == 1 and not results[0].requires_grad:
            found[results[0].id] = tuple(node.id for node in members)
    return found


def _links(graph: Graph, groups: dict[int, tuple[int, ...]]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(source, target) boxes with the edges of the graph between them."""
    box_of = {member: result for result, members in groups.items() for member in members}

    def sources(arg: int | float) -> set[int]:
        if not isinstance(arg, int):
            return set()
        node = graph.nodes[arg]
        if node.number and node.op != "input":
            return {source for inner in node.args for source in sources(inner)}
        return {box_of.get(arg, arg)}

    links: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for node in graph.nodes:
        if not node.number:
            target = box_of.get(node.id, node.id)
            for position, arg in enumerate(node.args):
                for source in sorted(sources(arg) - {target}):
                    links[source, target].append((node.id, position))
    return links


def layout(graph: Graph, fold: bool = True, box_width: float = WIDTH, gap: float = GAP) -> Layout:
    """Boxes and links of a graph, in pixels: for the page, and narrower for the printed twin."""
    groups = folds(graph) if fold else {}
    links = _links(graph, groups)
    layer = _layers(graph, links)
    ways: dict[tuple[int, int], list[int]] = {}  # waypoints are numbered below 0
    rows: dict[int, list[int]] = defaultdict(list)
    for node, depth in layer.items():
        rows[depth].append(node)
    near: dict[int, list[int]] = defaultdict(list)
    count = 0
    for source, target in links:
        chain = [source]
        for depth in range(layer[source] + 1, layer[target]):
            count += 1
            rows[depth].append(-count)
            chain.append(-count)
        chain.append(target)
        ways[source, target] = chain
        for a, b in pairwise(chain):
            near[a].append(b)
            near[b].append(a)
    size = {node: _height(graph, node, groups) if node >= 0 else LINE for row in rows.values() for node in row}
    y = _arrange([rows[depth] for depth in sorted(rows)], near, size)
    x = {node: MARGIN + box_width / 2 + depth * (box_width + gap) for depth, row in rows.items() for node in row}
    boxes = tuple(Box(n, x[n], y[n], size[n], groups.get(n, ())) for n in sorted(layer))
    return Layout(
        max(x.values()) + box_width / 2 + MARGIN,
        max(y[n] + size[n] / 2 for n in y) + MARGIN,
        boxes,
        tuple(Link(*ends, tuple(via), _points(ways[ends], x, y, box_width / 2)) for ends, via in links.items()),
    )


def _points(way: list[int], x: dict[int, float], y: dict[int, float], half: float) -> tuple[tuple[float, float], ...]:
    """From the right side of a box to the left side of another, straight through the layers between."""
    right = [(x[n] + half, y[n]) for n in way[:-1]]
    left = [(x[n] - half, y[n]) for n in way[1:]]
    return tuple(point for pair in zip(right, left, strict=True) for point in pair)


def _layers(graph: Graph, links: dict[tuple[int, int], list[tuple[int, int]]]) -> dict[int, int]:
    """Longest path from the inputs; then data, which would trail long lines, move to just before their first use."""
    layer: dict[int, int] = {}
    shown = {node for ends in links for node in ends} | {graph.loss}
    for node in sorted(shown):  # a node's arguments have smaller numbers than it has
        layer[node] = max((layer[s] + 1 for s, t in links if t == node), default=0)
    for i, given in enumerate(graph.inputs):
        if i in shown and not given.grad:
            layer[i] = max(0, min(layer[t] for s, t in links if s == i) - 1)
    return layer


def _height(graph: Graph, node: int, groups: dict[int, tuple[int, ...]]) -> float:
    """Room for a title, a formula, the value, the gradient, and a line for each gradient that may leave."""
    it = graph.nodes[node]
    if it.op == "input":
        return 3 * LINE + 12
    flows = 1 if node in groups else sum(isinstance(a, int) and OPS[it.op].has_slope(i) for i, a in enumerate(it.args))
    return (4 + min(flows, 3)) * LINE + 12


def _arrange(rows: list[list[int]], near: dict[int, list[int]], size: dict[int, float]) -> dict[int, float]:
    """Heights: order each layer by its neighbours' mean height, then draw it towards them, keeping the boxes apart."""
    y: dict[int, float] = {}
    for row in rows:
        y.update(_stacked(row, dict.fromkeys(row, 0.0), size))
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wish = {n: sum(y[m] for m in near[n]) / len(near[n]) if near[n] else y[n] for n in row}
            if sweep < SWEEPS // 2:
                row.sort(key=lambda n: (wish[n], -n))
            y.update(_stacked(row, wish, size))
    top = min(y[n] - size[n] / 2 for n in y)
    return {n: round(value - top + MARGIN, 1) for n, value in y.items()}


def _stacked(row: list[int], wish: dict[int, float], size: dict[int, float]) -> dict[int, float]:
    """Places in the given order, none closer than SPACE, as near to the wishes in the mean as a common shift brings."""
    y: dict[int, float] = {}
    floor = None
    for n in row:
        y[n] = wish[n] if floor is None else max(wish[n], floor + size[n] / 2)
        floor = y[n] + size[n] / 2 + SPACE
    shift = sum(wish[n] - y[n] for n in row) / len(row)
    return {n: value + shift for n, value in y.items()}
