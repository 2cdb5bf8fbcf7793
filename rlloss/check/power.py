"""Where two losses differ, on a grid of ratios and advantages, for ``rlloss.power``.

python -m rlloss.check.power '[["ppo_clip", "reinforce", 0.2]]'
"""

import json
import os
import sys
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch

from rlloss.check.measure import contrast, measure
from rlloss.check.probes import grid
from rlloss.check.regions import regions
from rlloss.errors import LossError
from rlloss.losses.formulation import Formulation, resolve

USUAL = 10.0  # the size of an advantage that has been normalised, among a few hundred


def find(a: str, b: str, clip_coef: float) -> dict[str, Any] | str:
    """Where two losses differ, as JSON holds the fields of ``rlloss.power.Difference``; else why that is not known."""
    try:
        with redirect_stdout(sys.stderr):  # a loss may print, where JSON is read
            f, g = resolve(a), resolve(b)
            if f.sequence or g.sequence:
                raise LossError("sequence losses have no grid of ratios and advantages")
            return _difference(f, g, clip_coef)
    except LossError as error:
        return str(error)


def _difference(f: Formulation, g: Formulation, clip_coef: float) -> dict[str, Any]:
    probe = grid(torch.float64, clip_coef)
    left, right = measure(f, probe, clip_coef), measure(g, probe, clip_coef)
    found = contrast(left, right)
    ratio, A = (x.double().numpy() for x in (probe.ratio, probe.advantages))
    cut = ((left.gradient == 0) | (right.gradient == 0)) & (A != 0) & (ratio > 0)
    where = "; ".join(regions(f, g, [found], clip_coef, bisect=False))
    usual = abs(A) <= USUAL
    columns = {"ratio": ratio, "sign": np.sign(A), "differs": found.real & usual, "cut": cut}
    unusual = bool(found.real.any() and not found.real[usual].any())
    return {name: column.tolist() for name, column in columns.items()} | {"where": where, "unusual": unusual}


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps([find(*pair) for pair in json.loads(sys.argv[1])]))
    sys.stdout.flush()
    os._exit(0)  # taking torch down again takes a fifth of a second, for which somebody waits
