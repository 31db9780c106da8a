"""Attention against softmax(q k^T scale) v written out in float64, with rotation as complex numbers.

The interpreter's blocks are 32 own rows by 16 steps, so lengths of 33 to 70 bring full, diagonal and ragged blocks. Those
that sm_90 takes are tried, too: they say in which order sums are formed.
"""

import contextlib
import importlib
import math
import os
import warnings

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention.bias import causal_lower_right

from pyscaling.kernels import launch, reference, tiles
from pyscaling.kernels.attention import attention, attention_backward, attention_forward

kernels = importlib.import_module("pyscaling.kernels.attention")

DEVICE = os.environ.get("PYSCALING_TEST_DEVICE", "cpu")
pytestmark = pytest.mark.skipif(DEVICE == "cpu" and not launch.INTERPRETED, reason="no interpreter, no GPU")
PLAIN = {"causal": False, "scale": None, "rope_base": None, "qk_norm": False}
FULL = {"causal": True, "scale": 0.3, "rope_base": 100.0, "qk_norm": True}
CACHE = FULL | {"causal": "bottom_right"}


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def exact(q: Tensor, k: Tensor, v: Tensor, causal, scale: float | None, rope_base: float | None, qk_norm: bool):
    head_dim = q.shape[-1]
    offset = k.shape[-2] - q.shape[-2] if causal == "bottom_right" else 0

    def inside(x: Tensor, first: int) -> Tensor:
        half = head_dim // 2
        if rope_base is not None:
            angle = (first + torch.arange(x.shape[-2])).double()[:, None] * rope_base ** (
                -torch.arange(half).double() / half
            )
            turned = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.exp(1j * angle).to(x.device)
            x = torch.cat((turned.real, turned.imag, x[..., 2 * half :]), -1)
        return x / ((x**2).mean(-1, keepdim=True) + 2.0**-23).sqrt() if qk_norm else x

    score = inside(q, offset) @ inside(k, 0).mT * (head_dim**-0.5 if scale is None else scale)
    if causal:
        hidden = torch.arange(k.shape[-2])[None, :] > torch.arange(q.shape[-2])[:, None] + offset
        score = score.masked_fill(hidden.to(score.device), -math.inf)
    return score.softmax(-1) @ v


def with_variance(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, causal, scale, rope_base, qk_norm, unit: float
) -> tuple[tuple[Tensor, Tensor], ...]:
    """(value, variance of its rounding errors) of out, dq, dk and dv, to first order, element by element.

    unit: of what is kept in the tensors' dtype (q and k as turned, P, dS and the results); sums and functions are of float32,
    2^-24. Each rounding counts as its unit times what is rounded, and what errs independently adds up in squares; the errors
    of lse and D are a whole row's, so that they are carried to the row's sum instead.
    """
    head_dim, w2, u2 = q.shape[-1], 2.0**-48, unit**2
    half = head_dim // 2
    offset = k.shape[-2] - q.shape[-2] if causal == "bottom_right" else 0
    scale = head_dim**-0.5 if scale is None else scale
    # Tensor cores cut off where float32 rounds, and tf32x3 leaves out 2^-22 of a product.
    cut_off, left_out = (4.0, 16.0 if unit == 2.0**-24 else 0.0) if DEVICE == "cuda" else (1.0, 0.0)

    def dot(a, var_a, b, var_b):
        """a b, summed one by one: of n products the i-th partial sum is about (i / n) a b, give or take sqrt(i) of them."""
        n, value, squares = a.shape[-1], a @ b, a**2 @ b**2
        partial_sums = n / 3 * value**2 + n / 2 * squares
        return value, a**2 @ var_b + var_a @ b**2 + w2 * (cut_off * partial_sums + left_out * squares)

    def turned(x, var, sign, first):
        """Rotates by sign times the angle; a sine is off by five units, and the angle by one of its size."""
        if rope_base is None:
            return x, var
        position = first + torch.arange(x.shape[-2], dtype=torch.float64, device=x.device)[:, None]
        angle = position * rope_base ** (-torch.arange(half, dtype=torch.float64, device=x.device) / half)
        cosine, sine = angle.cos(), sign * angle.sin()
        (a, b, rest), (var_a, var_b, var_rest) = (z.split((half, half, head_dim - 2 * half), -1) for z in (x, var))
        off = w2 * (25 + angle**2) * (a**2 + b**2)
        var_x, var_y = cosine**2 * var_a + sine**2 * var_b, cosine**2 * var_b + sine**2 * var_a
        x = torch.cat((a * cosine - b * sine, b * cosine + a * sine, rest), -1)
        return x, torch.cat((var_x + off, var_y + off, var_rest), -1)

    def inside(x, first):
        inverse = 1 / ((x**2).mean(-1, keepdim=True) + 2.0**-23).sqrt() if qk_norm else 1.0
        x, var = turned(x * inverse, 3 * w2 * (x * inverse) ** 2 if qk_norm else 0.0 * x, 1.0, first)
        return x, var + (u2 * x**2 if rope_base is not None or qk_norm else 0.0)

    def outside(grad, var, x, first):
        grad, var = turned(grad, var, -1.0, first)
        if qk_norm:
            inverse = 1 / ((x**2).mean(-1, keepdim=True) + 2.0**-23).sqrt()
            y = x * inverse
            mean, var_mean = (grad * y).mean(-1, keepdim=True), (var * y**2).sum(-1, keepdim=True) / head_dim**2
            var = inverse**2 * (var + y**2 * var_mean + 3 * w2 * (grad**2 + (y * mean) ** 2))
            grad = inverse * (grad - y * mean)
        return grad, var + u2 * grad**2

    (q_in, var_q), (k_in, var_k) = inside(q, offset), inside(k, 0)
    score, var = dot(q_in, var_q, k_in.mT, var_k.mT)
    score, var = scale * score, scale**2 * var
    if causal:
        hidden = torch.arange(k.shape[-2])[None, :] > torch.arange(q.shape[-2])[:, None] + offset
        score = score.masked_fill(hidden.to(score.device), -math.inf)
    lse, p = score.logsumexp(-1, keepdim=True), score.softmax(-1)
    var_p = p**2 * (var + w2 * (torch.where(p > 0, score, 0.0) ** 2 + 2))  # of 2^(s - lse) but for lse
    var_lse = var_p.sum(-1, keepdim=True) + w2 * (lse**2 + 4)
    var_p_own = var_p + u2 * p**2
    out, var_out = dot(p, var_p_own, v, 0.0 * v)
    var_out = var_out + out**2 * (var_lse + u2)
    delta, var_delta = (grad_out * out).sum(-1, keepdim=True), (grad_out**2 * var_out).sum(-1, keepdim=True)
    var_delta = var_delta + w2 * head_dim / 2 * (grad_out * out).square().sum(-1, keepdim=True)
    grad_p, var_grad_p = dot(grad_out, 0.0 * grad_out, v.mT, 0.0 * v.mT)
    grad_s = p * (grad_p - delta)
    var_s = var_p * (grad_p - delta) ** 2 + p**2 * (var_grad_p + w2 * (grad_p**2 + delta**2)) + u2 * grad_s**2
    grad_q, var_grad_q = dot(grad_s, var_s, k_in, var_k)
    var_grad_q = var_grad_q + var_lse * grad_q**2 + var_delta * (p @ k_in) ** 2
    shared = var_lse * grad_s**2 + p**2 * var_delta
    grad_k, var_grad_k = dot(grad_s.mT, (var_s + shared).mT, q_in, var_q)
    grad_v, var_grad_v = dot(p.mT, (var_p_own + var_lse * p**2).mT, grad_out, 0.0 * grad_out)
    return (
        (out, var_out),
        outside(scale * grad_q, scale**2 * var_grad_q, q, offset),
        outside(scale * grad_k, scale**2 * var_grad_k, k, 0),
        (grad_v, var_grad_v + u2 * grad_v**2),
    )


def with_gradients(function, tensors, grad_out, options) -> list[Tensor]:
    tensors = [t.detach().requires_grad_() for t in tensors]
    out = function(*tensors, **options)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad_out.to(out.dtype))]


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors hold NaN: what a kernel leaves unwritten shows."""
    empty, empty_like, new_empty = torch.empty, torch.empty_like, Tensor.new_empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(math.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(math.nan))
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: new_empty(*a, **k).fill_(math.nan))


CASES = [  # lengths of queries and keys, head_dim, options
    (1, 1, 8, PLAIN),
    (40, 40, 24, PLAIN | {"causal": True}),
    (33, 70, 16, PLAIN),
    (33, 70, 80, PLAIN | {"causal": True, "scale": 0.02}),  # keys that no query sees
    (70, 33, 17, PLAIN | {"causal": True}),
    (16, 47, 24, FULL | {"causal": False}),
    (47, 32, 9, FULL),  # odd head_dim: its last column is not rotated
    (50, 50, 8, FULL | {"qk_norm": False}),
    (50, 50, 64, FULL | {"rope_base": None}),
    (1, 70, 16, CACHE),  # a step of decoding
    (37, 70, 24, CACHE),
    (33, 65, 9, CACHE | {"rope_base": None, "qk_norm": False}),
]


@pytest.mark.filterwarnings("ignore:causal=True counts queries and keys")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("n_query", "n_key", "head_dim", "options"), CASES)
def test_agrees_with_float64(n_query, n_key, head_dim, options, dtype, monkeypatch) -> None:
    """Each element within four standard deviations of its rounding errors, where the largest seen are 2.2; so is PyTorch's.

    They take an error for as large as it can be, which is 1.7 times the deviation of one that is spread evenly.
    """
    tensors = [random(1, n, head_dim, seed=s, dtype=dtype) for s, n in enumerate((n_query, n_key, n_key))]
    grad_out = random(1, n_query, head_dim, seed=3, dtype=dtype)
    truth = with_gradients(exact, [t.double() for t in tensors], grad_out, options)
    bounds = with_variance(*(t.double() for t in (*tensors, grad_out)), **options, unit=torch.finfo(dtype).eps / 2)
    found = {"plain": with_gradients(reference.attention, tensors, grad_out, options)}
    poison(monkeypatch)
    for target in (None, "sm_90") if launch.INTERPRETED else (None,):
        with launch.compiled_for(target) if target else contextlib.nullcontext():
            found[target or "ours"] = with_gradients(attention, tensors, grad_out, options)
    for whose, results in found.items():
        for name, a, t, (value, variance) in zip(("out", "dq", "dk", "dv"), results, truth, bounds, strict=True):
            torch.testing.assert_close(value, t, rtol=1e-9, atol=1e-11)  # the bound is of the same function
            error, allowed = (a - t).abs(), 4.0 * variance.sqrt()
            assert (error <= allowed).all(), (whose, name, float((error / allowed).nan_to_num().max()))
            assert a.dtype == dtype


@pytest.mark.parametrize("options", [FULL, CACHE])
def test_bfloat16(options) -> None:
    """The interpreter truncates to bfloat16, 2^-7 of a value; P, dS, q and k are each rounded on the way."""
    n_query = 17 if options is CACHE else 40
    tensors = [random(1, n, 24, seed=s, dtype=torch.bfloat16) for s, n in enumerate((n_query, 40, 40))]
    grad_out = random(1, n_query, 24, seed=3, dtype=torch.bfloat16)
    truth = with_gradients(exact, [t.double() for t in tensors], grad_out, options)
    for a, t in zip(with_gradients(attention, tensors, grad_out, options), truth, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a - t).abs().max() <= 4 * 2.0**-7 * max(1.0, float(t.abs().max()))


@pytest.mark.parametrize(("n_query", "n_key", "options"), [(41, 41, FULL), (37, 61, CACHE)])
@pytest.mark.parametrize("blocks", [(16, 32), (64, 16)])
def test_result_does_not_hang_on_blocks(blocks, n_query, n_key, options) -> None:
    tensors = [random(1, n, 16, seed=s) for s, n in enumerate((n_query, n_key, n_key))]
    grad_out = random(1, n_query, 16, seed=3)
    truth = with_gradients(exact, [t.double() for t in tensors], grad_out, options)
    rows = [tiles.Row(f"attention {way}", "*", 32, 16, "", (*blocks, 4, 1), "") for way in ("forward", "backward")]
    seen: list[launch.Launch] = []
    launch.observers.append(seen.append)
    try:
        with tiles.preferring(rows):
            ours = with_gradients(attention, tensors, grad_out, options)
    finally:
        launch.observers.pop()
    assert [(s.constants["BLOCK"], s.constants["STEP"]) for s in seen if "BLOCK" in s.constants] == [blocks, blocks]
    for a, t in zip(ours, truth, strict=True):
        torch.testing.assert_close(a.double(), t, rtol=1e-5, atol=1e-5)


# ---- more keys than queries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_query", [1, 15, 16, 17, 32, 33, 48])
def test_bottom_right_is_torchs(n_query, monkeypatch) -> None:
    """Keys at every distance from the corners of blocks, read from a longer buffer of NaN, as a cache is."""
    poison(monkeypatch)
    for n_key in sorted({n_query, n_query + 1, max(n_query, 33), 48}):
        cache = torch.full((2, 1, n_key + 3, 8), math.nan, device=DEVICE)
        cache[:, :, :n_key] = random(2, 1, n_key, 8, seed=1)
        q, grad_out, (k, v) = random(1, n_query, 8), random(1, n_query, 8, seed=2), cache[:, :, :n_key]
        visible = causal_lower_right(n_query, n_key)
        ours = with_gradients(attention, (q, k, v), grad_out, {"causal": "bottom_right"})
        tensors = [t.double() for t in (q, k, v)]
        truth = with_gradients(F.scaled_dot_product_attention, tensors, grad_out, {"attn_mask": visible})
        for a, t in zip(ours, truth, strict=True):
            torch.testing.assert_close(a.double(), t, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("n_query", [1, 35])
def test_queries_after_a_cache_are_the_tail_of_the_whole(n_query) -> None:
    """With mask, rotation and norm; the gradients of the whole are of its last rows alone."""
    q, k, v, grad_out = (random(1, 50, 16, seed=s) for s in range(4))
    offset = 50 - n_query
    grad_out[:, :offset] = 0.0
    whole = with_gradients(attention, (q, k, v), grad_out, FULL)
    ours = with_gradients(attention, (q[:, offset:], k, v), grad_out[:, offset:], CACHE)
    assert not whole[1][:, :offset].any()
    for i, (a, b) in enumerate(zip(ours, whole, strict=True)):
        torch.testing.assert_close(a, b[:, offset:] if i < 2 else b, rtol=1e-5, atol=2e-6)


def test_decoding_goes_on_where_the_cache_ends() -> None:
    """Piece by piece, of 1 to 20 positions, as at once."""
    q, k, v = (random(2, 41, 8, seed=s) for s in range(3))
    pieces, first = [], 0
    for length in (20, 1, 1, 16, 3):
        last = first + length
        pieces.append(attention(q[:, first:last], k[:, :last], v[:, :last], **CACHE))
        first = last
    torch.testing.assert_close(torch.cat(pieces, 1), attention(q, k, v, **FULL), rtol=1e-5, atol=1e-6)


def test_the_top_left_rule_is_said_where_keys_are_hidden() -> None:
    q, k, v = (random(1, n, 8, seed=s) for s, n in enumerate((5, 9, 9)))
    for function in (attention, reference.attention):
        with pytest.warns(
            UserWarning, match=r'last 4 of 9 keys are seen by no query.*"bottom_right".*k\[..., :5, :\]'
        ) as said:
            out = function(q, k, v, causal=True)
        assert said[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert torch.equal(out, function(q, k[:, :5], v[:, :5], causal=True))
            function(k, q, q, causal=True)
            function(q, k, v, causal="bottom_right")
            function(q, k, v)


def test_pairs_are_counted() -> None:
    for n_query, n_key, offset in ((1, 1, 0), (3, 7, 4), (7, 3, 0), (5, 9, 0), (4, 9, 7), (1, 9, 20)):
        mask = torch.arange(n_key)[None, :] <= torch.arange(n_query)[:, None] + offset
        assert kernels._pairs(n_query, n_key, True, offset) == mask.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_delta_given_or_computed(dtype) -> None:
    """Given, it takes the place of `out`, which may then hold anything; computed, it is rowsum(dout out) of what is stored."""
    q, k, v, grad_out = (random(1, 2, 33, 24, seed=s, dtype=dtype) for s in range(4))
    out, lse = attention_forward(q, k, v, causal=True)
    exact_delta = (grad_out.double() * out.double()).sum(-1)
    delta = kernels._delta(grad_out, out)
    scale = (grad_out.double() * out.double()).abs().sum(-1)
    assert ((delta - exact_delta).abs() <= 24 * 2.0**-24 * scale).all()  # in any order of 24 products
    computed = attention_backward(grad_out, q, k, v, out, lse, causal=True)
    spoilt = out.transpose(1, 2).clone().fill_(math.nan).transpose(1, 2)
    given = attention_backward(grad_out, q, k, v, spoilt, lse, causal=True, delta=delta)
    for a, b in zip(given, computed, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="delta must be contiguous, got strides"):
        attention_backward(grad_out, q, k, v, out, lse, delta=delta.mT.contiguous().mT)
    with pytest.raises(ValueError, match=r"delta must have shape \[1, 2, 33\], got \[1, 2, 1\]"):
        attention_backward(grad_out, q, k, v, out, lse, delta=delta[..., :1].contiguous())


def test_rows_far_apart() -> None:
    """Row strides of which 32 bits cannot count a block of 32: seven slices of rows in 4.5 GB, of which little is touched."""
    n_time, stride = 33, 70_000_000
    memory = torch.empty(32 * stride + 7 * 8, dtype=torch.float16, device=DEVICE)
    q, k, v, grad_out, *grads = (
        memory.as_strided((1, 1, n_time, 8), (8, 8, stride, 1), offset) for offset in range(0, 56, 8)
    )
    near = [random(1, 1, n_time, 8, seed=s, dtype=torch.float16) for s in range(4)]
    for slice_, x in zip((q, k, v, grad_out), near, strict=True):
        slice_.copy_(x)
    out, lse = attention_forward(q, k, v, **FULL)
    grad_q, grad_k, grad_v = grads
    attention_backward(grad_out, q, k, v, out, lse, **FULL, grad_q=grad_q, grad_k=grad_k, grad_v=grad_v)
    for a, b in zip((out, *grads), with_gradients(attention, near[:3], near[3], FULL), strict=True):
        assert torch.equal(a, b)


def test_offsets_have_64_bits_only_where_needed() -> None:
    seen: list[launch.Launch] = []
    launch.observers.append(seen.append)
    try:
        with launch.compiled_for("sm_90"):
            for stride in (2**23, 2**24):  # 128 rows of a block: 2^30 and 2^31
                x = torch.empty(128 * stride, device="meta", dtype=torch.bfloat16)
                q = x.as_strided((1, 1, 128, 64), (8, 8, stride, 1))
                out, lse = attention_forward(q, q, q)
                attention_backward(out, q, q, q, out, lse, grad_q=q, grad_k=q, grad_v=q)
    finally:
        launch.observers.pop()
    assert [s.constants["FAR"] for s in seen] == [False] * 3 + [True, False, True]  # out and its gradient are near


@pytest.mark.parametrize("options", [PLAIN | {"causal": True}, FULL])
def test_packed_slices_in_place(options) -> None:
    """Slices of a packed qkv give what separate tensors give, and their gradients go to slices: nothing else is touched."""
    n_batch, n_time, n_head, head_dim = 2, 19, 2, 24
    guarded = torch.full((n_batch, n_time + 2, 3, n_head, head_dim), math.nan, device=DEVICE)
    guarded[:, 1:-1] = random(n_batch, n_time, 3, n_head, head_dim)
    q, k, v = guarded[:, 1:-1].permute(2, 0, 3, 1, 4)
    out, lse = attention_forward(q, k, v, **options)
    packed = torch.full_like(guarded, math.nan)
    grads = packed[:, 1:-1].permute(2, 0, 3, 1, 4)
    grad_out = random(*out.shape, seed=1)
    attention_backward(grad_out, q, k, v, out, lse, **options, grad_q=grads[0], grad_k=grads[1], grad_v=grads[2])
    assert packed[:, 0].isnan().all() and packed[:, -1].isnan().all()
    separate = [t.contiguous() for t in (q, k, v)]
    ours = with_gradients(attention, separate, grad_out, options)
    for a, b in zip((out, *grads), ours, strict=True):
        assert torch.equal(a, b)
    rows = out.transpose(1, 2).flatten(2)
    assert rows.is_contiguous() and rows.data_ptr() == out.data_ptr()
    score = torch.logsumexp(
        (q.double() @ k.double().mT * head_dim**-0.5).masked_fill(
            torch.ones(n_time, n_time, dtype=torch.bool, device=DEVICE).triu(1), -math.inf
        ),
        -1,
    )
    if options["rope_base"] is None:
        torch.testing.assert_close(lse.double() * math.log(2), score, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n_member", [1, 2, 5])
def test_members_do_not_meet(n_member) -> None:
    """Members' bits hang neither on their neighbours, nor on which heads run together, nor on the run."""
    shape = (n_member, 1, 2 if n_member == 2 else 1, 10, 16)  # [M, B, n_head, T, head_dim]
    tensors, grad_out = [random(*shape, seed=s) for s in range(3)], random(*shape, seed=3)
    first = with_gradients(attention, tensors, grad_out, FULL)
    alone = with_gradients(attention, [t[-1:] for t in tensors], grad_out[-1:], FULL)
    for a, b in zip(first, alone, strict=True):
        assert a.shape == shape and torch.equal(a[-1:], b)
    if n_member == 2:
        spoilt = [t.clone() for t in tensors]
        for t in spoilt:
            t[0] = math.nan
        for a, b in zip(first, with_gradients(attention, spoilt, grad_out, FULL), strict=True):
            assert torch.equal(a[1], b[1]) and b[0].isnan().any()


def test_order_of_heads_covers_each_once(monkeypatch) -> None:
    """Two heads at a time of three, with a group left over."""
    tensors, grad_out = [random(3, 20, 8, seed=s) for s in range(3)], random(3, 20, 8, seed=3)
    first = with_gradients(attention, tensors, grad_out, PLAIN)
    monkeypatch.setattr(kernels, "_heads_at_a_time", lambda *_: 2)
    for a, b in zip(first, with_gradients(attention, tensors, grad_out, PLAIN), strict=True):
        assert torch.equal(a, b)


def test_extremes() -> None:
    """Equal keys share alike; scores of 1e30 choose one key; tiny inputs are averaged; gradients stay finite."""
    v = random(1, 17, 16)
    ones = torch.ones(1, 17, 16, device=DEVICE)
    mean = v.double().cumsum(1) / torch.arange(1, 18, device=DEVICE)[:, None]
    for size in (0.0, 1e-30, 1e10):
        out, *grads = with_gradients(attention, [size * ones, size * ones, v], ones, PLAIN | {"causal": True})
        torch.testing.assert_close(out.double(), mean, rtol=1e-5, atol=1e-6)
        assert all(g.isfinite().all() for g in grads)
    sign = torch.where(torch.arange(17) == 10, 1.0, -1.0).to(DEVICE)[:, None]
    for size in (-1e15, 1e15):  # all scores far below zero, or all but one
        out, *grads = with_gradients(attention, [1e15 * ones, size * sign * ones, v], ones, PLAIN)
        chosen = v[:, 10:11] if size > 0 else (v.sum(1, keepdim=True) - v[:, 10:11]) / 16
        torch.testing.assert_close(out, chosen.expand_as(out), rtol=1e-5, atol=1e-5)
        assert all(g.isfinite().all() for g in grads)


@triton.jit
def sines(angle, sine, cosine, N: tl.constexpr):
    o = tl.arange(0, N)
    a, b = kernels._sine_and_cosine(tl.load(angle + o))
    tl.store(sine + o, a)
    tl.store(cosine + o, b)


def test_sines() -> None:
    """Against float64 at the very float32 angles, whose own rounding is 6e-8 of them."""
    far = 2.0**17 * torch.rand(8192, generator=torch.Generator().manual_seed(0))
    angle = torch.cat((torch.linspace(0, 7, 4096), torch.arange(4096).float(), far)).to(DEVICE)
    sine, cosine = torch.full_like(angle, math.nan), torch.full_like(angle, math.nan)
    sines[(1,)](angle, sine, cosine, N=len(angle))
    for ours, exact_value in ((sine, angle.double().sin()), (cosine, angle.double().cos())):
        assert ((ours - exact_value).abs() <= 3e-7 + 3e-11 * angle).all()


def test_compiles_whole() -> None:
    tensors, grad_out = [random(1, 9, 8, seed=s) for s in range(3)], random(1, 9, 8, seed=3)
    compiled = torch.compile(lambda *a, **k: 2.0 * attention(*a, **k), backend="aot_eager", fullgraph=True)
    eager = with_gradients(attention, tensors, 2.0 * grad_out, FULL)
    ours = with_gradients(compiled, tensors, grad_out, FULL)
    assert torch.equal(ours[0], 2.0 * eager[0])
    for a, b in zip(ours[1:], eager[1:], strict=True):
        assert torch.equal(a, b)


def test_compiles_whole_after_a_cache() -> None:
    """One graph for caches of any length; a warning, which none can hold, does not break it."""
    function = lambda *a, causal="bottom_right": attention(*a, causal=causal, rope_base=100.0)  # noqa: E731
    counter = CompileCounter()
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for n_query, n_key in ((3, 7), (2, 12), (5, 9)):
        q, k, v = (random(1, n, 8, seed=s) for s, n in enumerate((n_query, n_key, n_key)))
        assert torch.equal(compiled(q, k, v), function(q, k, v))
    assert counter.frame_count == 1
    assert torch.equal(compiled(q, k, v, causal=True), attention(q, k[:, :5], v[:, :5], causal=True, rope_base=100.0))


def test_operator_is_sound() -> None:
    tensors = [random(1, 1, 9, 8, seed=s).requires_grad_() for s in range(3)]
    torch.library.opcheck(kernels.attention_and_lse, (*tensors, True, 3, None, 100.0, True))


def test_gradient_of_an_expanded_scalar() -> None:
    """out.sum() hands a gradient without strides."""
    q, k, v = (random(1, 9, 8, seed=s).requires_grad_() for s in range(3))
    attention(q, k, v).sum().backward()
    torch.testing.assert_close(v.grad.sum(), torch.tensor(72.0, device=DEVICE))  # every query's weights sum to one


def test_announces_work_without_storage() -> None:
    """Meta tensors: a causal triangle of T (T + 1) / 2 pairs costs 4 head_dim forward, 14 backward; D no products."""
    seen: list[launch.Launch] = []
    launch.observers.append(seen.append)
    q, k, v = (torch.empty(3, 2, 1000, 64, device="meta", dtype=torch.bfloat16) for _ in range(3))
    try:
        out, lse = attention_forward(q, k, v, causal=True)
        attention_backward(out, q, k, v, out, lse, causal=True)
        attention_backward(out, q, k, v, out, lse, causal=True, delta=lse)
    finally:
        launch.observers.pop()
    assert [s.flops for s in seen] == [n * 64 * 6 * 500_500 for n in (4, 0, 14, 14)]
    rows, statistics = q.numel() * 2, 6 * 1000 * 4
    assert [s.read_bytes for s in seen] == [3 * rows, 2 * rows, *[4 * rows + 2 * statistics] * 2]
    assert [s.write_bytes for s in seen] == [rows + statistics, statistics, 3 * rows, 3 * rows]


def test_announces_work_after_a_cache() -> None:
    """Ten queries see 991, 992, ... 1000 keys; every key is read."""
    seen: list[launch.Launch] = []
    launch.observers.append(seen.append)
    q, k = (torch.empty(3, 2, n, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for n in (10, 1000))
    try:
        attention(q, k, k, causal="bottom_right").sum().backward()
    finally:
        launch.observers.pop()
    assert [s.flops for s in seen] == [n * 64 * 6 * 9_955 for n in (4, 0, 14)]
    assert seen[0].read_bytes == 2 * (q.numel() + 2 * k.numel())


GOOD = torch.zeros(1, 1, 4, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((GOOD.double(),) * 3, {}, "q must be float32, float16 or bfloat16, got float64"),
        ((GOOD, GOOD.half(), GOOD), {}, "k must be float32, got float16; convert"),
        ((GOOD, GOOD, GOOD[..., :3, :]), {}, r"v must have shape \[1, 1, 4, 8\], got \[1, 1, 3, 8\]"),
        ((GOOD, GOOD.expand(2, 1, 4, 8), GOOD), {}, r"k must have shape \[..., n_head, T, head_dim\] like q"),
        ((GOOD[0, 0],) * 3, {}, r"q must have at least 3 dimensions \[..., n_head, T, head_dim\], got \[4, 8\]"),
        ((GOOD.expand(1, 4, 4, 8), GOOD, GOOD), {}, r"k has n_head 1, q 4; .* k.repeat_interleave\(n, dim=-3\)"),
        ((GOOD, None, GOOD), {}, "k must be a tensor, got NoneType"),
        ((GOOD, GOOD, GOOD.numpy()), {}, "v must be a tensor, got ndarray"),
        ((GOOD.to_sparse(), GOOD, GOOD), {}, "q must be dense"),
        ((GOOD,) * 3, {"scale": "x"}, "scale must be a number, got 'x'"),
        (
            (GOOD,) * 3,
            {"causal": torch.ones(4, 4) > 0},
            r'causal must be True, False or "bottom_right", got Tensor; a mask',
        ),
        ((GOOD,) * 3, {"causal": "lower_right"}, r'or "bottom_right", got \'lower_right\'; a mask'),
        ((GOOD,) * 3, {"causal": 3}, r'or "bottom_right", got 3; a mask'),
        ((GOOD,) * 3, {"causal": None}, r'or "bottom_right", got None; a mask'),
        ((GOOD,) * 3, {"qk_norm": "yes"}, "qk_norm must be True or False, got str"),
        (
            (GOOD, GOOD[:, :, :3], GOOD[:, :, :3]),
            {"causal": "bottom_right"},
            r"T_q 4 and T_k 3: the first 1 queries would see no key. Hand over q\[..., 1:, :\], or take causal=True",
        ),
        ((GOOD,) * 3, {"rope_base": True}, "rope_base must be a number, got True"),
        ((GOOD[..., :4],) * 3, {}, "q must have a head_dim of 8 to 256, got 4"),
        ((GOOD, GOOD[:, :, :0], GOOD[:, :, :0]), {}, "at least one position, got lengths 4 and 0"),
        ((GOOD,) * 3, {"scale": -1.0}, "scale must be positive and finite, got -1.0; negate q"),
        ((GOOD,) * 3, {"scale": math.nan}, "scale must be positive and finite, got nan"),
        ((GOOD,) * 3, {"rope_base": 0.5}, "rope_base must be at least 1 and finite, got 0.5"),
    ],
)
def test_bad_input(arguments, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        attention(*(a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments), **options)


def test_bad_layout() -> None:
    q = GOOD.to(DEVICE)
    with pytest.raises(
        ValueError, match="offset must be at least 0, got -1; a query before the first key would see none"
    ):
        attention_forward(q, q, q, causal=True, offset=-1)
    with pytest.raises(ValueError, match="k must be contiguous along its last axis"):
        attention_forward(q, q.mT.contiguous().mT, q)
    two_heads = q.expand(1, 2, 4, 8).contiguous()
    with pytest.raises(ValueError, match="laid out as attention_forward gave them"):
        attention_backward(two_heads, two_heads, two_heads, two_heads, two_heads, torch.zeros(1, 2, 4, device=DEVICE))
    assert torch.equal(attention(q, q.mT.contiguous().mT, q), q)  # the public function makes rows of it
