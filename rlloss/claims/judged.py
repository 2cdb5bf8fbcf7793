"""A claim with its runs, judged."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rlloss.claims.claim import Claim, Finding, Overrides
from rlloss.config.compose import load
from rlloss.config.metrics import METRICS
from rlloss.config.schema import Config
from rlloss.errors import ConfigError
from rlloss.runs.place import check_folder, recorded, run_folder
from rlloss.runs.reader import RunFolder

HOLDS, FAILS, NOT_RUN = "holds", "DOES NOT HOLD", "not run"
SUMMARY = ("final_digest", "optimizer_steps", "env_steps", "machine")  # of run.json: what claims and figures read
# In a setting's name:
UNSHOWN = (
    "env=", "loss=", "loss.offset=", "seed=", "total_timesteps=", "snapshot_every=", "on_nonfinite=", "numerics=",
)  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """A claim with its runs and what came of them; ``finding`` is None if they are not all finished and whole."""

    claim: Claim
    preset: str
    settings: list[str]  # of each run, in words
    runs: list[RunFolder]
    finding: Finding | None
    why_not: str = ""  # there is no finding: what is not installed here and the remedy, or the file that is damaged

    @property
    def ours(self) -> list[tuple[str, RunFolder]]:
        """The setting and the run of each that our own trainer made."""
        return list(zip(self.settings, self.runs, strict=False))

    @property
    def verdict(self) -> str:
        if self.finding is None:
            return NOT_RUN
        return HOLDS if self.finding.holds else FAILS

    @property
    def summary(self) -> str:
        if self.finding is not None:
            return self.finding.summary
        if missing := sum(run.status != "finished" for run in self.runs):
            unfinished = f"{missing} of {len(self.runs)} runs are not finished"
            return f"{unfinished}: {self.why_not}" if self.why_not else unfinished
        return self.why_not

    @property
    def command(self) -> str:
        return f"rlloss reproduce --claim {self.claim.name} --preset {self.preset}"


def judge(claim: Claim, preset: str, run_root: Path, needed: str = "") -> Judged:
    """The claim's verdict on the runs below ``run_root``; ``needed`` says why they could not be made here."""
    overrides = claim.runs(preset)
    configs = [replace(load(o), run_root=str(run_root)) for o in overrides]
    others = [RunFolder(training.folder(run_root)) for training in claim.others(preset)]
    runs = [*(RunFolder(run_folder(config)) for config in configs), *others]
    judged = partial(Judged, claim, preset, list(map(setting, overrides)), runs)
    if not all(run.status == "finished" for run in runs):
        return judged(None, needed)
    damages = [*map(_damage, runs, configs), *(run.damage for run in others)]
    if damage := next(filter(None, damages), ""):
        return judged(None, damage)
    return judged(claim.judge(runs))


def _damage(run: RunFolder, config: Config) -> str:
    """Why claims, which read every file, key and column of a run of ours, cannot read this one; empty if they can."""
    if run.damage:
        return run.damage
    try:
        check_folder(run.path, config)
    except ConfigError as error:
        return str(error)
    absent = [f"config.yaml has no {key}" for key in recorded(asdict(config)) if key not in run.config]
    absent += [f"run.json has no {key}" for key in SUMMARY if key not in run.info]
    absent += [f"metrics.csv has no column {name}" for name in METRICS if name not in run.metrics]
    return f"{run.path.name}/{absent[0]}" if absent else ""


def setting(overrides: Overrides) -> str:
    """The overrides that say in which setting a run stands, for people."""
    return ", ".join(o for o in overrides if not o.startswith(UNSHOWN))
