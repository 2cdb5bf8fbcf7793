"""Run folders: reading and writing them, and where they belong. Needs neither torch nor Hydra."""

from rlloss.runs.reader import RunFolder, covered, distance, find_runs
from rlloss.runs.rows import Decision, Episode
from rlloss.runs.writer import RunWriter
