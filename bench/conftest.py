"""Options of the benchmarks of kernels.

pytest bench/test_hardware.py --device cuda --table kernels.md
"""

import os
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernels")
    group.addoption(
        "--device",
        choices=["meta", "cpu", "cuda"],
        default="meta",
        help="meta: count and project (default); cuda: measure; cpu: the code of cuda in Triton's interpreter, tiny shapes",
    )
    group.addoption(
        "--table", type=Path, metavar="FILE", help="write the kernels' table there, as .json or as markdown"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--device") == "cpu":  # before anything imports triton
        os.environ.setdefault("TRITON_INTERPRET", "1")
    config.kernel_tables = []  # of hardware.Table, in the order they were made


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    made = config.kernel_tables
    if not made:
        return
    for table in made:
        terminalreporter.write_line(f"\n{table}")
    path = config.getoption("--table")
    if path:
        import hardware

        path.write_text(hardware.written(made, as_json=path.suffix == ".json"))
        terminalreporter.write_line(f"\nwritten to {path}")
