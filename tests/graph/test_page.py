"""The live page in a real Chromium: what it computes is what PyTorch computes, wherever the sliders stand."""

import math
import random
from decimal import Decimal

import pytest
import torch

from rlloss.check.probes import at_ratio
from rlloss.claims.explanation import explanation_html, explanation_numbers, write_explanation
from rlloss.cli import main
from rlloss.errors import ConfigError
from rlloss.graph import replay, trace
from rlloss.graph.expressions import EXPRESSIONS
from rlloss.graph.ops import OPS
from rlloss.graph.page import page
from rlloss.losses import LOSSES, SEQUENCE_LOSSES
from tests.browser import opened, readable
from tests.helpers import ROOT

DIGITS = 1e-12
SLOW = pytest.mark.slow
REFERENCE = ROOT / "results/reference"
EVERY = [*EXPRESSIONS, *LOSSES, *SEQUENCE_LOSSES]
READ = """() => rlloss.figures[0].states.map((s) => ({values: [...s.values].map(String),
  gradients: s.gradients.map((g) => g === null ? null : String(g)), requires: [...s.requires]}))"""


@pytest.fixture
def show(tmp_path, browser):
    def show(*losses, **context):
        graphs = [trace(loss) for loss in losses]
        file = tmp_path / "page.html"
        file.write_text(page(graphs), encoding="utf-8")
        return graphs, opened(browser, file, **context)

    return show


def same(ours, theirs):
    return ours == theirs or abs(ours - theirs) <= DIGITS * max(1.0, abs(theirs)) or (ours != ours and theirs != theirs)


def number(text):
    return float(text.replace("Infinity", "inf"))


def positions(count, seed=0):
    """Places for a loss's sliders: both bounds to the bit, with the floats next to them; the ends; random ones."""
    rng = random.Random(seed)
    grid = [
        {
            "logp": round(rng.uniform(-3, 0), 2),
            "old_logp": round(rng.uniform(-3, 0), 2),
            "advantages": round(rng.uniform(-3, 3), 2),
            "clip_coef": round(rng.uniform(0.01, 0.99), 2),
        }
        for _ in range(count)
    ]
    edges = []
    for eps in (0.2, 0.1, 0.3):
        for bound in (1 - eps, 1 + eps, 1.0):
            for towards in (-math.inf, None, math.inf):
                ratio = bound if towards is None else math.nextafter(bound, towards)
                logp, old = (float(x) for x in at_ratio(torch.tensor([ratio], dtype=torch.float64)))
                if rounded_right(logp - old):
                    edges += [{"logp": logp, "old_logp": old, "advantages": a, "clip_coef": eps} for a in (1.3, -0.7)]
    ends = [
        {"logp": x, "old_logp": y, "advantages": a, "clip_coef": 0.2}
        for x in (-5, 0)
        for y in (-5, 0)
        for a in (-3, 0, 3)
    ]
    return edges, ends, grid


def rounded_right(x):
    """Whether PyTorch's exp is the true one, rounded: one bit decides at a bound, and it is off in 1 of 200 places."""
    return float(torch.exp(torch.tensor([x], dtype=torch.float64))) == float(Decimal(x).exp())


def drag(tab, place):
    """The sliders themselves where the place is on their grid, else the fields beside them."""
    for name, value in place.items():
        if round(value, 2) == value:
            tab.locator(f"input[data-input='{name}']").fill(str(value))
        else:
            field = tab.locator(f"input[data-number='{name}']")
            field.fill(repr(value))
            field.press("Enter")
            field.blur()


def assert_agrees(graphs, states, place, losses, n=1):
    """Every node's value and gradient in the page against PyTorch's, and against the loss function itself."""
    for graph, state, name in zip(graphs, states, losses, strict=True):
        theirs = replay(graph, [place[given.name] for given in graph.inputs], incoming=1 / n)
        for node, value, gradient in zip(graph.nodes, state["values"], state["gradients"], strict=True):
            assert same(number(value), theirs.values[node.id]), (place, node, value)
            expected = theirs.gradients[node.id]
            assert (gradient is None) == (expected is None), (place, node, gradient, expected)
            assert expected is None or same(number(gradient), expected), (place, node, gradient, expected)
        assert [bool(x) for x in state["requires"]] == [node.requires_grad for node in graph.nodes], place
        if name in LOSSES:
            leaf = torch.tensor([place["logp"]], dtype=torch.float64, requires_grad=True)
            rest = [torch.tensor([place[k]], dtype=torch.float64) for k in ("old_logp", "advantages")]
            loss = LOSSES[name](leaf, *rest, clip_coef=place["clip_coef"])
            (own,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, 1 / n))
            assert same(number(state["values"][graph.loss]), loss.item()), place
            assert same(number(state["gradients"][0]), own.item()), place


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=SLOW)])
def test_dragged_to_100_places_every_number_is_pytorchs(show, every):
    losses = ("ppo_clip", "reinforce")
    graphs, tab = show(*losses)
    edges, ends, grid = positions(100)
    places = (edges + ends + grid)[:100:every]
    assert len(edges) >= 40
    with tab as tab:
        for place in places:
            drag(tab, place)
            assert_agrees(graphs, tab.evaluate(READ), place, losses)
            banner = tab.locator(".rl-banner").inner_text()
            assert "same bits" in banner, (place, banner)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_of_the_zoo_dragged_to_the_bounds_and_elsewhere(show, name):
    graphs, tab = show(name)
    edges, ends, grid = positions(12, seed=len(name))
    with tab as tab:
        for place in edges[:8] + ends[:4] + grid:
            drag(tab, place)
            assert_agrees(graphs, tab.evaluate(READ), place, [name])


@pytest.mark.parametrize(
    "name", ["squared_error", "gspo", *(pytest.param(x, marks=SLOW) for x in EXPRESSIONS | SEQUENCE_LOSSES)]
)
def test_expressions_and_sequence_losses_agree_with_pytorch_too(show, name):
    graphs, tab = show(name)
    rng = random.Random(name)
    with tab as tab:
        for _ in range(5):
            place = {g.name: round(rng.uniform(g.low / 2, g.high / 2), 2) for g in graphs[0].inputs}
            drag(tab, place)
            assert_agrees(graphs, tab.evaluate(READ), place, [name])


def test_the_browsers_operations_are_pythons(show):
    _, tab = show("squared_error")
    rng = random.Random(1)
    with tab as tab:
        assert sorted(tab.evaluate("Object.keys(rlloss.OPS)")) == sorted(OPS)
        for name, op in OPS.items():
            count = {"where": 3, "clamp": 3}.get(name, 1 if op.text.count("{}") == 1 else 3 if "*" in op.text else 2)
            for trial in range(24):
                numbers = [round(rng.uniform(0.05, 2), 2) * rng.choice([1, -1][: 1 + trial % 2]) for _ in range(count)]
                if trial < 3:
                    numbers = [(1.0, -1.0, 0.0)[trial]] * count  # ties
                leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in numbers]
                value = op.apply(*leaves)
                ours, slopes = tab.evaluate(
                    "([op, a]) => { const y = rlloss.OPS[op].f(...a); return [y, rlloss.OPS[op].d(0.3, y, ...a)]; }",
                    [name, numbers],
                )
                assert same(ours, value.item()), (name, numbers)
                if value.requires_grad:
                    found = torch.autograd.grad(
                        value, leaves, torch.tensor(0.3, dtype=torch.float64), allow_unused=True
                    )
                    for i, expected in enumerate(found):
                        assert expected is None or same(slopes[i], expected.item()), (name, numbers, i)


def test_exp_and_its_relatives_are_rounded_right(show):
    _, tab = show("squared_error")
    rng = random.Random(2)
    numbers = [rng.uniform(-4, 4) for _ in range(1000)] + [1e-20, -1e-9, 700.0, -740.0]
    with tab as tab:
        assert tab.evaluate("(a) => a.map((x) => rlloss.OPS.exp.f(x))", numbers) == [
            float(Decimal(x).exp()) for x in numbers
        ]
        positive = [abs(x) for x in numbers]
        assert tab.evaluate("(a) => a.map((x) => rlloss.OPS.log.f(x))", positive) == [
            float(Decimal(x).ln()) for x in positive
        ]


# ----------------------------------------------------------------------------------------------------- the controls


@pytest.mark.parametrize("loss", ["reinforce_unclipped", *(pytest.param(x, marks=SLOW) for x in LOSSES)])
def test_stopping_the_gradient_anywhere_is_what_detach_does_there(show, loss):
    graphs, tab = show("ppo_clip", loss)
    with tab as tab:
        if tab.get_by_label("Every operation").count():
            tab.get_by_label("Every operation").check()
        for g, graph in list(enumerate(graphs))[1:]:
            for node in graph.nodes:
                box = tab.locator(f".rl-graph >> nth={g}").locator(f"[data-node='{node.id}']")
                if box.count() == 0 or node.number:
                    continue
                box.dispatch_event("click")
                tab.locator(".rl-detail input").click()
                cuts = graph.cuts() ^ {node.id}
                state = tab.evaluate(READ)[g]
                theirs = replay(graph, [i.value for i in graph.inputs], cuts)
                for other in graph.nodes:
                    ours, expected = state["gradients"][other.id], theirs.gradients[other.id]
                    assert (ours is None) == (expected is None), (node, other)
                    assert ours is None or same(number(ours), expected), (node, other)
                tab.locator(".rl-detail input").click()


def test_a_cut_says_what_is_lost(show):
    _, tab = show("ppo_clip", "reinforce")
    with tab as tab:
        tab.locator(".rl-graph >> nth=1").locator("[data-node]", has_text="_weight").dispatch_event("click")
        panel = tab.locator(".rl-detail")
        assert "1.17 arrives here and is lost" in panel.inner_text()  # -A logp
        assert "logp: 1.293" in panel.inner_text()
        panel.locator("input").click()  # the detach forgotten: reinforce_undetached
        assert "−1.43672 ≠ −0.143672 (differ by 1.29)" in tab.locator(".rl-banner").inner_text()
        assert tab.locator(".rl-cutlabel", has_text="cut").count() == 1
        tab.get_by_role("button", name="Reset").click()
        assert "same bits" in tab.locator(".rl-banner").inner_text()


def test_it_plays_through_and_steps_by_keyboard(show):
    _, tab = show("ppo_clip", "reinforce")
    with tab as tab:
        tab.get_by_role("button", name="Forward").click()
        tab.get_by_label("Speed").select_option("4")
        tab.get_by_role("button", name="Play").click()
        assert tab.get_by_role("button", name="Pause").count() == 1
        tab.wait_for_function("rlloss.figures[0].playing === null", timeout=15_000)
        assert tab.evaluate("rlloss.figures[0].at === rlloss.figures[0].steps")
        tab.get_by_role("button", name="Backward").click()
        first = tab.locator(".rl-node").first
        first.focus()
        seen = []
        tab.keyboard.press("ArrowRight")
        for _ in range(tab.evaluate("rlloss.figures[0].steps")):
            seen.append(tab.locator(".rl-live").inner_text())
            tab.keyboard.press("ArrowRight")
        assert seen[0].startswith("Step 1 of 8. ppo_clip: loss (−): 1 arrives, 1 × (−1) = −1 goes to min")
        assert any("ratio: −0.65 + (−0.65) = −1.3 arrives, −1.3 × 1.105 = −1.437 goes to −" in s for s in seen)
        assert seen[-1].endswith("logp: −1.437 arrives")
        tab.keyboard.press("g")
        assert tab.get_by_role("button", name="Graph").get_attribute("aria-pressed") == "true"


def test_nodes_speak_and_the_page_speaks_chinese(show):
    _, tab = show("ppo_clip", "reinforce")
    with tab as tab:
        ratio = tab.locator(".rl-graph >> nth=0").get_by_role("button", name="ratio, exp(logp − old_logp)")
        assert ratio.get_attribute("aria-label") == "ratio, exp(logp − old_logp), value 1.105, gradient −1.3"
        tab.get_by_text("All numbers as a table").click()
        tab.locator("tbody tr").first.wait_for()  # it is filled when it opens, a moment after the click
        assert tab.locator("tbody tr").count() == len(trace("ppo_clip").nodes) + len(trace("reinforce").nodes)
        tab.get_by_role("button", name="中文").click()
        assert tab.locator("[data-mode=backward]").inner_text().startswith("反向传播")
        assert "梯度" in tab.locator(".rl-banner").inner_text()
        assert "cut 截断" in tab.locator(".rl-cutlabel", has_text="截断").first.text_content()


def test_the_ratio_jumps_to_a_bound_to_the_last_bit(show):
    _, tab = show("ppo_clip", "reinforce")
    with tab as tab:
        for text, target in (("1 − ε", 0.8), ("1 + ε", 1.2), ("1", 1.0)):
            tab.locator(f"[data-ratio='{text}']").click()
            (ratio,) = (n.id for n in trace("ppo_clip").nodes if n.name == "ratio")
            assert float(tab.evaluate(READ)[0]["values"][ratio]) == target


def test_the_ratio_jumps_to_where_pytorch_finds_that_ratio_too(show):
    """Or says that it does not. One bit at a bound decides whether PPO's gradient is there at all."""
    _, tab = show("ppo_clip", "reinforce")
    with tab as tab:
        missed = []
        for eps in [i / 100 for i in range(1, 100, 6)]:
            drag(tab, {"clip_coef": eps})
            for text, target in (("1 − ε", 1 - eps), ("1 + ε", 1 + eps)):
                tab.locator(f"[data-ratio='{text}']").click()
                logp, old = (number(x) for x in tab.evaluate("() => ['logp', 'old_logp'].map((k) => "
                                                             "String(rlloss.figures[0].values.get(k)))"))  # fmt: skip
                ratio = torch.exp(torch.tensor([logp - old], dtype=torch.float64)).item()
                if "as near as they come" in tab.locator(".rl-live").inner_text():
                    missed.append(target)
                    assert ratio == pytest.approx(target, rel=1e-12)
                else:
                    assert ratio == target, (eps, text, logp, old)
                tab.evaluate("rlloss.figures[0].live.textContent = ''")
        assert max(missed) < math.exp(-1), "below it, log-ratios lie further apart than ratios: there may be none"


def test_keys_act_on_the_box_that_has_the_focus(show):
    _, tab = show("ppo_clip", "reinforce", color_scheme="dark")
    with tab as tab:
        first, second = tab.locator(".rl-svg").all()
        detail, cuts = tab.locator(".rl-detail"), "rlloss.figures[0].cuts.map((c) => c.size)"
        before = tab.evaluate(cuts)
        ratio = first.get_by_role("button", name="ratio, exp")
        ratio.focus()
        assert "ppo_clip: ratio" in detail.inner_text()
        tab.keyboard.press("Escape")
        assert not detail.is_visible()
        second.get_by_role("button", name="share, ").hover()
        assert "reinforce: share" in detail.inner_text(), "the mouse only looks"
        tab.keyboard.press("S")
        assert tab.evaluate(cuts) == [before[0] + 1, before[1]]
        assert "≠" in tab.locator(".rl-banner").inner_text()
        tab.keyboard.press("Enter")
        assert "ppo_clip: ratio" in detail.inner_text()
        tab.mouse.move(0, 0)
        detail.locator("input").focus()
        tab.keyboard.press("Escape")
        assert not detail.is_visible()
        assert tab.evaluate("document.activeElement.closest('.rl-node').getAttribute('aria-label')").startswith("ratio")
        tab.keyboard.press("F")
        assert tab.get_by_role("button", name="Forward").get_attribute("aria-pressed") == "true"
        tab.keyboard.press(" ")
        assert tab.get_by_role("button", name="Pause").count() == 1
        tab.get_by_label("Every operation").check()
        assert tab.evaluate("rlloss.figures[0].playing === null && rlloss.figures[0].at === rlloss.figures[0].steps")


def test_a_moved_slider_says_its_result_when_it_rests(show):
    _, tab = show("ppo_clip", "reinforce")
    with tab as tab:
        drag(tab, {"logp": -0.5})
        tab.wait_for_function("document.querySelector('.rl-said').textContent !== ''")
        assert "gradient at logp: 0 = 0 (same bits)" in tab.locator(".rl-said").text_content()


def test_the_mean_over_n_tells_the_textbook_order_apart(show):
    losses = ("ppo_clip", "reinforce_textbook")
    graphs, tab = show(*losses)
    place = {given.name: given.value for given in graphs[0].inputs}
    with tab as tab:
        verdicts = []
        for n in (1, 3, 7, 100, 1000, 1024):
            tab.locator(".rl-batch").fill(str(n))
            tab.locator(".rl-batch").press("Enter")
            assert_agrees(graphs, tab.evaluate(READ), place, losses, n)
            verdicts.append("same bits" in tab.locator(".rl-banner").inner_text())
        assert verdicts[0]
        assert verdicts[-1]
        assert not all(verdicts)


# ------------------------------------------------------------------------------------------------------- the page

OVERLAPS = """() => {
  const place = (e) => e.getBoundingClientRect(), visible = (e) => e.tagName === 'rect' || e.textContent;
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
  const sticksOut = (t, box) => t.left < box.left - 1 || t.right > box.right + 1 || t.bottom > box.bottom + 2;
  const meets = [...document.querySelectorAll('.rl-graph')].flatMap((graph) => {
    const all = [...graph.querySelectorAll('.rl-node rect, .rl-cutlabel')].filter(visible);
    return all.flatMap((a, i) => all.slice(i + 1).filter((b) => meet(place(a), place(b))).map((b) => b.textContent));
  });
  const wide = [...document.querySelectorAll('.rl-node')].flatMap((node) => {
    const box = place(node.querySelector('rect')), texts = [...node.querySelectorAll('text')].filter(visible);
    return texts.filter((t) => sticksOut(place(t), box)).map((t) => t.textContent);
  });
  return [meets, wide];
}"""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("losses", [("ppo_clip", "reinforce"), *(pytest.param((x,), marks=SLOW) for x in EVERY)])
def test_nothing_overlaps_and_nothing_sticks_out(show, losses, width):
    _, tab = show(*losses, width=width, height=844)
    with tab as tab:
        for mode in ("graph", "forward", "backward"):
            tab.locator(f"[data-mode={mode}]").click()
            assert tab.evaluate(OVERLAPS) == [[], []], mode
        assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_of_two_losses_is_small_and_asks_for_nothing():
    sizes = {}
    for pair in (("ppo_clip", "reinforce"), ("klip_matched", "klip"), ("grpo", "gspo")):
        text = page([trace(name) for name in pair])
        sizes[pair] = len(text.encode())
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert max(sizes.values()) < 300_000, sizes


def test_infinities_survive_the_way_to_the_page(show):
    _, tab = show("klip_linear_gate")  # holds -inf
    with tab as tab:
        drag(tab, {"advantages": 0})
        (state,) = tab.evaluate(READ)
        assert "-Infinity" in state["values"]


def test_a_title_cannot_break_out_of_the_page(tmp_path, browser):
    file = tmp_path / "<!--<script>it.py"
    file.write_text("def f(a=1.0):\n    return a * 2\n")
    (tmp_path / "page.html").write_text(page([trace(f"{file}:f")]))
    with opened(browser, tmp_path / "page.html") as tab:
        assert tab.locator("figcaption b").inner_text() == "<!--<script>it.py:f"
        assert tab.evaluate("rlloss.figures.length") == 1


def test_a_loss_that_is_not_finite_everywhere_is_drawn_where_it_is(tmp_path, browser):
    body = "    return (torch.exp(logp - old_logp) - 1).log() * logp\n"
    head = "import torch\n\ndef loss(logp, old_logp, advantages, *, clip_coef):\n"
    (tmp_path / "it.py").write_text(head + body)
    (tmp_path / "page.html").write_text(page([trace(f"{tmp_path / 'it.py'}:loss")]))
    with opened(browser, tmp_path / "page.html") as tab:
        drag(tab, {"logp": -2.0})
        paths = tab.evaluate("[...document.querySelectorAll('.rl-curve')].map((p) => p.getAttribute('d'))")
        assert all("NaN" not in path and "Infinity" not in path and "L" in path for path in paths)
        assert not tab.locator(".rl-dot").first.is_visible()


def test_on_a_page_of_several_figures_one_panel_is_open(tmp_path, browser):
    assert main(["graph", "--explain", "-o", str(tmp_path)]) == 0
    with opened(browser, tmp_path / "explanation.html") as tab:
        for at in (0, 1):
            tab.locator(".rl-figure").nth(at).locator(".rl-node").first.focus()
            assert [i for i, panel in enumerate(tab.locator(".rl-detail").all()) if panel.is_visible()] == [at]
        tab.get_by_role("button", name="中文").click()
        assert tab.evaluate("document.body.classList.contains('rl-open')")


# ------------------------------------------------------------------------------------------------- the explanation


@pytest.mark.parametrize("width", [1280, pytest.param(390, marks=SLOW)])
def test_the_explanation_walks_through_with_live_figures_and_the_runs_own_numbers(tmp_path, browser, width):
    assert main(["graph", "--explain", "-o", str(tmp_path)]) == 0
    with opened(browser, tmp_path / "explanation.html", width=width) as tab:
        readable(tab, width)
        order = [
            "graph",
            "forward",
            "backward",
            "chain-rule",
            "fan-out",
            "stop-gradient",
            "constant",
            "different-graph",
        ]
        assert tab.evaluate("[...document.querySelectorAll('article')].map((a) => a.id)") == [*order, "value"]
        assert tab.evaluate("rlloss.figures.length") == len(order) + 1
        assert tab.evaluate("rlloss.figures.map((f) => f.mode)")[:3] == ["graph", "forward", "backward"]
        for article in tab.locator("article").all():
            assert article.locator("p b").count() >= 1
            assert article.evaluate("(a) => a.nextElementSibling.nextElementSibling.matches('.rl-figure')")
        assert tab.evaluate(OVERLAPS) == [[], []]


def test_the_explanations_numbers_are_read_from_the_tables_of_a_report(tmp_path):
    numbers = explanation_numbers(REFERENCE)
    for name in REFERENCE.glob("*.csv"):
        text = name.read_text().replace("CartPole-v1,adam,128,2 of 2", "CartPole-v1,adam,128,1 of 2")
        (tmp_path / name.name).write_text(text)
    changed = explanation_numbers(tmp_path)
    assert {key for key in numbers if numbers[key] != changed[key]} == {"identical"}
    assert f"<b>{numbers['identical']}</b>" in explanation_html(numbers)
    with pytest.raises(ConfigError, match=r"quotes a number that no claim in experiments/ offers: '\w+'"):
        explanation_html({})


def test_the_explanation_is_written_beside_a_report_if_its_tables_are_there(tmp_path):
    (tmp_path / "explanation.html").write_text("of an older report")
    assert not write_explanation(tmp_path)
    assert not (tmp_path / "explanation.html").exists()
    for name in REFERENCE.glob("*.csv"):
        (tmp_path / name.name).write_text(name.read_text())
    assert write_explanation(tmp_path)
    assert "of an older report" not in (tmp_path / "explanation.html").read_text()
    (tmp_path / "plateau.csv").write_text("condition,the same\n")
    with pytest.raises(ConfigError, match="lacks a row or column that is quoted"):
        explanation_numbers(tmp_path)
