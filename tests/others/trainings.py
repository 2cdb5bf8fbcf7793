"""Several trainings by other people's trainers in one process, since importing those takes longer than training.

``python -m tests.others.trainings JSON``: a list of [module, folder, loss, settings]; ``fault`` among the settings is a
name of FAULTS.
"""

import importlib
import json
import logging
import sys
import warnings
from pathlib import Path

import torch

AT = 9  # the optimiser step of a fault


def gradient(name, trainer, model, optimizer):
    """Of one tensor, made larger in one step."""
    made = []

    def spoil(*_):
        made.append(1)
        if len(made) == AT:
            model.get_parameter(name).grad.mul_(1.5)

    optimizer.register_step_pre_hook(spoil)


def weight(name, trainer, model, optimizer):
    """A number of one tensor, changed just before one step."""
    made = []

    def spoil(*_):
        made.append(1)
        if len(made) == AT:
            with torch.no_grad():
                model.get_parameter(name).view(-1)[0] += 0.5

    optimizer.register_step_pre_hook(spoil)  # which is called before that of the watch, as it comes later


def planted(module, fault):
    kind, name = fault
    parts = {"sb3": lambda t: (t.policy, t.policy.optimizer), "trl": lambda t: (t.model, t.optimizer)}[module]
    return lambda trainer: {"gradient": gradient, "weight": weight}[kind](name, trainer, *parts(trainer))


def main():
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    for module, folder, loss, settings in json.loads(sys.argv[1]):
        if "fault" in settings:
            settings["prepare"] = planted(module, settings.pop("fault"))
        importlib.import_module(f"rlloss.others.{module}").train(Path(folder), loss, **settings)


if __name__ == "__main__":
    main()
