"""``rlloss graph``: computation graphs as a page, as printed figures, as a table."""

import argparse
import sys
from pathlib import Path

from rlloss.config import ConfigError

PRINTED = (".svg", ".pdf", ".png")
TABLES = (".md", ".csv", ".tex")


def add_graph(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    graph = verbs.add_parser(
        "graph",
        help="the computation graphs of losses, live: forward, backward, stop-gradient",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""\
Traces losses with PyTorch and draws what autograd did.

  rlloss graph ppo_clip reinforce -o page.html   live and self-contained: sliders, stop-gradient, step by step
  rlloss graph ppo_clip -o figure.pdf            the same graph, printed (.svg, .pdf, .png)
  rlloss graph ppo_clip reinforce --table t.md   value, gradient path, intermediate variables (.md, .csv, .tex)
  rlloss graph --explain -o folder               the explanation, from a squared error to the two losses

A LOSS is a name of the zoo (`rlloss check --list`), squared_error, chain_rule, fan_out or stop_gradient,
file.py:function or module:function. The function is a loss, as `rlloss check --help` says, or an expression all of
whose parameters have numbers as defaults; keyword-only ones are data.

Exit code: 0, or 2 for bad input.""",
    )
    graph.add_argument("losses", nargs="*", metavar="LOSS")
    graph.add_argument("-o", "--output", type=Path, metavar="FILE", help="page.html, or .svg, .pdf, .png")
    graph.add_argument("--table", type=Path, metavar="FILE", help="write the table: .md, .csv or .tex")
    graph.add_argument("--full", action="store_true", help="in print, every operation: no helper function is folded")
    graph.add_argument(
        "--clip-coef", type=float, default=0.2, metavar="X", help="where its slider starts (default: 0.2)"
    )
    graph.add_argument("--explain", action="store_true", help="write the explanation into the folder given by -o")
    graph.set_defaults(command=graph_command)


def graph_command(options: argparse.Namespace) -> int:
    _check(options)
    from rlloss.graph import trace
    from rlloss.graph_page import page

    graphs = [trace(loss, clip_coef=options.clip_coef) for loss in options.losses]
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(page(graphs), encoding="utf-8")
        print(f"written to {options.output}", file=sys.stderr)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises: ConfigError for options that do not go together."""
    if not options.losses:
        raise ConfigError("LOSS: none given; name one or two, as in rlloss graph ppo_clip reinforce -o page.html")
    if options.output is None:
        raise ConfigError("-o: missing; name a file, as in -o page.html")
    if not 0 < options.clip_coef < 1:
        raise ConfigError(f"--clip-coef={options.clip_coef}: must lie between 0 and 1")
