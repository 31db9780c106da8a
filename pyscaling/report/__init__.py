"""The report of a study: `analyse` says what it shows, `write_report` draws it into index.html."""

from pathlib import Path
from typing import Any

from pyscaling.report.analysis import Analysis, HeldOutTest, analyse, held_out_test

__all__ = ["Analysis", "HeldOutTest", "analyse", "held_out_test", "write_report"]


def write_report(folder: str | Path, **options: Any) -> Path:
    """`page.write_report`, imported late because it needs matplotlib."""
    from pyscaling.report.page import write_report as write

    return write(folder, **options)
