"""Every loss against every other: the equivalence matrix, on-policy and off-policy."""

from collections.abc import Sequence
from itertools import combinations

import pandas as pd
import torch
from tqdm import tqdm

from rlloss.check.comparison import (
    CLIP_COEF,
    DTYPES,
    AnyLoss,
    contrast_all,
    part,
)
from rlloss.check.numbers import numbers_of
from rlloss.check.prove import Prover
from rlloss.check.regions import regions
from rlloss.check.result import ORDER, Proof, worse
from rlloss.check.survey import Survey, check_settings, groups_of, survey, together, usable
from rlloss.losses.formulation import ZOO, resolve
from rlloss.losses.samples import LOSSES
from rlloss.losses.sequences import SEQUENCE_LOSSES
from rlloss.verdicts import Verdict

COLUMNS = ["a", "b", "on-policy", "off-policy", "proof", "ulp", "edges", "differ at"]


def formulas() -> str:
    """Every loss of the zoo, with the first sentence of its documentation."""
    width = max(map(len, ZOO))
    first = (f"{name:<{width}}  {(loss.__doc__ or '').strip().splitlines()[0]}" for name, loss in ZOO.items())
    return "\n".join(first).replace("``", "")


def against_zoo(
    loss: AnyLoss, *, clip_coef: float | None = None, dtypes: Sequence[torch.dtype] = DTYPES, seed: int = 0
) -> pd.DataFrame:
    """One loss against every loss of its kind: a row each, the nearest first. Columns: ``COLUMNS``."""
    mine = resolve(loss)
    names = [name for name in (SEQUENCE_LOSSES if mine.sequence else LOSSES) if name != loss]
    prover = Prover(clip_coef)
    clip_coef = CLIP_COEF if clip_coef is None else clip_coef
    check_settings(clip_coef, dtypes)
    numbers = numbers_of(mine.function, *(ZOO[name] for name in names))
    how = seed, numbers, groups_of((mine,), clip_coef, numbers)
    dtypes, _ = usable((mine,), clip_coef, dtypes, *how)
    first = survey(mine, clip_coef, dtypes, *how)
    others = (
        survey(resolve(name), clip_coef, dtypes, *how) for name in tqdm(names, "losses", disable=None, leave=False)
    )
    rows = [_row(first, other, clip_coef, prover) for other in others]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(
        ["off-policy", "on-policy"], key=lambda column: column.map(ORDER.index), kind="stable", ignore_index=True
    )


def matrix(
    losses: Sequence[AnyLoss], *, clip_coef: float | None = None, dtypes: Sequence[torch.dtype] = DTYPES, seed: int = 0
) -> pd.DataFrame:
    """Every pair of a kind among ``losses``: a row each. Columns: ``COLUMNS``. Each loss is measured once.

    Raises: LossError for a loss that cannot be used.
    """
    formulations = [resolve(loss) for loss in losses]
    prover = Prover(clip_coef)
    clip_coef = CLIP_COEF if clip_coef is None else clip_coef
    check_settings(clip_coef, dtypes)
    numbers = numbers_of(*(formulation.function for formulation in formulations))
    groups = groups_of(formulations, clip_coef, numbers)
    surveys = [
        survey(formulation, clip_coef, dtypes, seed, numbers, groups)
        for formulation in tqdm(formulations, "losses", disable=None, leave=False)
    ]
    pairs = [(a, b) for a, b in combinations(surveys, 2) if a.loss.sequence == b.loss.sequence]
    return pd.DataFrame(
        [_row(a, b, clip_coef, prover) for a, b in tqdm(pairs, "pairs", disable=None, leave=False)], columns=COLUMNS
    )


def _row(a: Survey, b: Survey, clip_coef: float, prover: Prover) -> dict[str, object]:
    a, b, _ = together(a, b)
    contrasts = contrast_all(a, b)
    proof, refutation = prover.prove_what_was_tried(a.loss, b.loss, contrasts)
    if refutation is not None:
        contrasts.append(refutation)
    on, off = (part(contrasts, a, b, on_policy=on_policy) for on_policy in (True, False))
    close = [p for p in (on, off) if p.verdict != Verdict.DIFFERENT]
    return {
        "a": a.loss.name,
        "b": b.loss.name,
        "on-policy": on.verdict,
        "off-policy": off.verdict,
        "proof": how_known(proof),
        "ulp": max((p.ulp for p in close), default=0),
        "edges": sum(p.edges for p in close),
        "differ at": "; ".join(regions(a.loss, b.loss, contrasts, clip_coef, bisect=False)),
    }


def how_known(proof: Proof) -> str:
    """``bits``: to the last bit; exact: in exact arithmetic; edges: but for bounds that are hit; refuted; open."""
    if proof.bitwise == "proved":
        return "bits"
    return "exact" if proof.exact == "proved" else proof.exact


def classes(pairs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """Losses with the same gradient, grouped: by the last bit, up to rounding, and up to rounding on-policy.

    A loss belongs to a group if it agrees with any member; groups of one are left out.
    """
    import networkx  # here, since a pair does without it

    overall = [worse(on, off) for on, off in zip(pairs["on-policy"], pairs["off-policy"], strict=True)]
    rules = {
        "everywhere, to the last bit": [verdict == Verdict.IDENTICAL for verdict in overall],
        "everywhere, up to rounding": [verdict != Verdict.DIFFERENT for verdict in overall],
        "on-policy, up to rounding": [verdict != Verdict.DIFFERENT for verdict in pairs["on-policy"]],
    }
    rows = []
    for rule, agree in rules.items():
        agreeing = networkx.Graph(pairs.loc[agree, ["a", "b"]].itertuples(index=False, name=None))
        found = [sorted(members, key=list(names).index) for members in networkx.connected_components(agreeing)]
        for members in sorted(found, key=lambda members: list(names).index(members[0])):
            rows.append({"same gradient": rule, "losses": ", ".join(members)})
    return pd.DataFrame(rows, columns=["same gradient", "losses"])
