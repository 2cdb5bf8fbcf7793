"""``rlloss certify``: a certificate of a run; and what ``rlloss verify --certificate`` makes of one."""

import argparse
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from rlloss import tables
from rlloss.cli.arguments import Parser
from rlloss.cli.exits import Exit
from rlloss.cli.paths import one_run, output_file
from rlloss.config.schema import Config, config_of
from rlloss.errors import ConfigError, RunFailed
from rlloss.runs.certificate import Certificate, canonical, certify, checkpoint_before, mismatch, printable, read
from rlloss.runs.provenance import differing_versions, versions
from rlloss.runs.reader import LOSS, RunFolder, to_json
from rlloss.runs.writer import replace
from rlloss.train.numerics import PORTABLE, relaunch

INTERPOLATION = b"${"
MANY_WEIGHTS, MANY_SAMPLES = 1 << 26, 1 << 24  # more than which no machine is asked to hold for a stranger
DECIDE = (LOSS, "environment")  # sources of a user's: if they are others, another program would be trained


def run(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    output_file("--out", options.out)
    document = certify(RunFolder(one_run(options.run)))
    out = options.out or options.run / "certificate.json"
    if options.out is not None:
        refuse_another_file(out)
    certificate = Certificate(out, document, intact=True)
    what = described(certificate, certified(certificate, f"RUN={options.run}"))
    out.parent.mkdir(parents=True, exist_ok=True)
    replace(out, (to_json(document) + "\n").encode())
    print(f"certificate of {what}\nwritten to {out}; `rlloss verify --certificate {out}` plays it again")
    return Exit.HOLDS


def refuse_another_file(out: Path) -> None:
    """Raises: ConfigError for a file that is there and is no certificate, as a run's own."""
    if not out.exists():
        return
    try:
        read(out)
    except ConfigError as error:
        raise ConfigError(f"--out {out}: holds something else than a certificate; name another file") from error


def parser() -> Parser:
    verb = Parser(
        prog="rlloss certify",
        description="Write a certificate of a finished run: a small file that says, step by step and signed by its "
        "content, which parameters the run gave. rlloss/train/README.md says what it proves, and what not.",
    )
    verb.add_argument("run", type=Path, metavar="RUN")
    verb.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: RUN/certificate.json)")
    return verb


class Answer(NamedTuple):
    """To one of the three questions about a certificate. ``holds`` is None where it was not asked."""

    question: str
    holds: bool | None
    why: str


def verify_certificate(options: argparse.Namespace) -> int:
    """Is it intact, does it describe the run that is claimed, does playing it again give that run?"""
    certificate = read(options.certificate)
    config = certified(certificate)
    first, last = interval(options.steps, certificate)
    if config.numerics.name == PORTABLE and not options.no_replay:
        relaunch()
    if len(options.folders) > 1:
        raise ConfigError(f"FOLDER={options.folders[1]}: a certificate is of one run; name one folder, or none")
    claimed = RunFolder(options.folders[0]) if options.folders else None
    answers = [intact(certificate), describes(certificate, claimed)]
    if options.no_replay or answers[0].holds is False:
        answers.append(Answer("replays", None, "not asked" if options.no_replay else "not tried: it is not intact"))
    else:
        answers.append(replays(certificate, config, claimed, (first, last), trusted=options.trust))
    if options.json:
        print(to_json({"holds": holds(answers), **{a.question: {"holds": a.holds, "why": a.why} for a in answers}}))
    else:
        words = {True: "yes", False: "NO", None: "–"}
        rows = [{"question": a.question, "answer": words[a.holds], "": printable(a.why)} for a in answers]
        print(f"certificate of {described(certificate, config)}\n\n{tables.text(pd.DataFrame(rows))}")
    return Exit.HOLDS if holds(answers) else Exit.FAILS


def holds(answers: list[Answer]) -> bool:
    return not any(answer.holds is False for answer in answers)


def described(certificate: Certificate, config: Config) -> str:
    """In a line: what was trained, how long, and where."""
    what = f"{config.env.id}, {config.loss.name}, seed {config.seed}, numerics={config.numerics.name}"
    machine = certificate.document["machine"].get("cpu", "an unknown CPU")
    return printable(f"{what}: {certificate.steps:,} optimiser steps, made on {machine}")


def certified(certificate: Certificate, subject: str = "") -> Config:
    """The config to train again, checked. Raises: ConfigError for one that no run of this version has."""
    try:
        if INTERPOLATION in canonical(certificate.config):
            raise ValueError("it refers to something outside of it, as ${oc.env:...} does")
        config: Any = OmegaConf.to_object(OmegaConf.structured(config_of(certificate.config)))  # of each key's type
        assert isinstance(config, Config)
        config.validate()
    except (OmegaConfBaseException, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        what = f"no run of this version has such a config: {printable(' '.join(str(error).split()))}"
        raise ConfigError(f"{subject or f'--certificate={certificate.path}'}: {what}") from error
    return config


def interval(text: str | None, certificate: Certificate) -> tuple[int, int]:
    """The first and the last optimiser step to be confirmed: all of them, or those of ``--steps K:N``."""
    if text is None:
        return 1, certificate.steps
    found = re.fullmatch(r"(\d{1,15}):(\d{1,15})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]) <= certificate.steps:
        raise ConfigError(f"--steps={text}: name the first and the last one, as 1:{certificate.steps}")
    return int(found[1]), int(found[2])


def intact(certificate: Certificate) -> Answer:
    if certificate.intact:
        return Answer("intact", True, "its content is what was signed")
    return Answer("intact", False, "its content is not what was signed: it was changed, or cut, after it was made")


def describes(certificate: Certificate, claimed: RunFolder | None) -> Answer:
    if claimed is None:
        return Answer("describes the run", None, "not asked: name the run's folder to ask")
    why = mismatch(certificate, claimed)
    return Answer(
        "describes the run", not why, why or f"config, digests, tables, checkpoints and parameters of {claimed.path}"
    )


def replays(
    certificate: Certificate, config: Config, claimed: RunFolder | None, steps: tuple[int, int], *, trusted: bool
) -> Answer:
    if why := "" if trusted else not_ours(config):
        return Answer("replays", False, f"not tried: {why}")
    if why := another_program(certificate, config):
        return Answer("replays", False, f"not tried: {why}")
    from rlloss.train.confirm import confirm  # here, since it needs torch

    checkpoint = checkpoint_before(certificate, claimed, steps[0]) if claimed and steps[0] > 1 else None
    with tqdm(total=steps[1], unit="step", disable=None, desc="playing it again") as bar:

        def progress(step: int) -> None:
            bar.update(step - bar.n)

        try:
            done = confirm(certificate, config, steps, checkpoint, progress)
        except RunFailed as error:
            return Answer("replays", False, f"it fails here: {error}")
    if not done.differs:
        start = "from its start" if done.first == 1 else f"from the checkpoint after step {done.first - 1:,}"
        end = ", the final digest and the tables" if (done.first, done.last) == (1, certificate.steps) else ""
        what = f"optimiser steps {done.first:,} to {done.last:,} {start}{end}, {done.seconds:.0f} s"
        return Answer("replays", True, what)
    suspected = [*others(certificate, config), *done.suspects] or ["nothing that is recorded"]
    native = config.numerics.name != PORTABLE and done.suspects
    excuse = "; numerics=native promises the same bits on one machine alone" if native else ""
    return Answer("replays", False, f"{done.differs}; to be suspected: {'; '.join(suspected)}{excuse}")


def not_ours(config: Config) -> str:
    """Whose program a certificate names, and what to do about it; empty if it is all of rlloss and Gymnasium.

    Training executes it, and whoever made the certificate chose it.
    """
    if reason := too_large(config):
        return f"{reason}; add --trust to try it"
    wrappers = (entry.get("wrapper") if isinstance(entry, dict) else entry for entry in config.env.wrappers)
    named = [str(name) for name in (config.loss.name, config.env.id, *wrappers) if ":" in str(name)]
    if not named:
        return ""
    return printable(f"it names {', '.join(named)}, which a replay executes; look at the source, then add --trust")


def too_large(config: Config) -> str:
    """Why a run may need more memory than a machine has, which whoever made the certificate can ask for."""
    sizes = [max(config.hidden_sizes), *(a * b for a, b in pairwise(config.hidden_sizes))]
    if max(sizes) > MANY_WEIGHTS:
        return f"it has hidden_sizes={config.hidden_sizes}"
    return f"it has a batch of {config.num_samples:,} samples" if config.num_samples > MANY_SAMPLES else ""


def another_program(certificate: Certificate, config: Config) -> str:
    """Whether what the certificate names has another source here, in words; empty if not."""
    made, now = certificate.document["versions"], _versions(config)
    for key in DECIDE:
        if made.get(key) != now.get(key):
            return f"the source of its {key} is not the one that is here"
    return ""


def others(certificate: Certificate, config: Config) -> list[str]:
    """In which versions this machine is not as the certificate says."""
    made, now = certificate.document["versions"], _versions(config)
    return [f"{name} {now[name]} instead of {made.get(name)}" for name in differing_versions(made, now)]


def _versions(config: Config) -> dict[str, str]:
    return versions(config.loss.name, config.env.id, config.env.wrappers)
