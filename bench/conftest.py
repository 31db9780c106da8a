"""Options of the benchmarks of kernels; --device is the tests', too, and lies in ../conftest.py.

pytest bench/test_hardware.py --device cuda --table kernels.md
"""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("kernels").addoption(
        "--table", type=Path, metavar="FILE", help="write the kernels' table there, as .json or as markdown"
    )


def pytest_configure(config: pytest.Config) -> None:
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
