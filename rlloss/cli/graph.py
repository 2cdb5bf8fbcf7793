"""``rlloss graph``: computation graphs as a page, as printed figures, as a table."""

import argparse
import sys
from pathlib import Path

from rlloss import tables
from rlloss.cli.arguments import Parser
from rlloss.cli.exits import Exit
from rlloss.cli.paths import output_file, output_folder
from rlloss.errors import ConfigError
from rlloss.graph.graph import Graph, trace
from rlloss.graph.page import page
from rlloss.graph.printed import graph_table, save_figure

PRINTED = (".svg", ".pdf", ".png")
TABLES = (".md", ".csv", ".tex")


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    _check(options)
    if options.explain:
        from rlloss.claims.explanation import explanation_html, explanation_numbers

        text = explanation_html(explanation_numbers(options.tables))
        options.output.mkdir(parents=True, exist_ok=True)
        return _write(options.output / "explanation.html", text)
    graphs = [trace(loss, clip_coef=options.clip_coef) for loss in options.losses]
    if options.table is not None:
        _write(options.table, _table(graphs, options))
    if options.output is None:
        return Exit.HOLDS
    if options.output.suffix in PRINTED:
        save_figure(graphs, options.output, fold=not options.full)
        print(f"written to {options.output}", file=sys.stderr)
        return Exit.HOLDS
    return _write(options.output, page(graphs))


def parser() -> Parser:
    graph = Parser(
        prog="rlloss graph",
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
    graph.add_argument("--tables", type=Path, default=Path("results/reference"), metavar="DIR",
                       help="with --explain: where its numbers are read (default: results/reference)")  # fmt: skip
    return graph


def _table(graphs: list[Graph], options: argparse.Namespace) -> str:
    table = graph_table(graphs)
    if options.table.suffix == ".md":
        return tables.markdown(table) + "\n"
    if options.table.suffix == ".csv":
        return str(table.to_csv(index=False))
    return tables.latex(table, f"rlloss graph {' '.join(options.losses)} --table {options.table.name}")


def _write(path: Path, text: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"written to {path}", file=sys.stderr)
    return Exit.HOLDS


def _check(options: argparse.Namespace) -> None:
    """Raises: ConfigError for options that do not go together."""
    output, table = options.output, options.table
    if options.explain:
        if options.losses or table:
            raise ConfigError("--explain: takes no LOSS and no --table; it writes one page of its own")
        if output is None or output.suffix or output.is_file():
            raise ConfigError(f"-o {output}: --explain writes into a folder; name one, as in -o results/report")
        output_folder("-o", output)
        return
    if not options.losses:
        raise ConfigError("LOSS: none given; name one or more, as in rlloss graph ppo_clip reinforce -o page.html")
    if len(set(options.losses)) < len(options.losses):
        raise ConfigError(f"LOSS={' '.join(options.losses)}: one is named twice; name each once")
    if output is None and table is None:
        raise ConfigError("-o: missing; name a file, as in -o page.html, or --table table.md")
    if output is not None and output.suffix not in (".html", *PRINTED):
        raise ConfigError(f"-o {output}: unknown format {output.suffix or '(none)'}; use .html, {', '.join(PRINTED)}")
    if table is not None and table.suffix not in TABLES:
        raise ConfigError(f"--table {table}: unknown format {table.suffix or '(none)'}; use {', '.join(TABLES)}")
    if not 0 < options.clip_coef < 1:
        raise ConfigError(f"--clip-coef={options.clip_coef}: must lie between 0 and 1")
    output_file("-o", output)
    output_file("--table", table)
