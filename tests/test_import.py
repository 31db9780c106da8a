"""`import pyscaling` is quick, and neither it nor a fit needs anything heavy."""

import subprocess
import sys

HEAVY = ("torch", "pandas", "sympy", "matplotlib", "scipy")


def loaded_after(code: str) -> str:
    report = f"import sys; {code}; print([m for m in {HEAVY} if m in sys.modules])"
    return subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_light() -> None:
    assert loaded_after("import pyscaling") == "[]"


def test_fit_is_light() -> None:
    fit = "import pyscaling as ps; ps.fit({'N': [1e6, 2e6, 4e6, 8e6, 16e6], 'loss': [4, 3.5, 3.1, 2.8, 2.6]}, law='kaplan_N')"
    assert loaded_after(fit) == "[]"


def test_import_time() -> None:
    """At most 150 ms beyond an empty interpreter; the best of five, since other processes only ever add to it."""
    timed = "import time; t = time.perf_counter(); import pyscaling; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True) for _ in range(5)]
    assert min(float(run.stdout) for run in runs) < 0.15
