"""Claims: a sentence, the runs that test it, the verdict that it expects, its figure. One file each in experiments/."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from rlloss.config.choices import data_dir
from rlloss.errors import ConfigError
from rlloss.lazy import load_file
from rlloss.others import Training
from rlloss.runs.reader import RunFolder

Overrides = tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """What the runs say of a claim: does it hold, in one line why, and the evidence behind it."""

    holds: bool
    summary: str
    evidence: pd.DataFrame


def no_facts(evidence: pd.DataFrame) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Claim:
    """``runs`` lists each run's Hydra overrides for a preset (``quick`` or ``paper``).

    ``others`` lists trainings by other people's trainers, whose records come after those runs.
    ``judge`` and ``figure`` get those runs in that order, and decide on what the run folders hold and nothing else. A
    claim without runs computes its evidence on the spot, the same each time.
    ``on_request`` says why a claim is not among those that are tested unless they are named; empty if it is.
    ``facts`` makes of the evidence, as it stands in the claim's table, the numbers that the explanation quotes.
    """

    sentence: str
    runs: Callable[[str], list[Overrides]]
    judge: Callable[[Sequence[RunFolder]], Finding]
    figure: Callable[[Sequence[RunFolder]], Figure]
    order: int = 1000  # its place in the report: the lower, the earlier
    facts: Callable[[pd.DataFrame], dict[str, str]] = no_facts
    others: Callable[[str], list[Training]] = lambda preset: []
    on_request: str = ""
    name: str = ""  # the file's name


PAPER_STEPS, PAPER_SEEDS = 500_000, range(1, 11)


def seeds_of(preset: str, quick: Sequence[int]) -> Sequence[int]:
    return PAPER_SEEDS if preset == "paper" else quick


def shared_budget(preset: str, env: str) -> Overrides:
    """Of the claims about whole trajectories: equal budgets, so that one run serves all of them.

    CartPole runs longer in the quick preset: its returns rise within it, so that there is a curve to compare.
    """
    if preset == "paper":
        return (f"total_timesteps={PAPER_STEPS}",)
    return (f"total_timesteps={40_000 if env == 'cartpole' else 12_000}", "snapshot_every=40")


def load_claims(folder: Path | None = None) -> list[Claim]:
    """Every ``*.py`` in experiments/ that defines CLAIM, in the report's order.

    Loaded by path: the library never imports them, and a new claim needs no registration.
    """
    files = sorted((folder or data_dir("experiments")).glob("[!_]*.py"))
    claims: list[Claim] = [replace(load_file(path, "rlloss_claim").CLAIM, name=path.stem) for path in files]
    return sorted(claims, key=lambda claim: (claim.order, claim.name))


def in_numerics(claim: Claim, numerics: str) -> Claim:
    """The claim with its runs in these numerics, but those that it gives numerics of their own."""

    def runs(preset: str) -> list[Overrides]:
        return [
            overrides if any(o.startswith("numerics=") for o in overrides) else (*overrides, f"numerics={numerics}")
            for overrides in claim.runs(preset)
        ]

    return replace(claim, runs=runs)


def select(names: Sequence[str] | None, numerics: str = "native") -> list[Claim]:
    """The named claims, or all that need not be named, with runs in these numerics.

    Raises: ConfigError for an unknown name.
    """
    claims = {claim.name: claim for claim in load_claims()}
    for name in names or ():
        if name not in claims:
            raise ConfigError(f"--claim={name}: no such claim; use one of {', '.join(claims)}")
    unasked = [name for name, claim in claims.items() if not claim.on_request]
    return [in_numerics(claims[name], numerics) for name in dict.fromkeys(names or unasked)]
