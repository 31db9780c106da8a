"""What a user imports are functions, in whatever order their files were loaded."""

import os
import subprocess
import sys

import pytest
import torch

from pyscaling import kernels
from pyscaling.kernels.launch import INTERPRETED

DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")


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


def test_a_chain_compiles_whole_with_dynamic_shapes() -> None:
    n_member, n_sequence, length, d, d_ff, vocab = 2, 2, 5, 16, 20, 30
    sizes = (vocab, d), (d,), (d,), (d, 3 * d), (3 * d,), (d, d_ff), (d_ff,), (d_ff, d), (d,), (d, vocab)
    generator = torch.Generator().manual_seed(0)
    leaves = [torch.randn(n_member, *size, generator=generator).to(DEVICE).requires_grad_() for size in sizes]
    tokens = torch.randint(0, vocab, (n_member, n_sequence, length), generator=generator).to(DEVICE)

    def chain(tokens, table, gain, bias, packed, packed_bias, up, up_bias, down, down_bias, head):  # type: ignore[no-untyped-def]
        M, B, T = tokens.shape
        x = kernels.layer_norm(kernels.embedding(tokens, table), gain, bias)
        q, k, v = kernels.linear(x, packed, packed_bias).reshape(M, B, T, 3, 2, -1).permute(3, 0, 1, 4, 2, 5)
        x = kernels.attention(q, k, v, causal=True).transpose(-3, -2).reshape(M, B * T, -1)
        x = kernels.rms_norm(kernels.mlp(x, up, up_bias, down, down_bias, residual=x), gain)
        return kernels.linear_cross_entropy(x, head, tokens.reshape(M, -1))

    compiled = torch.compile(chain, backend="aot_eager", fullgraph=True, dynamic=True)
    ours, eager = (f(tokens, *leaves) for f in (compiled, chain))
    assert torch.equal(ours, eager)
    for a, b in zip(*(torch.autograd.grad(loss.sum(), leaves) for loss in (ours, eager)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not INTERPRETED, reason="numpy warns, in the interpreter")
def test_the_interpreter_does_not_warn_of_an_overflow(recwarn: pytest.WarningsRecorder) -> None:
    x, up, down = torch.full((1, 2, 4), 100.0), torch.full((1, 4, 8), -10.0), torch.ones(1, 8, 4)
    kernels.mlp(x, up, None, down, None, "gelu")
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'convolution'"):
        kernels.convolution
