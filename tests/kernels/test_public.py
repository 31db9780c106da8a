"""What a user imports are functions, in whatever order their files were loaded."""

import os
import subprocess
import sys

import pytest

from pyscaling import kernels


@pytest.mark.parametrize("first", ["", "import pyscaling.kernels.attention, pyscaling.kernels.mlp;"])
def test_functions_bear_their_files_names(first: str) -> None:
    code = (
        f"{first}\nfrom pyscaling.kernels import {', '.join(kernels.FUNCTIONS)}\n"
        f"assert all(callable(f) for f in ({', '.join(kernels.FUNCTIONS)}))\n"
        "from pyscaling.kernels.attention import attention_forward; from pyscaling.kernels import reference"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TRITON_INTERPRET": "1"})


def test_the_reference_needs_no_triton() -> None:
    code = "import sys; import pyscaling.kernels.reference; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'convolution'"):
        kernels.convolution
