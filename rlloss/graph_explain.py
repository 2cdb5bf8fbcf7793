"""The explanation: from a squared error to the two losses, each step with a live figure and a number from real runs."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from rlloss import tables
from rlloss.config import ConfigError
from rlloss.graph import trace
from rlloss.graph_figures import graph_table
from rlloss.graph_page import asset, document, figure


def explanation_numbers(reference: Path) -> dict[str, str]:
    """The explanation's numbers, from the tables of a report (``results/reference``, or where ``rlloss report`` wrote).

    Raises: ConfigError for a table that is not there, or that lacks a row that the explanation quotes.
    """
    try:
        return _numbers(reference)
    except LookupError as error:
        raise ConfigError(f"{reference}: a table lacks a row that is quoted ({error}); run rlloss reproduce") from error


def _numbers(reference: Path) -> dict[str, str]:
    def table(name: str) -> pd.DataFrame:
        path = reference / f"{name}.csv"
        if not path.is_file():
            raise ConfigError(f"{path}: no such table; run rlloss reproduce, or name its report's folder")
        return pd.read_csv(path)

    def where(name: str, column: str, value: str, wanted: str) -> str:
        rows = table(name)
        return str(rows.loc[rows[column].str.startswith(value), wanted].iloc[0])

    runs, watch = table("identical_trajectories"), table("monitoring").set_index("metric").loc["policy_loss"]
    orders = table("multiplication_order")
    parted = orders[orders["verdict"] != "IDENTICAL"].iloc[0]
    forgotten = table("negative_controls").set_index("loss").loc[["reinforce_undetached"]].iloc[0]
    pairs = runs["identical"].str.split(" of ", expand=True).astype(int).sum()
    return {
        "ppo_loss": tables.number(watch["PPO, mean"]),
        "reinforce_loss": tables.number(watch["REINFORCE, mean"]),
        "unlike": f"{watch['of unlike sign']:.0%}",
        "steps": tables.number(int(runs["steps compared"].sum())),
        "identical": f"{pairs[0]} of {pairs[1]}",
        "clip_low": f"{runs['clip active'].min():.2%}",
        "clip_high": f"{runs['clip active'].max():.2%}",
        "pairs": tables.number(int(pairs[1])),
        "parted": parted["condition"],
        "first_step": tables.number(int(parted["first step that differs"])),
        "first_difference": tables.number(parted["difference then"]),
        "last_difference": tables.number(parted["difference at the end"]),
        "undetached_step": tables.number(int(forgotten["first step that differs"])),
        "undetached_return": tables.number(forgotten["return"]),
        "detached_return": tables.number(forgotten["return with ppo_clip"]),
        "offset_adam": where("constant_offset", "condition", "Adam", "the same"),
        "offset_sgd": where("constant_offset", "condition", "SGD", "the same"),
        "plateau": where("plateau", "condition", "plateau on policy_loss", "the same"),
        "stopping": where("early_stopping", "condition", "policy loss at most", "the same"),
        "half": where("mixed_precision", "condition", "pure fp16", "the same"),
    }


def write_explanation(out: Path) -> bool:
    """``out``/explanation.html, from the report's tables in ``out``; False, and no page, if some are missing."""
    page = out / "explanation.html"
    page.unlink(missing_ok=True)
    try:
        numbers = explanation_numbers(out)
    except ConfigError:
        return False
    page.write_text(explanation_html(numbers), encoding="utf-8")
    return True


def explanation_html(numbers: Mapping[str, float | str]) -> str:
    """The explanation as one self-contained page. ``numbers``: those of ``explanation_numbers``.

    Raises: KeyError for a number that is missing.
    """
    squared = [trace("squared_error")]
    pair = [trace("ppo_clip"), trace("reinforce")]
    shown = {key: value if isinstance(value, str) else tables.number(value) for key, value in numbers.items()}
    body = asset("explanation.html").format(
        **shown,
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
    return document(
        "From a squared error to two losses with one gradient",
        "Every figure is live: traced from PyTorch, computed in this page.",
        body,
    )
