"""The meter against costs worked out by hand, and every operation's declared bytes against those it really touches."""

import json
import os

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch.utils.flop_counter import FlopCounterMode

from pyscaling.kernels import aot, meter
from pyscaling.kernels.launch import INTERPRETED, cdiv, launch, operator, target_of
from pyscaling.kernels.meter import Meter, observed_bytes, roofline

interpreted = pytest.mark.skipif(not INTERPRETED, reason="bytes are observed in Triton's interpreter")
devices = pytest.mark.parametrize("device", ["meta", "cpu"])  # a CPU's operations stand for those of CUDA
launching = pytest.mark.parametrize("device", ["meta", os.environ.get("PYSCALING_TEST_DEVICE", "cpu")])


@triton.jit
def scale_kernel(x, table, out, n, BLOCK: tl.constexpr):
    """out[i] = x[i] table[i % 4]"""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < n) * tl.load(table + i % 4, mask=i < n), mask=i < n)


def scale(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    n = x.numel()
    launch(scale_kernel, (cdiv(n, 16),), x, table, out, n, reads=[x, table[:4]], writes=[out], flops=2 * n, BLOCK=16)
    return out


@operator()
def toy_scale(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    return scale(x, table) + torch.zeros_like(x)  # two hidden launches of torch's


def cost(function) -> tuple[int, int, int, int]:
    with Meter() as metered:
        function()
    return metered.launches, metered.read_bytes, metered.write_bytes, metered.flops


def zeros(*shape: int, device: str, dtype: torch.dtype = torch.float32, **options) -> torch.Tensor:
    return torch.zeros(*shape, device=device, dtype=dtype, **options)


# ---- our kernels ----------------------------------------------------------------------------------------------------


@launching
def test_our_launches_count_as_declared(device: str) -> None:
    x, table = zeros(37, device=device), zeros(8, device=device)
    assert cost(lambda: scale(x, table)) == (
        1,
        4 * (37 + 4),
        4 * 37,
        2 * 37,
    )  # the interpreter's copies are not counted


@launching
def test_within_an_operator_torch_counts_once(device: str) -> None:
    x, table = zeros(37, device=device), zeros(8, device=device)
    with Meter() as metered:
        out = toy_scale(x, table)
    assert out.shape == x.shape
    launches = {name: row["launches"] for name, row in metered.to_dict().items() if row["launches"]}
    assert launches == {"test_meter.scale_kernel": 1, "aten.zeros_like": 1, "aten.add": 1}


def test_meters_nest_and_go_on() -> None:
    x, table = zeros(16, device="meta"), zeros(4, device="meta")
    with Meter() as outer:
        scale(x, table)
        with Meter() as inner:
            x + 1
        with inner:
            scale(x, table)
    assert (inner.launches, outer.launches) == (2, 3)
    scale(x, table)
    assert outer.launches == 3


def test_launches_are_configured_for_the_meters_target() -> None:
    seen = []
    with Meter(target="gfx942"):
        seen.append(target_of(torch.device("meta")))
    assert [*seen, target_of(torch.device("meta"))] == ["gfx942", "interpreter"]


# ---- torch's operations ---------------------------------------------------------------------------------------------

F32, F16 = torch.float32, torch.float16
# name: (function of the device, launches, bytes read, bytes written, FLOPs)
RULES = {
    "views": (lambda d: zeros(4, 6, device=d).t()[1:].unsqueeze(0).expand(3, -1, -1).detach(), 1, 0, 96, 0),
    "allocation": (lambda d: torch.empty(5, device=d).new_empty(3), 0, 0, 0, 0),
    "elementwise": (lambda d: zeros(8, device=d) * zeros(8, device=d), 3, 64, 96, 0),
    "same input twice": (lambda d: (lambda x: x * x)(zeros(8, device=d)), 2, 32, 64, 0),
    "same elements through two views": (lambda d: (lambda x: x + x.t())(zeros(4, 4, device=d)), 2, 64, 128, 0),
    "expanded": (lambda d: zeros(1, 4, device=d).expand(10, 4) + 1, 2, 16, 16 + 160, 0),
    "strided": (lambda d: zeros(8, device=d)[::2] + 1, 2, 16, 32 + 16, 0),
    "overlapping windows": (lambda d: zeros(10, device=d).unfold(0, 4, 1) + 1, 2, 40, 40 + 7 * 4 * 4, 0),
    "in place": (lambda d: zeros(8, device=d).add_(zeros(8, device=d)), 3, 64, 96, 0),
    "copy_": (lambda d: zeros(8, device=d).copy_(zeros(8, device=d)), 3, 32, 96, 0),
    "fill_": (lambda d: zeros(8, device=d).fill_(1.0), 2, 0, 64, 0),
    "out=": (lambda d: torch.mul(zeros(8, device=d), 2.0, out=torch.empty(8, device=d)), 2, 32, 64, 0),
    "zeros_like": (lambda d: torch.zeros_like(zeros(8, device=d)), 2, 0, 64, 0),
    "contiguous": (lambda d: zeros(4, 6, device=d).t().contiguous(), 2, 96, 192, 0),
    "reshape of a transpose": (lambda d: zeros(4, 6, device=d).t().reshape(-1), 2, 96, 192, 0),
    "cast": (lambda d: zeros(8, device=d).to(F16), 2, 32, 32 + 16, 0),
    "cat": (lambda d: torch.cat((zeros(8, device=d), zeros(4, device=d))), 3, 48, 48 + 48, 0),
    "nothing": (lambda d: zeros(0, 4, device=d) + 1, 0, 0, 0, 0),
    "mm": (lambda d: zeros(3, 4, device=d) @ zeros(4, 5, device=d), 3, 4 * (12 + 20), 4 * (12 + 20 + 15), 2 * 60),
    "mv": (lambda d: zeros(3, 4, device=d) @ zeros(4, device=d), 3, 4 * 16, 4 * (16 + 3), 2 * 12),
    "linear": (
        lambda d: F.linear(zeros(2, 3, 4, device=d), zeros(5, 4, device=d), zeros(5, device=d)),
        *(4, 4 * (24 + 20 + 5), 4 * (24 + 20 + 5 + 30), 2 * 6 * 4 * 5),
    ),
    "baddbmm": (
        lambda d: torch.baddbmm(zeros(2, 1, 5, device=d), zeros(2, 3, 4, device=d), zeros(2, 4, 5, device=d)),
        *(4, 4 * (10 + 24 + 40), 4 * (10 + 24 + 40 + 30), 2 * 2 * 60),
    ),
    "layer_norm": (lambda d: F.layer_norm(zeros(6, 8, device=d), (8,)), 2, 4 * 48, 4 * (48 + 48 + 6 + 6), 0),
    "gelu": (lambda d: F.gelu(zeros(8, device=d), approximate="tanh"), 2, 32, 64, 0),
    "embedding reads what it returns": (
        lambda d: F.embedding(zeros(3, device=d, dtype=torch.int64), zeros(100, 4, device=d)),
        *(3, 24 + 48, 24 + 1600 + 48, 0),
    ),
    "embedding of many reads the table once": (
        lambda d: F.embedding(zeros(30, device=d, dtype=torch.int64), zeros(5, 4, device=d)),
        *(3, 240 + 80, 240 + 80 + 480, 0),
    ),
    "cross_entropy is log_softmax and one number a row": (
        lambda d: F.cross_entropy(zeros(6, 10, device=d), zeros(6, device=d, dtype=torch.int64)),
        *(4, 240 + (48 + 24), 240 + 48 + 240 + 4 + 4, 0),
    ),
    "index_add_ touches what it is given": (
        lambda d: zeros(100, 4, device=d).index_add_(0, zeros(2, device=d, dtype=torch.int64), zeros(2, 4, device=d)),
        *(4, 16 + 32 + 32, 1600 + 16 + 32 + 32, 0),
    ),
    "scatter_ reads no destination": (
        lambda d: zeros(4, 10, device=d).scatter_(1, zeros(4, 1, device=d, dtype=torch.int64), 1.0),
        *(3, 32, 160 + 32 + 16, 0),
    ),
    "_foreach_ is one launch": (lambda d: torch._foreach_add([zeros(8, device=d), zeros(4, device=d)], 1.0), 3, 48, 96, 0),
    "dropout": (lambda d: F.dropout(zeros(8, device=d), 0.5), 2, 32, 32 + 32 + 8, 0),
    "inference": (lambda d: torch.inference_mode()(lambda: zeros(3, 4, device=d) @ zeros(4, 5, device=d))(), 3, 128, 188, 120),
}  # fmt: skip


@devices
@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: str, device: str) -> None:
    function, *expected = RULES[rule]
    assert cost(lambda: function(device)) == tuple(expected)


@devices
def test_fused_adamw_is_one_launch_that_leaves_the_gradients(device: str) -> None:
    weights, grads, first, second = ([zeros(10, device=device), zeros(6, device=device)] for _ in range(4))
    steps = [torch.zeros((), device=device) for _ in range(2)]
    options = dict(lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.1, eps=1e-8, amsgrad=False, maximize=False)  # noqa: C408
    launches, read, written, _ = cost(lambda: torch._fused_adamw_(weights, grads, first, second, [], steps, **options))
    assert (launches, read, written) == (1, 4 * 4 * 16 + 8, 3 * 4 * 16)


def test_what_the_host_does_beside_a_device_is_free() -> None:
    def step() -> None:
        torch.zeros(3) + 1
        zeros(3, device="meta") + 1

    assert cost(step) == (2, 12, 24, 0)
    assert cost(lambda: torch.zeros(3) + 1) == (2, 12, 24, 0)


# ---- what CUDA fuses ------------------------------------------------------------------------------------------------


@devices
@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (2, 2, 3, 8, 16), (3, 8, 16)])
def test_attention_is_one_launch_each_way(device: str, shape: tuple[int, ...]) -> None:
    q, k, v = (zeros(*shape, device=device, dtype=F16, requires_grad=True) for _ in range(3))
    with Meter() as metered:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out.backward(torch.empty_like(out))
    table = metered.to_dict()
    n, rows = 2 * q.numel(), 4 * q.numel() // 16  # bytes of a tensor, bytes of the log-sum-exps
    forward, backward = (table[f"aten._scaled_dot_product_flash_attention{way}"] for way in ("", "_backward"))
    assert metered.launches == 2
    assert (forward["read_bytes"], forward["write_bytes"]) == (3 * n, n + rows)
    assert (backward["read_bytes"], backward["write_bytes"]) == (5 * n + rows, 3 * n)
    pairs = q.numel() // 16 // 8 * (8 * 9 // 2)
    assert (forward["flops"], backward["flops"]) == (2 * 2 * pairs * 16, 5 * 2 * pairs * 16)


def test_attention_counts_as_the_operation_that_cuda_dispatches() -> None:
    q, k, v = (zeros(2, 3, 80, 16, device="meta", dtype=F16, requires_grad=True) for _ in range(3))

    def through(attention) -> tuple[int, int, int, int]:
        return cost(lambda: torch.autograd.grad(attention(), (q, k, v), torch.empty_like(q)))

    ours = through(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    cuda = through(lambda: torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, True)[0])
    assert (ours[0], ours[3]) == (cuda[0], cuda[3])
    assert cuda[1] - ours[1] + cuda[2] - ours[2] < 100  # a seed and an offset of random numbers


@devices
@pytest.mark.parametrize("packed", [False, True])
def test_attention_lies_in_memory_as_on_cuda(device: str, packed: bool) -> None:
    """Else a reshape that follows would be charged a copy that CUDA does not make. Truth: torch's rule for meta tensors."""
    base = zeros(2, 8, 3, 3, 16, device=device, dtype=F16, requires_grad=True)
    q, k, v = (zeros(2, 3, 8, 16, device=device, dtype=F16) for _ in range(3))
    if packed:
        q, k, v = base.detach().permute(2, 0, 3, 1, 4)
    q, k, v = (t.requires_grad_() for t in (q, k, v))
    on_meta = (
        [t.detach().to("meta").as_strided(t.shape, t.stride()).requires_grad_() for t in (q, k, v)]
        if packed
        else [t.detach().to("meta").requires_grad_() for t in (q, k, v)]
    )
    truth = torch.ops.aten._scaled_dot_product_flash_attention(*on_meta)[0]
    with Meter():
        out = F.scaled_dot_product_attention(q, k, v)
        grads = torch.autograd.grad(out, (q, k, v), torch.empty_like(out))
    assert out.stride() == truth.stride()
    for grad, of_truth in zip(grads, torch.autograd.grad(truth, on_meta, torch.empty_like(truth)), strict=True):
        assert grad.stride() == of_truth.stride()


@devices
def test_rms_norm_is_one_launch_each_way(device: str) -> None:
    x, gain = zeros(6, 8, device=device, requires_grad=True), zeros(8, device=device, requires_grad=True)
    with Meter() as metered:
        out = torch.nn.functional.rms_norm(x, (8,), gain)
        out.backward(torch.empty_like(out))
    assert metered.launches == 2
    assert metered.read_bytes == 4 * (48 + 8) + 4 * (48 + 48 + 8 + 6)
    assert metered.write_bytes == 4 * (48 + 6) + 4 * (48 + 8)


def test_metering_changes_no_number() -> None:
    def step() -> list[torch.Tensor]:
        make = torch.Generator().manual_seed(0)
        x, gain = torch.randn(2, 3, 8, 16, generator=make, requires_grad=True), torch.ones(16, requires_grad=True)
        mask = torch.rand(8, 8, generator=make) > 0.2
        mask[:, 0] = True
        y = F.rms_norm(x, (16,), gain)
        out = F.scaled_dot_product_attention(y, x, 2 * y, mask, scale=0.3)
        return [out, *torch.autograd.grad((out * out).sum(), (x, gain))]

    with Meter():
        metered = step()
    for ours, truth in zip(metered, step(), strict=True):
        torch.testing.assert_close(ours, truth)


@devices
def test_flops_are_torchs_own(device: str) -> None:
    """Against torch.utils.flop_counter, forward and backward; attention with every pair, of which it agrees."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.GELU(), torch.nn.Linear(12, 8)).to(device)
    convolve = torch.nn.Conv1d(3, 4, 3).to(device)
    x, image = zeros(2, 3, 4, 8, device=device, requires_grad=True), zeros(2, 3, 10, device=device)

    def step() -> None:
        y = model(x)
        y = y + torch.bmm(y.flatten(0, 1), y.flatten(0, 1).mT).sum()
        (F.scaled_dot_product_attention(y, y, y).sum() + convolve(image).sum()).backward()

    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        step()
    # its count of unfused attention has two products forward and four backward; flash attention forms the scores again
    again = 2 * 2 * 3 * 4 * 4 * 8
    assert cost(step)[3] == counter.get_total_flops() + again


# ---- bytes that kernels really touch --------------------------------------------------------------------------------


@interpreted
def test_observed_bytes_find_a_wrong_declaration() -> None:
    x, table, out = torch.ones(37), torch.ones(8), torch.empty(64)

    def run(reads: list[torch.Tensor], writes: list[torch.Tensor], n: int = 37) -> meter.Observed:
        (seen,) = observed_bytes(
            lambda: launch(scale_kernel, (3,), x, table, out, n, reads=reads, writes=writes, BLOCK=16)
        )
        return seen

    right = run([x, table[:4]], [out[:37]])
    assert (
        (right.read_bytes, right.write_bytes) == (right.declared_read_bytes, right.declared_write_bytes) == (164, 148)
    )
    wrong = run([x, table], [out])
    assert (wrong.read_bytes, wrong.declared_read_bytes) == (164, 180)
    assert (wrong.write_bytes, wrong.declared_write_bytes) == (148, 256)


TINY = aot.Shape(n_member=2, n_sequence=2, context=19, d_model=24, n_head=3, d_ff=20, vocab=37)
# Kernels that declare more than the distinct bytes they read, by how much in bytes, and why
DECLARED_MORE = {
    # a row of the table for each token; equal tokens share one
    "embedding.embedding_forward_kernel": lambda more: 0 < more < 4 * 2 * 2 * 19 * 24 and more % (4 * 24) == 0,
    # the tokens twice, for two passes
    "embedding.embedding_places_kernel": lambda more: more == 8 * 2 * 2 * 19,
}


@interpreted
@pytest.mark.parametrize("name", aot.OPERATIONS)
def test_operations_touch_the_bytes_that_they_declare(name: str) -> None:
    """Odd sizes, so that blocks overhang: a mask that is missing, or a tensor left out of reads, shows."""
    torch.manual_seed(0)
    seen = observed_bytes(lambda: aot.OPERATIONS[name](TINY, torch.float32, "cpu"))
    assert seen
    for launched in seen:
        more = launched.declared_read_bytes - launched.read_bytes
        assert DECLARED_MORE.get(launched.name, lambda more: more == 0)(more), (
            launched.name,
            launched.read_bytes,
            more,
        )
        assert (launched.name, launched.write_bytes) == (launched.name, launched.declared_write_bytes)


@pytest.mark.skipif(INTERPRETED, reason="needs a process without the interpreter")
def test_observed_bytes_need_the_interpreter() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        observed_bytes(lambda: None)


# ---- what is printed ------------------------------------------------------------------------------------------------


def metered_step() -> Meter:
    x, weight = zeros(64, 32, device="meta", dtype=F16), zeros(32, 16, device="meta", dtype=F16)
    with Meter() as metered:
        for _ in range(3):
            x @ weight
        x[:32] @ weight
        (x.float() @ weight.float()).view(-1)
    return metered


def test_table() -> None:
    metered = metered_step()
    table = metered.to_dict()
    assert (
        table["aten.mm"]["launches"] == 5
        and table["aten._unsafe_view" if "aten._unsafe_view" in table else "aten.view"]["launches"] == 0
    )
    assert sum(row["bytes"] for row in table.values()) == metered.bytes == metered.read_bytes + metered.write_bytes
    frame = metered.to_frame()
    assert frame.loc["aten.mm", "flops"] == metered.flops == 2 * 32 * 16 * (4 * 64 + 32)
    assert list(frame.columns) == ["calls", "launches", "read_bytes", "write_bytes", "bytes", "flops"]
    lines = str(metered).splitlines()
    assert lines[0].split()[0] == "operation" and lines[-1].split()[:2] == ["total", "7"]


def test_roofline_adds_launches_and_takes_each_calls_own_bound() -> None:
    projected = roofline(metered_step(), "A100", cuda_graph=True)
    half = [2 * (64 * 32 + 32 * 16 + 64 * 16), 2 * (32 * 32 + 32 * 16 + 32 * 16)]
    seconds = 3 * max(half[0] / 2.039e12, 2 * 64 * 32 * 16 / 312e12) + max(
        half[1] / 2.039e12, 2 * 32 * 32 * 16 / 312e12
    )
    seconds += max(4 * (64 * 32 + 32 * 16 + 64 * 16) / 2.039e12, 2 * 64 * 32 * 16 / 19.5e12)  # float32: no tensor cores
    assert projected.operations["aten.mm"]["seconds"] == pytest.approx(seconds + 5 * meter.GRAPH_LAUNCH_SECONDS)
    apart = roofline(metered_step(), "A100")
    assert apart.seconds - projected.seconds == pytest.approx(7 * (meter.LAUNCH_SECONDS - meter.GRAPH_LAUNCH_SECONDS))
    assert projected.operations["aten.mm"]["bound"] == "launch"


def test_roofline_of_ours_goes_by_the_products_dtype() -> None:
    """Whichever argument comes first: a float32 scale before float16 operands does not make it a float32 product."""
    x, table = zeros(1024, device="meta"), zeros(8, device="meta", dtype=F16)
    with Meter() as metered:
        n = 10**12
        launch(scale_kernel, (1,), x, table, x, 1024, reads=[x], writes=[x], flops=n, BLOCK=16)
    assert roofline(metered, "H100").seconds == pytest.approx(n / 989.4e12 + meter.LAUNCH_SECONDS)


@pytest.mark.parametrize("device", meter.DEVICES)
def test_projections_say_so(device: str) -> None:
    projected = roofline(metered_step(), device)
    assert str(projected).startswith(f"Projection, not a measurement: {device} (")
    assert json.loads(json.dumps(projected.to_dict()))["kind"] == "projection"
    assert "projected_seconds" in projected.to_frame().columns


def test_roofline_of_an_unknown_device() -> None:
    with pytest.raises(ValueError, match="device='V100' is unknown; known are A100, H100, B200, MI300X"):
        roofline(Meter(), "V100")
