"""The command line, one file a group of commands. Everything heavy is imported inside them, so that --help is instant."""

from pyscaling.cli import fitting, planning, study
from pyscaling.cli.app import app

__all__ = ["app", "fitting", "planning", "study"]
