"""Counts against published models, a count over real parameters, and torch's FLOP counter."""

import math

import pytest

from pyscaling.accounting import (
    FLOP_CONVENTIONS,
    PARAMETER_CONVENTIONS,
    PF_DAY,
    Shape,
    convert_flops,
    convert_parameters,
    flops_per_token,
    parameter_count,
    parse_compute,
    shape_near,
    training_flops,
)

# (shape, convention, published count)
PUBLISHED = {
    "gpt2": (Shape(768, 12, 12), "total", 124_439_808),
    "gpt2-medium": (Shape(1024, 24, 16), "total", 354_823_168),
    "gpt2-large": (Shape(1280, 36, 20), "total", 774_030_080),
    "gpt2-xl": (Shape(1600, 48, 25), "total", 1_557_611_200),
    "pythia-70m": (Shape(512, 6, 8, vocab_size=50304, position="rope", tied=False), "total", 70_426_624),
    "pythia-70m, table 1": (Shape(512, 6, 8, vocab_size=50304, position="rope"), "exact_non_embedding", 18_915_328),
    "pythia-12b, table 1": (
        Shape(5120, 36, 40, vocab_size=50688, position="rope"),
        "exact_non_embedding",
        11_327_027_200,
    ),
    "llama-7b": (
        Shape(4096, 32, 32, 11008, 2048, 32000, "swiglu", "rmsnorm", "rope", tied=False, bias=False),
        "total",
        6_738_415_616,
    ),
    "llama-65b": (
        Shape(8192, 80, 64, 22016, 2048, 32000, "swiglu", "rmsnorm", "rope", tied=False, bias=False),
        "total",
        65_285_660_672,
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_counts(name: str) -> None:
    shape, convention, published = PUBLISHED[name]
    assert parameter_count(shape, convention) == published


def test_published_rounded_counts() -> None:
    """GPT-3 175B (Brown et al. 2020, table 2.1) and Chinchilla (Hoffmann et al. 2022, table 4)."""
    gpt3 = Shape(12288, 96, 96, context=2048)
    assert parameter_count(gpt3, "total") == pytest.approx(175e9, rel=0.005)
    # Chinchilla's relative positions add one d_model^2 matrix per layer, which Shape does not know of.
    chinchilla = Shape(8192, 80, 64, vocab_size=32000, position="rope", norm="rmsnorm", bias=False)
    assert parameter_count(chinchilla, "total") + 80 * 8192**2 == pytest.approx(70e9, rel=0.005)


def test_kaplan_formula_is_twelve_layers_times_width_squared() -> None:
    for d_model, n_layer in ((16, 2), (64, 4), (1600, 48)):
        assert parameter_count(Shape(d_model, n_layer, 4)) == 12 * n_layer * d_model**2


def test_conventions_differ_by_what_they_say() -> None:
    shape = Shape(768, 12, 12, tied=False)
    kaplan, blocks, head, embeddings, total = (
        parameter_count(shape, name)
        for name in ("non_embedding", "exact_non_embedding", "with_head", "with_embeddings", "total")
    )
    vocabulary = 50257 * 768
    assert blocks - kaplan == 12 * (9 * 768 + 4 * 768) + 2 * 768
    assert head - kaplan == vocabulary
    assert embeddings - blocks == vocabulary + 1024 * 768
    assert total - embeddings == vocabulary
    assert len(PARAMETER_CONVENTIONS) == 5


def test_conversions_are_inverse_and_keep_unknown_parts() -> None:
    gpt2 = Shape(768, 12, 12)
    assert convert_parameters(124_439_808, gpt2, "total", "non_embedding") == 12 * 12 * 768**2
    assert convert_parameters(124_439_808 + 1000, gpt2, "total", "non_embedding") == 12 * 12 * 768**2 + 1000
    back = convert_parameters(convert_parameters(9e7, gpt2, "non_embedding", "total"), gpt2, "total", "non_embedding")
    assert back == 9e7
    with pytest.raises(ValueError, match="N=1000 cannot be a count under 'total'"):
        convert_parameters(1000, gpt2, "total", "non_embedding")
    C = 6 * 12 * 12 * 768**2 * 1e9
    assert convert_flops(C, 1e9, gpt2, "6ND", "full") == pytest.approx(1e9 * flops_per_token(gpt2, "full"))


def test_flops_of_table_one() -> None:
    """Kaplan et al. 2020, table 1, and GPT-3's total training compute, 3.14e23 (Brown et al. 2020, table D.1)."""
    gpt2 = Shape(768, 12, 12)
    N = 12 * 12 * 768**2
    assert flops_per_token(gpt2, "6ND") == 6 * N
    assert flops_per_token(gpt2, "causal_attention", passes="forward") == 2 * N + 2 * 12 * 1024 * 768
    assert flops_per_token(gpt2, "head", passes="forward") == 2 * N + 2 * 768 * 50257
    assert flops_per_token(gpt2, "full", passes="backward") == 2 * (2 * N + 4 * 12 * 1024 * 768 + 2 * 768 * 50257)
    gpt3 = Shape(12288, 96, 96, context=2048)
    assert training_flops(gpt3.N, 300e9) == pytest.approx(3.14e23, rel=0.01)


def test_flop_counter_agrees() -> None:
    """The same shape in plain torch modules, counted by torch.utils.flop_counter."""
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode

    shape = Shape(32, 2, 4, context=16, vocab_size=64, mlp="swiglu", d_ff=88)
    weights = {
        (i, name): torch.randn(size, requires_grad=True)
        for i in range(shape.n_layer)
        for name, size in (("qkv", (32, 96)), ("out", (32, 32)), ("up", (32, 176)), ("down", (88, 32)))
    }
    embedding = torch.randn(64, 32, requires_grad=True)
    tokens = torch.randint(64, (3, 16))
    with FlopCounterMode(display=False) as counter:
        x = embedding[tokens]
        for i in range(shape.n_layer):
            q, k, v = (x @ weights[i, "qkv"]).view(3, 16, 3, 4, 8).permute(2, 0, 3, 1, 4)
            scores = (q @ k.transpose(-1, -2)).softmax(-1)
            x = x + (scores @ v).transpose(1, 2).reshape(3, 16, 32) @ weights[i, "out"]
            gate, up = (x @ weights[i, "up"]).chunk(2, -1)
            x = x + (gate.sigmoid() * up) @ weights[i, "down"]
        (x @ embedding.T).logsumexp(-1).sum().backward()
    assert counter.get_total_flops() == flops_per_token(shape, "full") * tokens.numel()


def test_count_over_real_parameters() -> None:
    """Every option, against the parameters that the fleet really allocates."""
    pytest.importorskip("torch")
    from pyscaling.models import FleetTransformer

    for options in (
        {},
        {"mlp": "swiglu"},
        {"norm": "rmsnorm"},
        {"position": "rope"},
        {"tied": False},
        {"bias": False},
        {"mlp": "swiglu", "norm": "rmsnorm", "position": "rope", "tied": False, "bias": False, "qk_norm": True},
    ):
        shape = Shape(32, 3, 4, context=16, vocab_size=100, **options)
        model = FleetTransformer(shape, seeds=[0])
        real = {name: parameter[0].numel() for name, parameter in model.parameters.items()}
        assert sum(real.values()) == parameter_count(shape, "total")
        outside = ("token_embedding", "position_embedding", "head")
        assert sum(n for name, n in real.items() if name not in outside) == parameter_count(
            shape, "exact_non_embedding"
        )


@pytest.mark.parametrize(
    ("text", "flops"),
    [
        ("1e21", 1e21),
        (1e21, 1e21),
        ("1e21 FLOPs", 1e21),
        ("1.5e3EFLOPs", 1.5e21),
        ("2 zflop", 2e21),
        ("3 PF-days", 3 * PF_DAY),
        ("3pfdays", 3 * PF_DAY),
        ("0.5 petaflop/s-days", 0.5 * PF_DAY),
        ("1,000 flops", 1000.0),
    ],
)
def test_compute_with_units(text: float | str, flops: float) -> None:
    assert parse_compute(text) == pytest.approx(flops, rel=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3 parsecs", "unknown unit 'parsecs'"),
        ("3 PFLOP/s", "is a rate"),
        ("many", "not a number"),
        ("-1e21", "finite and positive"),
        ("0", "finite and positive"),
        (float("nan"), "finite and positive"),
        ("1e999", "finite and positive"),
    ],
)
def test_bad_compute_names_value(text: float | str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_compute(text)


def test_pf_day() -> None:
    assert PF_DAY == 1e15 * 24 * 3600


@pytest.mark.parametrize("convention", PARAMETER_CONVENTIONS)
def test_shape_near_is_near(convention: str) -> None:
    worst_large = worst_small = 0.0
    for N in (10 ** (4 + k / 20) for k in range(180)):
        if convention not in ("non_embedding", "exact_non_embedding") and N < 3e6:
            continue  # the embeddings of 50,257 tokens alone are larger
        shape = shape_near(N, convention=convention)
        miss = abs(parameter_count(shape, convention) / N - 1)
        if N >= 1e6 and convention in ("non_embedding", "exact_non_embedding"):
            worst_large = max(worst_large, miss)
        else:
            worst_small = max(worst_small, miss)
        assert shape.d_model % shape.n_head == 0
        if shape.d_model >= 512:
            assert shape.head_dim in (64, 128)
            assert shape.d_model % 64 == 0
        if N > 1e8:
            assert 30 < shape.d_model / shape.n_layer < 260
    assert worst_large < 0.04
    assert worst_small < 0.15


def test_shape_near_finds_published_shapes() -> None:
    """GPT-2 small and GPT-3 13B/175B have customary proportions: the rule lands close to them."""
    small = shape_near(12 * 12 * 768**2)
    assert (small.d_model, small.n_layer, small.n_head) == (768, 12, 12)
    large = shape_near(174e9)
    assert large.head_dim == 128
    assert 10_000 < large.d_model < 14_500


def test_shape_near_passes_options_on() -> None:
    shape = shape_near(
        1e9, context=4096, vocab_size=32000, mlp="swiglu", norm="rmsnorm", position="rope", tied=False, bias=False
    )
    assert (shape.context, shape.vocab_size, shape.tied, shape.mlp) == (4096, 32000, False, "swiglu")
    assert shape.d_ff % 128 == 0
    assert parameter_count(shape) == pytest.approx(1e9, rel=0.04)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="d_model=10 is not divisible by n_head=4; n_head=5 is"):
        Shape(10, 2, 4)
    with pytest.raises(ValueError, match="n_layer must be a whole number of at least 1, got 0"):
        Shape(16, 0, 4)
    with pytest.raises(ValueError, match="mlp must be one of gelu, swiglu, got 'relu'"):
        Shape(16, 1, 4, mlp="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="convention='all' is unknown; known are non_embedding"):
        parameter_count(Shape(16, 1, 4), "all")
    with pytest.raises(ValueError, match="convention='6N' is unknown; known are 6ND"):
        flops_per_token(Shape(16, 1, 4), "6N")
    with pytest.raises(ValueError, match="N=100 is smaller than any transformer"):
        shape_near(100)
    with pytest.raises(ValueError, match="N must be finite and positive"):
        shape_near(math.inf)
    assert "full" in FLOP_CONVENTIONS
