"""Do the files of a finished run agree with each other? What one of them says twice, or of another one, is compared.

A file that was changed after the run is mostly a file that can be read. It is found by what the others say: run.json
holds the digest of the config and of the initial parameters, digests.bin that of every snapshot and checkpoint, and a
checkpoint that of its own content.
"""

from rlloss.errors import ConfigError
from rlloss.runs.place import config_digest
from rlloss.runs.provenance import digest, loss_source, named_by_source
from rlloss.runs.reader import LOSS, Damaged, RunFolder
from rlloss.runs.watched import is_watched


def disagreement(run: RunFolder) -> str:
    """Which file of a finished run is not what another one says, and how; empty if all agree. Found out once a run."""
    if "disagreement" not in run.__dict__:  # as cached_property does, of what is above the reader
        run.__dict__["disagreement"] = _found(run)
    return str(run.__dict__["disagreement"])


def _found(run: RunFolder) -> str:
    try:
        check_config(run)
    except ConfigError as error:
        return str(error)
    return contradiction(run)


def contradiction(run: RunFolder) -> str:
    """Where a finished run's digests are not those that ``run.json`` counts; empty if they are."""
    for key in ("optimizer_steps", "final_digest"):
        if key not in run.info:
            return f"{run.path.name}/run.json has no {key}"
    if len(run.digests) != run.info["optimizer_steps"]:
        steps = run.info["optimizer_steps"]
        return f"{run.path.name}: digests.bin has {len(run.digests)} digests, run.json says {steps} optimiser steps"
    if not len(run.digests) or run.digests[-1].tobytes().hex() != run.info["final_digest"]:
        return f"{run.path.name}: the last digest of digests.bin is not the final_digest of run.json"
    return ""


def check_config(run: RunFolder) -> None:
    """Raises: Damaged for a config that is not the one that run.json was written with.

    A run that was made before run.json had the config's digest tells by its loss alone: by the digest of its source,
    if that is now the source of another loss of ours. A source that is neither is one of another version.
    """
    kept = run.info.get("config_digest")
    if kept is not None:
        if kept != config_digest(run.config):
            raise Damaged(run.path, "config.yaml", "is not the config that run.json has the digest of")
        return
    made = run.info.get("versions", {}).get(LOSS)
    if ":" in run.loss or is_watched(run) or made == digest(loss_source(run.loss).encode()):
        return
    trained = named_by_source().get(str(made))
    if trained is not None:
        raise Damaged(run.path, "config.yaml", f"names the loss {run.loss}, run.json has the source of {trained}")
