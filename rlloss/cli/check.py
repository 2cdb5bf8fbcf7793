"""``rlloss check``: have two losses the same gradient?"""

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rlloss import tables
from rlloss.check.comparison import compare
from rlloss.check.text import full_text, text
from rlloss.cli.arguments import Parser
from rlloss.cli.exits import Exit
from rlloss.cli.paths import output_file, output_folder
from rlloss.errors import ConfigError
from rlloss.losses.formulation import ZOO, resolve
from rlloss.runs.reader import to_json
from rlloss.verdicts import Verdict

if TYPE_CHECKING:
    import pandas as pd

LARGEST_SEED = 1 << 63  # of torch's generators


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    dtypes = tuple(getattr(torch, name) for name in dict.fromkeys(options.dtype or ("float64", "float32", "bfloat16")))
    settings = {"clip_coef": options.clip_coef, "dtypes": dtypes, "seed": options.seed}
    output_folder("-o", options.output)
    output_file("--proof", options.proof)
    if not 0 <= options.seed < LARGEST_SEED:
        raise ConfigError(f"--seed={options.seed}: must be 0 or greater, and less than 2**63")
    enough = (Verdict.IDENTICAL,) if options.bitwise else (Verdict.IDENTICAL, Verdict.EQUAL)
    torch.set_num_threads(1)
    if options.proof is not None and len(options.losses) != 2:
        raise ConfigError(f"--proof {options.proof}: asks about two losses, not {len(options.losses)}; name two")
    if options.no_proof and (options.proof is not None or len(options.losses) != 2):
        raise ConfigError("--no-proof: only tries two losses; name two, and leave --proof out")
    if options.list:
        from rlloss.check.matrix import formulas

        print(formulas())
        return Exit.HOLDS
    if len(options.losses) == 2:
        return check_pair(options, settings, enough)
    return check_many(options, settings, enough)


def parser() -> Parser:
    check = Parser(
        prog="rlloss check",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="""\
Have losses the same gradient? Proved from their graphs or refuted by numbers, and tried bit by bit.

  rlloss check ppo_clip mine.py:loss     two losses: IDENTICAL, EQUAL (up to rounding) or DIFFERENT, and why
  rlloss check mine.py:loss              one loss against every loss of the zoo, and by itself
  rlloss check                           the zoo, every loss against every other

A LOSS is a name of the zoo, file.py:function, file.py:Class.method or module:function; it takes
(logp, old_logp, advantages, *, clip_coef) and returns per-sample losses or their mean, or with a
mask [batch, tokens] and returns a scalar. Arguments may have a trainer's names, in any order.

Exit code: 0 the gradients agree (one loss: with one of the zoo at least), 1 they differ, or what lies
under the mask reaches one of them, 2 bad input.""",
    )
    check.add_argument("losses", nargs="*", metavar="LOSS")
    check.add_argument("--dtype", action="append", choices=("float64", "float32", "bfloat16", "float16"),
                       help="try this dtype; may be repeated (default: float64, float32, bfloat16)")  # fmt: skip
    check.add_argument("--clip-coef", type=float, metavar="X",
                       help="for both losses (default: 0.2, and what is proved is proved for 0 < X < 1)")  # fmt: skip
    check.add_argument("--seed", type=int, default=0, help="of the random batches (default: 0)")
    check.add_argument("--bitwise", action="store_true", help="EQUAL is not enough: exit 0 for IDENTICAL alone")
    check.add_argument("-v", "--verbose", action="store_true",
                       help="two losses: also batches that are not bitwise equal, and all that was tried")  # fmt: skip
    check.add_argument("--json", action="store_true", help="the result for programs, on standard output")
    check.add_argument("-o", "--output", type=Path, metavar="DIR", help="also write tables and figures there")
    check.add_argument("--proof", type=Path, metavar="FILE",
                       help="two losses: write the question in exact arithmetic, as SMT-LIB")  # fmt: skip
    check.add_argument("--no-proof", action="store_true", help="two losses: only try them, which is quicker")
    check.add_argument("--list", action="store_true", help="the zoo: every name with its formula")
    return check


def check_pair(options: argparse.Namespace, settings: dict[str, Any], enough: Sequence[str]) -> int:
    with redirect_stdout(sys.stderr):  # what a loss prints is none of the report
        result = compare(*options.losses, **settings, prove=not options.no_proof)
    if options.json:
        print(to_json(result.to_dict()))
    else:
        print(full_text(result) if options.verbose else text(result))
    if options.proof is not None:
        from rlloss.check.prove import Prover

        options.proof.parent.mkdir(parents=True, exist_ok=True)
        options.proof.write_text(Prover(options.clip_coef).written(*map(resolve, options.losses)))
        print(f"written to {options.proof}", file=sys.stderr)
    if options.output is not None:
        stem = options.output / "__".join(re.sub(r"[^\w.-]+", "-", name) for name in options.losses)
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_name(stem.name + ".txt").write_text(full_text(result) + "\n")
        from rlloss import figures  # here, since matplotlib is seldom asked for
        from rlloss.check.figures import pair_figure

        with figures.style():
            figures.save(pair_figure(*options.losses, clip_coef=result.clip_coef), stem)
        print(f"written to {stem}.txt, .pdf, .png and .svg", file=sys.stderr)
    return Exit.HOLDS if result.holds and result.verdict in enough else Exit.FAILS


def check_many(options: argparse.Namespace, settings: dict[str, Any], enough: Sequence[str]) -> int:
    """One loss against the zoo, or all of some losses, or of the zoo, against each other."""
    from rlloss.check import alone  # here, since both need pandas, and a pair does without
    from rlloss.check.matrix import against_zoo, classes, matrix

    names = options.losses if len(options.losses) > 1 else list(ZOO)
    with redirect_stdout(sys.stderr):
        table = against_zoo(options.losses[0], **settings) if len(options.losses) == 1 else matrix(names, **settings)
        itself = {"alone": alone.examine(options.losses[0], **settings)} if len(options.losses) == 1 else {}
    agree = table["on-policy"].isin(enough) & table["off-policy"].isin(enough)
    groups = None if len(options.losses) == 1 else classes(table, names)
    if options.json:
        print(to_json({"pairs": table.to_dict("records"), **{key: found.to_dict() for key, found in itself.items()}}))
    elif groups is None:
        print(tables.text(table.drop(columns="a").rename(columns={"b": options.losses[0]})))
        print(*(f"\n{alone.text(found)}" for found in itself.values()))
    else:
        if options.losses:
            print(tables.text(table), end="\n\n")
        for rule, rows in groups.groupby("same gradient", sort=False):
            print(f"same gradient {rule}:", *(f"  {members}" for members in rows["losses"]), sep="\n")
    if options.output is not None:
        write_many(options.output, table, groups, names)
    if not options.losses:
        return Exit.HOLDS
    return Exit.HOLDS if (agree.any() if groups is None else agree.all()) else Exit.FAILS


def write_many(folder: Path, table: "pd.DataFrame", groups: "pd.DataFrame | None", names: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if groups is None:
        table.to_csv(folder / "against_zoo.csv", index=False)
        print(f"written to {folder}/against_zoo.csv", file=sys.stderr)
        return
    table.to_csv(folder / "equivalence_matrix.csv", index=False)
    groups.to_csv(folder / "equivalence_classes.csv", index=False)
    from rlloss import figures
    from rlloss.check.figures import matrix_figure

    with figures.style():
        figures.save(matrix_figure(table, names), folder / "equivalence_matrix")
    print(f"written to {folder}/equivalence_matrix.csv, .pdf, .png, .svg and equivalence_classes.csv", file=sys.stderr)
