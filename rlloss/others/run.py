"""Running trainings by other people's trainers: those of each trainer in a process of its own, side by side."""

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from threading import Thread

from tqdm import tqdm

from rlloss.errors import RunFailed
from rlloss.others import NEEDS, Training
from rlloss.runs.reader import RunFolder


def missing(trainings: Iterable[Training]) -> str:
    """What they need and is not installed here, with the remedy; empty if all is."""
    for module in dict.fromkeys(training.module for training in trainings):
        for name in NEEDS[module]:
            if importlib.util.find_spec(name) is None:
                return f"needs {name}, which is not installed; pip install 'rlloss[trainers]'"
    return ""


def run(trainings: Sequence[Training], run_root: Path) -> None:
    """Those that are not finished. Raises: RunFailed with the end of what a trainer said."""
    todo = {t.folder(run_root): t for t in trainings if RunFolder(t.folder(run_root)).status != "finished"}
    for folder in todo:
        shutil.rmtree(folder, ignore_errors=True)
    failures: list[str] = []
    with tqdm(total=len(todo), unit="run", disable=None, desc="other trainers") as bar:

        def work(module: str) -> None:
            mine = [[module, str(f), t.loss, dict(t.settings)] for f, t in todo.items() if t.module == module]
            with tempfile.TemporaryFile("w+") as said:
                command = [sys.executable, "-m", "rlloss.others"]
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
                )
                assert process.stdin is not None
                assert process.stdout is not None
                with process.stdin as file:
                    json.dump(mine, file)
                for _ in process.stdout:
                    bar.update()
                if process.wait():
                    said.seek(0)
                    failures.append(f"{module}: {said.read().strip().splitlines()[-1]}")

        threads = [Thread(target=work, args=(module,)) for module in dict.fromkeys(t.module for t in todo.values())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise RunFailed(f"another trainer's run, {failures[0]}")
