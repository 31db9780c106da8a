"""A plugin of pytest (-p gpu.reports): each test's outcome becomes a row as soon as it is known, so that a cut loses none."""

import json
import os
from typing import Any


def pytest_runtest_logreport(report: Any) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # the main process hears of it, too
        return
    if report.when != "call" and report.outcome == "passed":
        return
    row = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 2)}
    if report.outcome == "failed":
        row |= {"ok": False, "why": str(report.longrepr).strip().splitlines()[-1:]}
    with open(os.environ["PYSCALING_GPU_ROWS"], "a") as file:
        file.write(json.dumps(row) + "\n")
