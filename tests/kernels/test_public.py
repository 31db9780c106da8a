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


Z = torch.zeros
TOKENS = Z(2, 5, dtype=torch.long)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: kernels.linear(Z(5, 8), Z(7, 3)), "weight must have shape [8, any], got [7, 3]."),
        (lambda: kernels.linear(Z(5, 8), Z(1, 8, 3)), "weight must have shape [8, any], got [1, 8, 3]."),
        (lambda: kernels.linear(Z(5, 8), Z(8, 3), Z(4)), "bias must have shape [3], got [4]."),
        (lambda: kernels.linear(Z(5, 8), Z(8, 3), None, Z(5, 4)), "residual must have shape [5, 3], got [5, 4]."),
        (lambda: kernels.linear(Z(5, 8), Z(8, 0)), "weight is empty: [8, 0]; it needs at least one column."),
        (
            lambda: kernels.linear(Z(8), Z(8, 3)),
            "x must have shape [M, rows, columns], or [rows, columns] of a single model, got [8].",
        ),
        (lambda: kernels.mlp(Z(5, 8), Z(7, 9), None, Z(9, 8), None), "up must have shape [8, 9], got [7, 9]."),
        (lambda: kernels.mlp(Z(5, 8), Z(8, 9), Z(7), Z(9, 8), Z(8)), "up_bias must have shape [9], got [7]."),
        (
            lambda: kernels.mlp(Z(5, 8), Z(8, 9), None, Z(1, 9, 8), None),
            "down must have shape [any, any], got [1, 9, 8].",
        ),
        (lambda: kernels.layer_norm(Z(5, 8), Z(7)), "gain must have shape [8], got [7]."),
        (lambda: kernels.rms_norm(Z(5, 8), Z(8), Z(5, 7)), "residual must have shape [5, 8], got [5, 7]."),
        (lambda: kernels.rms_norm(Z(5, 0), Z(0)), "x is empty: [5, 0]; it needs at least one column."),
        (lambda: kernels.embedding(TOKENS, Z(9, 4), Z(6, 5)), "position must have shape [any, 4], got [6, 5]."),
        (lambda: kernels.embedding(TOKENS[0], Z(9, 4)), "tokens must have shape [any, any], got [5]."),
        (
            lambda: kernels.linear_cross_entropy(Z(5, 8), Z(7, 9), TOKENS[0]),
            "weight must have shape [8, any], got [7, 9].",
        ),
        (lambda: kernels.linear_cross_entropy(Z(2, 8), Z(8, 9), TOKENS), "targets must have shape [2], got [2, 5]."),
        (
            lambda: kernels.linear_cross_entropy(Z(5, 8), Z(8, 0), TOKENS[0]),
            "weight is empty: [8, 0]; it needs at least one row and one column.",
        ),
        (lambda: kernels.attention(Z(3, 5, 8), Z(3, 5, 8), Z(3, 4, 8)), "v must have shape [3, 5, 8], got [3, 4, 8]."),
        (
            lambda: kernels.attention(Z(2, 2, 3, 5, 8), Z(2, 2, 3, 5, 9), Z(2, 2, 3, 5, 8)),
            "k must have shape [..., n_head, T, head_dim] like q [2, 2, 3, 5, 8], got [2, 2, 3, 5, 9].",
        ),
    ],
)
def test_errors_show_the_shapes_that_were_given(call, message: str) -> None:
    with pytest.raises(ValueError) as error, torch.device(DEVICE):
        call()
    assert str(error.value) == message
