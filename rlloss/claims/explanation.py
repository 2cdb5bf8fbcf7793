"""The explanation: from a squared error to the two losses, each step with a live figure and a number from real runs."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from jinja2 import UndefinedError

from rlloss import tables
from rlloss.claims.claim import load_claims, no_facts
from rlloss.errors import ConfigError
from rlloss.graph.graph import trace
from rlloss.graph.page import document, figure
from rlloss.graph.printed import graph_table
from rlloss.templates import environment


def explanation_numbers(folder: Path) -> dict[str, str]:
    """What the explanation quotes: the facts of every claim that offers some, from its table in ``folder``, a report's.

    Raises: ConfigError for a table that is not there, or that lacks a row or column that its claim quotes.
    """
    numbers: dict[str, str] = {}
    for claim in load_claims():
        if claim.facts is no_facts:
            continue
        path = folder / f"{claim.name}.csv"
        if not path.is_file():
            raise ConfigError(f"{path}: no such table; run rlloss reproduce, or name its report's folder")
        try:
            numbers |= claim.facts(pd.read_csv(path))
        except LookupError as error:
            raise ConfigError(
                f"{path}: lacks a row or column that is quoted ({error}); run rlloss reproduce"
            ) from error
    return numbers


def write_explanation(out: Path) -> bool:
    """``out``/explanation.html, from the report's tables in ``out``; False, and no page, if some are missing."""
    page = out / "explanation.html"
    page.unlink(missing_ok=True)
    try:
        text = explanation_html(explanation_numbers(out))
    except ConfigError:
        return False
    page.write_text(text, encoding="utf-8")
    return True


def explanation_html(numbers: Mapping[str, str]) -> str:
    """The explanation as one self-contained page. ``numbers``: those of ``explanation_numbers``.

    Raises: ConfigError for a number that no claim offers.
    """
    squared = [trace("squared_error")]
    pair = [trace("ppo_clip"), trace("reinforce")]
    parts = dict(
        **numbers,
        squared_error_graph=figure(squared, mode="graph"),
        squared_error_forward=figure(squared, mode="forward"),
        squared_error_backward=figure(squared),
        chain_rule=figure([trace("chain_rule")]),
        fan_out=figure([trace("fan_out")]),
        stop_gradient=figure([trace("stop_gradient")]),
        constant=figure([trace("ppo_clip"), trace("ppo_clip_offset")]),
        pair=figure(pair),
        value=figure([trace("ppo_masked"), trace("reinforce_mask")], mode="forward"),
        table=tables.html(graph_table(pair)),
    )
    try:
        body = environment("rlloss.claims", "pages").get_template("explanation.html").render(**parts)
    except UndefinedError as error:
        raise ConfigError(f"the explanation quotes a number that no claim in experiments/ offers: {error}") from error
    return document(
        "From a squared error to two losses with one gradient",
        "Every figure is live: traced from PyTorch, computed in this page.",
        body,
    )
