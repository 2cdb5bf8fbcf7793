"""The palette: every loss of a figure has a colour, and no two share one while there are colours left."""

import pytest

from rlloss import figures
from rlloss.losses import LOSSES


@pytest.mark.parametrize(
    "losses",
    [
        ("mine", "ppo_clip", "yours"),
        ("reinforce", "reinforce"),
        ("klip", "cispo"),
        tuple(figures.COLOURS)[:5],
        ("mine",),
    ],
)
def test_losses_of_one_figure_have_unlike_colours(losses):
    colours = figures.colours(losses)
    assert len(set(colours)) == len(losses)
    first = losses.index(next((loss for loss in losses if loss in figures.COLOURS), losses[0]))
    if losses[first] in figures.COLOURS:
        assert colours[first] == figures.COLOURS[losses[first]], "its own, though another stands before it"


def test_more_losses_than_colours_are_drawn_all_the_same():
    names = [*LOSSES, "mine"]
    assert len(figures.colours(names)) == len(names)
    assert figures.label("mine") == "mine"
