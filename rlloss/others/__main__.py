"""``python -m rlloss.others``: several trainings, one after the other, since importing a trainer takes longer than one.

Standard input: a JSON list of [module, folder, loss, settings]. Prints the folder of each that is done.
"""

import importlib
import json
import logging
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

if __name__ == "__main__":
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    for module, folder, loss, settings in json.load(sys.stdin):
        with redirect_stdout(sys.stderr):  # what trainers print
            importlib.import_module(f"rlloss.others.{module}").train(Path(folder), loss, **settings)
        print(folder, flush=True)
