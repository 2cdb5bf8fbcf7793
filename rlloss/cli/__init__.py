"""The ``rlloss`` command."""

from rlloss.cli.main import main
