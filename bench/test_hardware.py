"""Each operation and a whole step on a device, or projected for four; see hardware.py.

pytest bench/test_hardware.py                        # projected for A100, H100, B200, MI300X
pytest bench/test_hardware.py --device cuda          # measured, where there is a GPU
pytest bench/test_hardware.py --device cpu           # the same code in Triton's interpreter, tiny shapes
"""

import pytest
import torch
from hardware import OPERATIONS, TARGETS, Table, graph_seconds, measured, projected, wall_seconds

from pyscaling.kernels import aot

TINY = aot.Shape(n_member=2, n_sequence=2, context=12, d_model=16, n_head=2, d_ff=24, vocab=40)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@pytest.fixture(scope="module")
def table_of(request: pytest.FixtureRequest):
    """(device, dtype) -> its table, which conftest.py prints at the end."""
    made: dict[tuple[str, str], Table] = {}

    def find(kind: str, device: str, dtype: str, shape: aot.Shape) -> Table:
        if (device, dtype) not in made:
            made[device, dtype] = Table(kind, device, dtype, shape)
            request.config.kernel_tables.append(made[device, dtype])
        return made[device, dtype]

    return find


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(name: str, dtype: str, request: pytest.FixtureRequest, table_of) -> None:
    device = request.config.getoption("--device")
    if device == "meta":
        for gpu in TARGETS:
            row = projected(name, aot.TYPICAL, DTYPES[dtype], gpu)
            table_of("projection", gpu, dtype, aot.TYPICAL).rows.append(row)
            assert row.seconds > 0 and row.peers["eager"] > 0
        return
    if device == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda needs a GPU that torch sees; without one, leave --device out and count.")
    if device == "cpu" and dtype == "bfloat16":
        pytest.skip("Triton's interpreter computes bfloat16 by casting up, which says nothing of a GPU's")
    shape, timer = (aot.TYPICAL, graph_seconds) if device == "cuda" else (TINY, wall_seconds)
    row = measured(name, shape, DTYPES[dtype], device, timer)
    gpu = torch.cuda.get_device_name() if device == "cuda" else "Triton's interpreter, wall clock"
    table_of("measured", gpu, dtype, shape).rows.append(row)
    assert row.seconds > 0
