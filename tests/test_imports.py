"""The rooms of the house: what an import may load, which package may import which, and that all are installed."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.helpers import ROOT

HEAVY = ("torch", "hydra", "pandas", "matplotlib", "gymnasium", "joblib", "submitit", "jinja2")
LOADS = {  # import -> which of HEAVY it loads; every other one is a second that somebody waits for nothing
    "rlloss": (),
    "rlloss.errors": (),
    "rlloss.cli": (),
    "rlloss.verify": (),
    "rlloss.cli.verify": ("pandas",),
    "rlloss.runs": (),
    "rlloss.stats": ("pandas",),
    "rlloss.watch": (),
    "rlloss.watch.watching": ("torch",),
    "rlloss.cli.bisect": (),
    "rlloss.losses": ("torch",),
    "rlloss.losses.formulation": ("torch",),
    "rlloss.check": (),
    "rlloss.check.comparison": ("torch",),
    "rlloss.train": (),
    "rlloss.train.loop": ("torch", "gymnasium"),
    "rlloss.config.schema": (),
    "rlloss.graph.graph": ("torch",),
    "rlloss.graph.page": ("torch", "jinja2"),
    "rlloss.claims": ("pandas", "matplotlib"),
    "rlloss.cli.report": ("hydra", "pandas", "matplotlib", "joblib", "jinja2"),
    "rlloss.cli.train": ("hydra", "joblib"),
    "rlloss.cli.check": ("torch",),
}

FLOORS = (  # from the ground up: a package imports what stands below it, and nothing beside it or above
    ("errors", "lazy", "verdicts", "version", "templates"),
    ("signals", "figures", "tables", "losses", "config"),
    ("runs", "graph"),
    ("prove",),
    ("check",),
    ("cause", "power", "train", "watch"),
    ("verify",),
    ("bisect", "others"),
    ("stats", "sweep"),
    ("claims", "benchmark"),
    ("cli",),
    ("__main__",),
)


@pytest.mark.parametrize("heavy", sorted(set(LOADS.values())), ids=lambda heavy: "+".join(heavy) or "none")
def test_an_import_loads_no_more_than_it_says(heavy):
    """All that may load the same, one after another in one process: what one loads too much, it loads first."""
    modules = [module for module in LOADS if LOADS[module] == heavy]
    code = (
        "import importlib, sys\n"
        f"for module in {modules}:\n"
        "    importlib.import_module(module)\n"
        f"    print(module, *[name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    found = {module: set(loaded) for module, *loaded in map(str.split, done.stdout.splitlines())}
    assert found == {module: set(heavy) for module in modules}


@pytest.mark.parametrize(
    "command",
    [
        ("train", "total_timesteps=512"),
        pytest.param(("train", "total_timesteps=512", "optimizer=rmsprop"), marks=pytest.mark.slow),
        pytest.param(("train", "total_timesteps=512", "optimizer=sgd"), marks=pytest.mark.slow),
        ("check", "ppo_clip", "reinforce"),
    ],
    ids=" ".join,
)
def test_a_command_loads_neither_torchs_compiler_nor_its_symbols(command, tmp_path):
    """They take more than a second, and torch's own optimisers and switches load them for nothing."""
    code = (
        "import sys; from rlloss.cli.main import main; code = main(sys.argv[1:]); "
        "print(*[name for name in ('torch._dynamo', 'sympy', 'matplotlib', 'networkx') if name in sys.modules], code)"
    )
    where = [f"run_root={tmp_path}"] if command[0] == "train" else []
    done = subprocess.run([sys.executable, "-c", code, *command, *where], capture_output=True, text=True, cwd=ROOT,
                          check=True)  # fmt: skip
    assert done.stdout.splitlines()[-1].split() == ["0"]


def imported(path):
    """The modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_no_package_imports_one_beside_or_above_it():
    floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    files = [path.relative_to(ROOT / "rlloss") for path in (ROOT / "rlloss").rglob("*.py")]
    assert {path.parts[0].removesuffix(".py") for path in files} == {*floor, "__init__"}
    for path in files:
        room = path.parts[0].removesuffix(".py")
        for module in imported(ROOT / "rlloss" / path):
            assert not module.startswith("experiments"), path
            other = [*module.split("."), ""][1] if module.startswith("rlloss.") else room
            if room not in (other, "__init__") and other in floor:
                assert floor[other] < floor[room], f"{path} imports {module}"


def test_analysis_never_imports_the_trainer_nor_the_losses_anything():
    for room in ("verify.py", "cause.py", "stats.py", "runs", "claims"):
        for path in [ROOT / "rlloss" / room, *(ROOT / "rlloss" / room).rglob("*.py")]:
            assert path.is_dir() or not any(m.startswith("rlloss.train") for m in imported(path)), path
    modules = {module for path in (ROOT / "rlloss/losses").glob("*.py") for module in imported(path)}
    ours = {module.split(".")[1] for module in modules if module.startswith("rlloss.")}
    assert ours <= {"losses", "errors", "lazy"}


def test_only_the_commands_print():
    printing = {
        path.relative_to(ROOT / "rlloss").parts[0]
        for path in (ROOT / "rlloss").rglob("*.py")
        if re.search(r"(?<!\w)print\(", path.read_text())
    }
    assert printing == {"cli", "others"}, "others says to its parent what is done"


def test_every_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "rlloss").rglob("__init__.py")}
    assert set(settings["packages"]) == {*found, "rlloss.configs", "rlloss.experiments", "rlloss.reference"}
    data = {p.parent for p in (ROOT / "rlloss").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc", ".md")}
    listed = {
        path.parent
        for package, globs in settings["package-data"].items()
        for glob in globs
        for path in (ROOT / Path(*package.split("."))).glob(glob)
    }
    assert data <= listed
