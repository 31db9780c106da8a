"""What every test shares: one thread per process, a cache of its own, a device, and where third-party data lies.

Hypothesis draws the same examples in every run, so that a failure belongs to the change that shows it;
`pytest --hypothesis-profile=default` draws new ones.
"""

import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import settings

try:
    import torch
except ModuleNotFoundError:
    torch = None  # fitting and planning need none
else:
    torch.set_num_threads(1)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """PYSCALING_TEST_DEVICE is where tests of kernels make their tensors: cuda, or cpu for Triton's interpreter."""
    if torch is None:
        return
    asked, card = config.getoption("--device"), torch.cuda.is_available()
    if asked == "cuda" and not card:
        raise pytest.UsageError("--device cuda needs a GPU that torch sees; without one leave it out.")
    interpreter = asked == "cpu" or not card or (asked != "cuda" and os.environ.get("TRITON_INTERPRET", "0") != "0")
    os.environ["PYSCALING_TEST_DEVICE"] = "cpu" if interpreter else "cuda"
    if interpreter:  # before Triton is imported; small blocks, so that small tests visit several
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ.setdefault("PYSCALING_INTERPRETER_SIDE", "32")


@pytest.fixture(scope="session", autouse=True)
def _kernels_themselves() -> None:
    """What kernels/tiles.py hands over to plain PyTorch is tested all the same: so it shows when it is mended."""
    if torch is not None and find_spec("pyscaling.kernels") is not None:
        from pyscaling.kernels import tiles

        tiles.HANDED_OVER = ()
        tiles._prefer(())


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["PYSCALING_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def chinchilla_runs():
    """The 245 points of Besiroglu et al. 2024, or a skip where the third-party file is absent."""
    import pyscaling as ps

    path = SHARED_DATA / "epoch_chinchilla.csv"
    if not path.exists():
        pytest.skip("third-party data ../shared/data/epoch_chinchilla.csv is not here")
    return ps.read_runs(path, columns={"N": "Model Size", "C": "Training FLOP"})


@pytest.fixture(autouse=True)
def _figures_are_closed() -> Iterator[None]:
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
