"""`python -m pyscaling`: the command line."""

from pyscaling.cli import app

app(prog_name="pyscaling")
