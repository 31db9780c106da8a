"""What tests and benchmarks share: which pyscaling they import, and where kernels run.

    pytest --device cuda tests/kernels tests/models     the tests of kernels on a card

`python -m pytest` puts this folder first on the path, whose pyscaling has neither the C++ core nor the kernels unless it
was installed editable. Where a whole one is installed, that is what is tested, in subprocesses, too.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
elsewhere = [folder for folder in sys.path if Path(folder or ".").resolve() != ROOT]
if PathFinder.find_spec("pyscaling", elsewhere) is not None:
    sys.path[:] = elsewhere
    os.environ["PYTHONSAFEPATH"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("kernels").addoption(
        "--device",
        choices=["meta", "cpu", "cuda"],
        default="meta",
        help="meta (default): benchmarks count and project, tests take the card if torch sees one; cuda: both take the card; "
        "cpu: both run kernels in Triton's interpreter",
    )


def pytest_configure(config: pytest.Config) -> None:
    if (
        find_spec("pyscaling") is None or find_spec("pyscaling.kernels") is None
    ):  # a checkout's own folder lacks the kernels
        raise pytest.UsageError(
            "pyscaling is not installed here: pip install '.[train,test,bench]' (with --editable to "
            "work on it), or run the tests by `make test`."
        )
    if config.getoption("--device") == "cpu":  # before anything imports triton
        os.environ["TRITON_INTERPRET"] = "1"
    elif config.getoption("--device") == "cuda":
        os.environ.pop("TRITON_INTERPRET", None)
