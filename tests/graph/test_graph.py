"""Graphs as data: what is traced is what autograd did, on the zoo, on expressions and on a user's own functions."""

import cProfile
import math
import re
import sys
import warnings
from itertools import combinations, pairwise

import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from matplotlib.patches import FancyBboxPatch

from rlloss import figures, tables
from rlloss.cli import main
from rlloss.errors import ConfigError, GraphError, LossError
from rlloss.graph import replay, trace
from rlloss.graph.expressions import EXPRESSIONS
from rlloss.graph.layout import GAP, MARGIN, WIDTH, folds, layout
from rlloss.graph.ops import OPS
from rlloss.graph.printed import graph_figure, graph_table
from rlloss.graph.words import number, short
from rlloss.losses import LOSSES, SEQUENCE_LOSSES
from rlloss.losses.formulation import load_function

ALL = [*EXPRESSIONS, *LOSSES, *SEQUENCE_LOSSES]


def named(graph, name):
    (node,) = [node for node in graph.nodes if node.name == name]
    return node


# ---------------------------------------------------------------------------------------------------- the seed


def test_the_squared_error_has_the_values_and_gradients_of_a_hand_calculation():
    graph = trace("squared_error")
    w, b, x, y = (0.8, 0.5, 2.0, 1.0)
    assert [named(graph, z).value for z in ("z1", "z2", "z3")] == [w * x, w * x + b, w * x + b - y]
    z3 = w * x + b - y
    assert graph.nodes[graph.loss].value == pytest.approx(z3**2, rel=1e-15)
    assert named(graph, "w").gradient == pytest.approx(2 * z3 * x, rel=1e-15)
    assert named(graph, "b").gradient == pytest.approx(2 * z3, rel=1e-15)
    assert named(graph, "x").gradient is None  # data
    assert [node.formula for node in graph.nodes if node.op != "input"] == ["w × x", "z1 + b", "z2 − y", "z3²"]


def test_contributions_of_a_fan_out_add_up():
    graph = trace("fan_out")
    flows = [edge.outgoing for edge in graph.edges if edge.source == 0]
    assert flows == [2 * 0.6, pytest.approx(math.exp(0.6))]
    assert graph.nodes[0].gradient == sum(flows)


def test_a_detach_cuts_its_edge_and_the_cut_gradient_is_known():
    graph = trace("stop_gradient")
    (cut,) = [edge for edge in graph.edges if edge.cut]
    assert graph.nodes[cut.target].op == "detach"
    assert cut.outgoing is None
    assert graph.nodes[0].gradient == 0.6**2
    opened = replay(graph, [0.6], frozenset())
    assert opened.gradients[0] == pytest.approx(3 * 0.6**2)
    assert replay(graph, [0.6]).gradients[cut.target] == 0.6  # what arrives at the cut and is lost


# ----------------------------------------------------------------------------------------------------- the zoo


@pytest.mark.parametrize("name", ALL)
def test_incoming_times_local_summed_over_uses_is_autograds_gradient_to_the_last_bit(name):
    graph = trace(name, incoming=1 / 3)
    outgoing = {(edge.target, edge.position): edge.outgoing for edge in graph.edges}
    compared = 0
    for node in graph.nodes:
        if node.gradient is None or node.id == graph.loss:
            continue
        flows = [outgoing[use] for use in graph.consumers(node.id) if outgoing[use] is not None]
        total = flows[0]
        for flow in flows[1:]:
            total += flow
        assert total == node.gradient, node
        compared += 1
    assert compared >= 1


@pytest.mark.parametrize("name", ALL)
def test_incoming_times_local_is_outgoing(name):
    graph = trace(name)
    for edge in graph.edges:
        if edge.outgoing is not None:
            assert edge.outgoing == pytest.approx(graph.nodes[edge.target].gradient * edge.local, rel=1e-14, abs=1e-300)
        if edge.cut:
            assert edge.outgoing is None


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=25, deadline=None)
@given(
    logp=st.floats(-5, 0), old_logp=st.floats(-5, 0), advantages=st.floats(-3, 3), eps=st.floats(0.01, 0.9),
    n=st.sampled_from([1, 3, 64, 1000]),
)  # fmt: skip
def test_replaying_a_graph_anywhere_gives_the_losss_own_value_and_gradient(name, logp, old_logp, advantages, eps, n):
    assume(abs(logp - old_logp) < 4)
    graph = GRAPHS.setdefault(name, trace(name)) if name not in GRAPHS else GRAPHS[name]
    again = replay(graph, [logp, old_logp, advantages, eps], incoming=1 / n)
    leaf = torch.tensor([logp], dtype=torch.float64, requires_grad=True)
    rest = [torch.tensor([x], dtype=torch.float64) for x in (old_logp, advantages)]
    loss = LOSSES[name](leaf, *rest, clip_coef=eps)
    (gradient,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, 1 / n))
    assert again.values[graph.loss] == pytest.approx(loss.item(), rel=1e-12, abs=1e-12)
    assert again.gradients[0] == pytest.approx(gradient.item(), rel=1e-12, abs=1e-12)


GRAPHS = {}


def test_ppo_clip_and_reinforce_are_two_graphs_with_one_gradient():
    ppo, reinforce = trace("ppo_clip"), trace("reinforce")
    assert ppo.nodes[0].gradient == reinforce.nodes[0].gradient  # the bits
    assert ppo.nodes[ppo.loss].value != reinforce.nodes[reinforce.loss].value
    assert not any(edge.cut for edge in ppo.edges)
    cuts = {reinforce.nodes[edge.target].formula for edge in reinforce.edges if edge.cut}
    assert cuts == {"sg(ratio)", "sg(where(share > 0, share × ratio, 0))"}
    assert named(reinforce, "ratio").gradient is None  # no path through the ratio
    assert named(ppo, "ratio").gradient is not None


def test_the_two_branches_of_ppos_minimum_each_give_half_to_the_ratio():
    graph = trace("ppo_clip")
    ratio = named(graph, "ratio")
    flows = [edge.outgoing for edge in graph.edges if edge.source == ratio.id]
    assert flows == [-0.65, -0.65]
    assert ratio.gradient == -1.3


def test_a_sequence_loss_has_a_node_for_every_token():
    graph = trace("grpo")
    assert [given.label for given in graph.inputs if given.grad] == ["logp[0,0]", "logp[0,1]", "logp[1,0]", "logp[1,1]"]
    assert graph.nodes[3].gradient == 0  # the masked token


# ----------------------------------------------------------------------------------------------------- your own


@pytest.fixture
def write(tmp_path):
    def write(body, name="mine"):
        file = tmp_path / f"{name}.py"
        file.write_text("import math\n\nimport torch\n\n\n" + body)
        return str(file)

    return write


LOSS = "def loss(logp, old_logp, advantages, *, clip_coef):\n"


def test_a_users_loss_in_a_file_is_traced(write):
    body = LOSS + (
        "    logratio = logp - old_logp\n"
        "    with torch.no_grad():\n"
        "        w = torch.clamp(logratio.exp(), 1 - clip_coef, 1 + clip_coef)\n"
        "    return -(w * advantages * logp).mean(), {'kl': logratio.mean().item()}\n"
    )
    graph = trace(write(body) + ":loss")
    cut = [graph.nodes[edge.target] for edge in graph.edges if edge.cut]
    assert [node.formula for node in cut] == ["exp(logratio)"]  # torch.no_grad is a stop-gradient too
    assert named(graph, "w").line == "mine.py, line 9"
    assert graph.nodes[graph.loss].op == "neg"


def test_a_users_expression_is_traced_from_its_defaults(write):
    graph = trace(write("def f(a=2.0, *, b=-3.0):\n    return torch.sigmoid(a * b) + math.pi\n") + ":f")
    assert [(g.name, g.value, g.grad) for g in graph.inputs] == [("a", 2.0, True), ("b", -3.0, False)]
    s = 1 / (1 + math.exp(6))
    assert graph.nodes[0].gradient == pytest.approx(-3 * s * (1 - s))


@pytest.mark.parametrize(
    ("body", "error", "says"),
    [
        ("    return torch.autograd.grad((logp.square() * advantages).sum(), logp, create_graph=True)[0].sum()\n",
         GraphError,
         r"cannot follow what makes its result, as torch.autograd.grad"),
        ("    return -torch.cumsum(logp, 0) * advantages\n", GraphError, r"cannot follow cumsum \(mine.py, line 7\)"),
        ("    x = logp - old_logp\n    x *= 2\n    return x\n", GraphError, "mul_ in place .* a new name"),
        ("    return (logp - old_logp).float().double()\n", GraphError, "float to torch.float32 .* float64 throughout"),
        ("    return logp * 2 if (advantages > 0).all() else logp\n", GraphError, "torch.where"),
        ("    return logp * float(torch.exp(old_logp))\n", GraphError, "do not compute what it does"),
        ("    return old_logp * 2\n", LossError, "has no gradient"),
        ("    return logp.nope()\n", LossError, "raised AttributeError"),
    ],
)  # fmt: skip
def test_what_a_graph_cannot_hold_is_refused_in_one_line(write, body, error, says):
    with pytest.raises(error, match=says) as caught:
        trace(write(LOSS + body) + ":loss")
    assert "\n" not in str(caught.value)


def test_a_profiler_hinders_nothing_and_goes_on():
    traced = trace("ppo_clip")
    profiler = cProfile.Profile()
    with profiler:
        found = trace("ppo_clip")
        math.hypot(3.0, 4.0)
    profiler.create_stats()
    assert found == traced
    assert any("hypot" in name for *_, name in profiler.stats)

    def heard(frame, event, argument):
        pass

    sys.setprofile(heard)
    try:
        trace("reinforce")
        assert sys.getprofile() is heard
    finally:
        sys.setprofile(None)


def test_branches_on_a_setting_are_no_obstacle_but_numbers_hidden_from_the_slider_are(write):
    trace(write(LOSS + "    return logp * (2 if clip_coef > 0 else 3)\n") + ":loss")
    body = "from math import log1p\n\n\n" + LOSS + "    return (logp - old_logp).clamp(max=log1p(clip_coef))\n"
    with pytest.raises(GraphError, match="do not compute what it does"):
        trace(write(body, "hidden") + ":loss")


HIDDEN = {  # what the start does not show: another branch within the sliders' range, or a number of another origin
    "an input's other branch": "def f(a=2.0):\n    return a * 2 if a > 2.5 else a * 1.0\n",
    "a default of zero": "def f(w=1.0, b=0.0):\n    return w * (b.item() + 1)\n",
    "a sign": "def f(w=1.0, b=0.0):\n    return w * 2 if b > 0.5 else w * 1.0\n",
    "a floor on a setting": LOSS.replace("loss", "f") + "    return logp * max(clip_coef, 0.1)\n",
    "a setting's other branch": LOSS.replace("loss", "f") + "    return logp * (2 if clip_coef > 0.3 else 3)\n",
    "a far ratio": LOSS.replace("loss", "f")
    + "    r = torch.exp(logp - old_logp)\n    return r * 2 if r > 10 else r * 1\n",
}


@pytest.mark.parametrize("case", HIDDEN)
def test_a_graph_that_is_true_at_the_start_only_is_refused(write, case):
    with pytest.raises(GraphError, match="do not compute what it does"):
        trace(write(HIDDEN[case]) + ":f")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("def f(x=2.0, n=3):\n    return sum(x for _ in range(n))\n", "raised TypeError"),
        ("def f(a=1.0):\n    return a.nope()\n", "raised AttributeError"),
        ("def f(a=float('inf')):\n    return a * 2\n", "a=inf; give a a finite default"),
        ("def f(a=1.0):\n    return a.item()\n", "must return one number as a tensor"),
    ],
)
def test_an_expression_that_fails_is_one_line(write, body, says):
    with pytest.raises(LossError, match=says) as caught:
        trace(write(body) + ":f")
    assert "\n" not in str(caught.value)


def test_expressions_of_every_kind_of_parameter(write):
    assert trace(write("def f(a=2.0, /, b=3.0):\n    return a * b\n") + ":f").nodes[0].gradient == 3
    bare = trace(write("def f(a=2.0):\n    return a\n", "bare") + ":f")
    assert (bare.loss, bare.nodes[0].gradient) == (0, 1)
    assert len(layout(bare).boxes) == 1
    small = trace(write("def f(lr=3e-4):\n    return lr * 2\n", "small") + ":f").inputs[0]
    assert (small.low, small.high, small.step) == (-0.001, 0.001, 0.00001)


WAYS = {  # of writing one thing: each gives the gradient that autograd gives, and a graph that says so
    "where as a method": "    return logp.where(advantages > 0, old_logp * logp)\n",
    "a logarithm to a base": "    return logp * math.log(clip_coef, 2)\n",
    "an axis": "    return torch.stack([logp, logp * advantages], 1).sum(axis=1)\n",
    "a setting as a fill": "    return logp * torch.full_like(logp, 1 - clip_coef)\n",
    "a clone without gradients": "    with torch.no_grad():\n        w = logp.clone()\n    return w * logp\n",
    "a view without gradients": "    with torch.no_grad():\n        w = logp.unsqueeze(0)[0]\n    return w * logp\n",
    "diagnostics": "    seen = logp.detach()\n    return logp * advantages, seen.var(0, False), seen.cpu().numpy()\n",
}


@pytest.mark.parametrize("case", WAYS)
def test_other_ways_of_writing_it_are_followed(write, case):
    file = write(LOSS + WAYS[case])
    graph = trace(file + ":loss")
    values = [given.value for given in graph.inputs]
    logp = torch.tensor([values[0]], dtype=torch.float64, requires_grad=True)
    loss = load_function(file + ":loss")(logp, *(torch.tensor([v], dtype=torch.float64) for v in values[1:3]),
                                         clip_coef=values[3])  # fmt: skip
    loss = loss[0] if isinstance(loss, tuple) else loss
    assert graph.nodes[graph.loss].value == loss.item()
    assert graph.nodes[0].gradient == torch.autograd.grad(loss, logp)[0].item()
    assert any(node.cut for node in graph.nodes) == ("without gradients" in case)


def test_what_cannot_be_followed_is_refused_where_the_loss_depends_on_it(write):
    with pytest.raises(GraphError, match=r"cannot follow std .*line 7.* let the advantages come normalised"):
        trace(write(LOSS + "    return logp * torch.stack([logp, old_logp]).std()\n") + ":loss")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's, about the spread of one sample, would be a second line
        with pytest.raises(GraphError, match=r"cannot follow std .*line 7"):
            trace(write(LOSS + "    return logp * advantages / (advantages.std() + 1e-8)\n", "normalised") + ":loss")
    with pytest.raises(GraphError, match=r"cannot follow add with alpha"):
        trace(write(LOSS + "    return torch.add(logp, advantages, alpha=2)\n", "alpha") + ":loss")


def test_a_comparison_without_gradients_is_no_cut(write):
    body = "    with torch.no_grad():\n        m = logp < old_logp\n    return torch.where(m, logp, old_logp)\n"
    assert not any(node.cut for node in trace(write(LOSS + body) + ":loss").nodes)


def test_formulas_of_names_used_again_stay_short(write):
    newton = (
        "def f(a=2.0):\n    x = a * 1.0\n    for _ in range(30):\n        x = x - (x * x - a) / (2 * x)\n    return x\n"
    )
    graph = trace(write(newton) + ":f")
    assert graph.nodes[graph.loss].value == pytest.approx(math.sqrt(2))
    assert max(len(node.formula) for node in graph.nodes) < 1000
    assert max(len(short(graph, node)) for node in graph.nodes) < 1000


def test_files_of_one_name_stay_apart(write, tmp_path):
    first = write(LOSS + "    return logp * 2\n", "m")
    (tmp_path / "other").mkdir()
    second = tmp_path / "other" / "m.py"
    second.write_text(LOSS + "    return logp * 3\n")
    table = graph_table([trace(f"{first}:loss"), trace(f"{second}:loss")])
    assert list(table.columns) == ["", f"{first}:loss", f"{second}:loss"]


def test_tracing_leaves_no_trace():
    before = math.log1p, sys.getprofile()
    trace("ppo_log_clamp")
    assert (math.log1p, sys.getprofile()) == before
    assert type(torch.exp(torch.tensor(1.0))) is torch.Tensor


def test_an_unknown_loss_and_wrong_replays_are_refused():
    with pytest.raises(ConfigError, match="did you mean ppo_clip"):
        trace("ppo_clipp")
    with pytest.raises(ValueError, match="has 4 inputs, got 1"):
        replay(trace("ppo_clip"), [1.0])


# ---------------------------------------------------------------------------------------------------- operations


@pytest.mark.parametrize("op", OPS)
def test_the_slopes_of_an_operation_are_those_that_pytorch_gives(op):
    count = {"where": 3, "clamp": 3}.get(op, 1 if OPS[op].text.count("{}") == 1 else 2)
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.4, 0.3, 0.9)[:count]]
    result = OPS[op].apply(*leaves)
    assert result.dtype == torch.float64
    slopes = [OPS[op].has_slope(i) for i in range(count)]
    if not result.requires_grad:
        assert slopes == [False] * count
        return
    found = torch.autograd.grad(result, leaves, allow_unused=True)
    assert [g is not None for g in found] == slopes


# -------------------------------------------------------------------------------------------------------- layout


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_boxes_do_not_overlap_and_links_go_to_the_right(name, fold):
    graph = trace(name)
    it = layout(graph, fold)
    by_column = {}
    for box in it.boxes:
        by_column.setdefault(box.x, []).append(box)
        assert box.y - box.height / 2 >= MARGIN / 2
        assert box.y + box.height / 2 <= it.height
    for column in by_column.values():
        column.sort(key=lambda box: box.y)
        for a, b in pairwise(column):
            assert b.y - b.height / 2 - (a.y + a.height / 2) > 10
    assert {round((b - a) % (WIDTH + GAP), 6) for a in by_column for b in by_column} == {0}
    places = {box.node: box for box in it.boxes}
    for link in it.links:
        assert places[link.source].x < places[link.target].x
        xs = [x for x, _ in link.points]
        assert xs == sorted(xs)
        for box in it.boxes:  # no link runs through a box
            for (x0, y0), (x1, y1) in zip(link.points[1::2], link.points[2::2], strict=False):
                assert y0 == y1
                assert not (x0 < box.x < x1 and abs(y0 - box.y) < box.height / 2), (link, box)


def test_every_gradient_carrying_operation_is_drawn_and_only_weights_are_folded():
    graph = trace("reinforce")
    folded = folds(graph)
    assert {graph.nodes[n].name for n in folded} == {"share", "w"}
    drawn = {box.node for box in layout(graph).boxes}
    assert {node.id for node in graph.nodes if node.gradient is not None} <= drawn
    everything = {box.node for box in layout(graph, fold=False).boxes}
    assert everything == {node.id for node in graph.nodes if not node.number or node.op == "input"}


# ------------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "LOSS: none given"),
        (["ppo_clip"], "-o: missing"),
        (["ppo_klip", "-o", "x.html"], "did you mean ppo_clip"),
        (["ppo_clip", "-o", "x.html", "--clip-coef", "2"], "--clip-coef=2.0: must lie between 0 and 1"),
        (["a.py:f", "-o", "x.html"], "no such file"),
        (["ppo_clip", "-o", "x.gif"], "-o x.gif: unknown format .gif; use .html, .svg, .pdf, .png"),
        (["ppo_clip", "--table", "x.doc"], "--table x.doc: unknown format .doc; use .md, .csv, .tex"),
        (["--explain", "-o", "x.html"], "--explain writes into a folder"),
        (["--explain", "ppo_clip", "-o", "x"], "--explain: takes no LOSS"),
        (["--explain", "-o", "x", "--tables", "nowhere"], "nowhere/identical_trajectories.csv: no such table"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["graph", *arguments]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"rlloss: [^\n]+\n", error)
    assert says in error


@pytest.mark.parametrize("suffix", ["svg", "pdf", "png"])
def test_the_printed_twin_is_the_same_bytes_when_made_twice(suffix, tmp_path):
    for name in ("a", "b"):
        assert main(["graph", "ppo_clip", "reinforce", "-o", str(tmp_path / f"{name}.{suffix}")]) == 0
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_the_printed_twin_shows_the_graphs_numbers_inside_its_boxes():
    graphs = [trace("ppo_clip"), trace("reinforce")]
    with figures.style():
        figure = graph_figure(graphs)
        figure.draw_without_rendering()
    for axes, graph in zip(figure.axes, graphs, strict=True):
        texts = [text.get_text() for text in axes.texts]
        assert texts.count("∂ −1.4367") >= 1  # at logp
        assert number(graph.nodes[graph.loss].value) in texts
        assert ("cut" in texts) == any(edge.cut for edge in graph.edges)
        boxes = [patch.get_window_extent() for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
        for text in axes.texts[2:]:
            if text.get_text() == "cut":
                continue
            place = text.get_window_extent()
            assert any(
                box.x0 <= place.x0 and place.x1 <= box.x1 and box.y0 <= place.y0 and place.y1 <= box.y1 for box in boxes
            ), text
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))


def test_the_seeds_table_is_read_off_the_graphs(tmp_path):
    for suffix in ("md", "csv", "tex"):
        assert main(["graph", "ppo_clip", "reinforce", "--table", str(tmp_path / f"t.{suffix}")]) == 0
    table = pd.read_csv(tmp_path / "t.csv", index_col=0)
    assert dict(table["ppo_clip"].iloc[:3]) == {
        "value": "−min(ratio × A, clip(ratio, 1 − ε, 1 + ε) × A)",
        "gradient path": "logp → ratio → clip → min → loss",
        "intermediate variables": "ratio, clip(ratio, 1 − ε, 1 + ε), min(ratio × A, clip × A)",
    }
    assert dict(table["reinforce"].iloc[:3]) == {
        "value": "−(w × logp × A)",
        "gradient path": "logp → loss; w detached",
        "intermediate variables": "ratio, share, w (stop-gradient)",
    }
    assert table.loc["gradient there", "ppo_clip"] == table.loc["gradient there", "reinforce"]
    assert "| gradient path | logp → ratio" in (tmp_path / "t.md").read_text()
    assert (tmp_path / "t.tex").read_text().isascii()


def test_every_loss_has_a_table_in_latex():
    text = tables.latex(graph_table([trace(name) for name in LOSSES]), "rlloss graph")
    assert all(name.replace("_", r"\_") in text for name in LOSSES)
