"""The code that made a run: of a user's loss, what it refers to, what loading it executes, and what it imports."""

from pathlib import Path

import pytest

from rlloss.runs.provenance import environment_source, loss_source
from rlloss.runs.sources import users_imports

LOSS = """
import math
import torch
import helper
from pack import scales
from pack.deep import far as away
{before}
A, B = 1.0, 2.0
TABLE = {{}}
UNUSED = 3

def other(logp, old_logp, advantages, *, clip_coef):
    return -logp

def mine(logp, old_logp, advantages, *, clip_coef):
    return -A * helper.factor() * scales.OF * TABLE.get("k", 1) * (logp - old_logp).exp() * advantages
{after}

if __name__ == "__main__":
    print(mine)
"""
FILES = {
    "mine.py": LOSS.format(before="", after=""),
    "helper.py": "from second import half\ndef factor():\n    return 2 * half()\n",
    "second.py": "def half():\n    return 0.5\n",
    "stranger.py": "x = 1\n",
    "pack/__init__.py": "",
    "pack/scales.py": "from .deep import far\nOF = 1\n",
    "pack/deep/__init__.py": "",
    "pack/deep/far.py": "from .. import nothing_here\n",
    "pack/unused.py": "y = 1\n",
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def changed(home: Path, name: str, text: str) -> bool:
    before = loss_source("mine.py:mine")
    (home / name).write_text(text)
    return loss_source("mine.py:mine") != before


def test_the_files_that_a_users_file_imports_and_those_in_turn(home):
    found = {str(path.relative_to(home.resolve())) for path in users_imports([home / "mine.py"])}
    assert found == FILES.keys() - {"mine.py", "stranger.py", "pack/unused.py"}


@pytest.mark.parametrize("name", ["helper.py", "second.py", "pack/scales.py", "pack/deep/far.py", "pack/__init__.py"])
def test_a_change_of_what_is_imported_is_one(home, name):
    assert changed(home, name, FILES[name] + "z = 1\n")


@pytest.mark.parametrize(
    "line",
    [
        "A *= 2", "A, B = 2.0, 1.0", 'TABLE["k"] = 2', "torch.k = 2", "torch.set_num_threads(2)", "exec('A = 2')",
        "if True:\n    A = 2", "try:\n    A = 2\nfinally:\n    pass", "del B", "for A in (1, 2):\n    pass",
        "mine = torch.no_grad()(mine)", "@print\ndef hidden():\n    pass", "def hidden(x=print()):\n    pass",
        "class Hidden:\n    print()",
    ],
)  # fmt: skip
def test_a_change_of_what_loading_a_file_executes_is_one(home, line):
    assert changed(home, "mine.py", LOSS.format(before="", after=line))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("stranger.py", "x = 2\n"),
        ("pack/unused.py", "y = 2\n"),
        ("mine.py", LOSS.format(before="", after="def third(logp):\n    return logp")),
        ("mine.py", LOSS.format(before="", after="").replace("return -logp", "return logp")),
        ("mine.py", LOSS.format(before="# a comment", after="").replace("print(mine)", "print(other)")),
    ],
)
def test_a_change_of_another_loss_beside_it_is_none(home, name, text):
    assert not changed(home, name, text)


def test_a_loss_that_is_imported_under_another_name(home):
    (home / "again.py").write_text("from mine import mine as again\n")
    before = loss_source("again.py:again")
    assert "-A * helper.factor()" in before
    (home / "again.py").write_text("from stranger import mine as again\n")
    assert loss_source("again.py:again") != before


def test_a_file_that_is_no_python_any_more_is_another(home):
    assert changed(home, "helper.py", "def factor(:")
    assert changed(home, "mine.py", "def mine(:")


def test_what_an_environments_module_imports_is_part_of_it(home):
    (home / "world.py").write_text("import helper\n")
    before = environment_source("world:World-v0")
    (home / "second.py").write_text("def half():\n    return 0.25\n")
    assert environment_source("world:World-v0") != before
