"""A spec's mistakes are named; presets are sound; a study reads back what it trained."""

from pathlib import Path

import pytest

from pyscaling.study import Study, StudySpec
from pyscaling.study.cost import predict_cost
from pyscaling.study.spec import parse_tokens, preset_names

GOOD = """
name = "good"
[training]
budgets = ["10k", "20k"]
batch_tokens = 256
[[sizes]]
d_model = 16
n_layer = 1
n_head = 2
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("d_model = 16", "d_model = 15", "d_model=15 is not divisible by n_head=2; n_head="),
        ("batch_tokens", "batch_token", "unknown key training.batch_token"),
        ('name = "good"', 'name = "a b"', "name='a b'"),
        ('"10k"', '"10 bananas"', "'10 bananas' is not a count of tokens; write 500000"),
        ('"10k"', '"10q"', "'10q' is not a count of tokens"),
        ('"10k"', "-5", "-5 is not a whole positive count"),
        (
            "batch_tokens = 256",
            "batch_tokens = 100",
            "training.batch_tokens=100 must be a multiple of model.context=64",
        ),
        ('name = "good"', 'name = "good"\nlaw = "chinchila"', "law 'chinchila' is unknown"),
        ('name = "good"', 'name = "good"\nlaw = "kaplan_N"', "is no law of N and D"),
        ("[training]", "[corpus]\nvalidation_fraction = 2.0\n[training]", "corpus.validation_fraction=2.0"),
        ("[training]", "[training", "is not valid TOML"),
        ('["10k", "20k"]', "[]", "training.budgets="),
        ("[training]", "[training]\nwarmup_steps = 39", "training.warmup_steps=39 leaves nothing of the 39 steps"),
        ("[training]", "[training]\nlearning_rate = inf", "training.learning_rate=inf"),
        ("[training]", "[training]\nlearning_rate = -1", "training.learning_rate=-1"),
        ("[[sizes]]", "[[sizes]]\nd_model = 16\nn_layer = 1\nn_head = 1\n[[sizes]]", "same d_model and n_layer"),
    ],
)
def test_mistakes(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ValueError, match=message):
        StudySpec.from_toml(GOOD.replace(old, new), "my.toml")


def test_unknown_preset() -> None:
    with pytest.raises(ValueError, match="preset 'tpu' is unknown; known are cpu, gpu, gpu-mini, smoke"):
        Study.from_preset("tpu")


def test_units() -> None:
    assert [parse_tokens(t) for t in ("500k", "0.5M", "2B tokens", 7, "1_000", "1.5e3k")] == [
        500_000, 500_000, 2_000_000_000, 7, 1000, 1_500_000,
    ]  # fmt: skip


def test_budget_too_small() -> None:
    with pytest.raises(ValueError, match=r"budgets: 256 tokens are less than two steps of training.batch_tokens=256"):
        StudySpec.from_toml(GOOD.replace('"10k"', "256"))


def test_corpus_too_short(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.txt").write_text(f"only a little text {i} " * 3)
    text = (
        GOOD
        + f'[corpus]\nsource = "{tmp_path}/*.txt"\ntokenizer = "bytes"\nevaluate_on = []\n[evaluation]\ntokens = 64\n'
    )
    with pytest.raises(ValueError, match=r"training tokens, shorter than one batch of 256 .*Give more text"):
        Study(StudySpec.from_toml(text), tmp_path / "study").run(progress=False)


@pytest.mark.parametrize("name", preset_names())
def test_presets(name: str) -> None:
    spec = StudySpec.preset(name)
    assert spec.name == name
    shapes = [spec.shape(size, spec.corpus.vocab_size) for size in spec.sizes]
    assert [shape.N for shape in shapes] == sorted(shape.N for shape in shapes)
    if name != "smoke":
        assert shapes[-1].N >= 100 * shapes[0].N  # two decades of N
        assert spec.training.budgets[-1] >= 10 * spec.training.budgets[0]  # and one of D


def test_cost_by_hand() -> None:
    """One member, budgets 10k and 20k in steps of 256: 39 and 78 steps, the last fifth of each on its own branch."""
    spec = StudySpec.from_toml(GOOD)
    (size,) = predict_cost(spec).sizes
    steps = (78 - 16) + 8 + 16
    assert size.tokens == steps * 256
    forward = 2 * 12 * 16**2 + 4 * 64 * 16 + 2 * 16 * 1024
    assert size.flops == pytest.approx(3 * forward * size.tokens)


def test_best_rate_is_selected(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(f"the quick brown fox {i} jumps over the lazy dog " * 30)
    text = GOOD.replace("n_head = 2", "n_head = 2\nrate_factors = [0.001, 1.0]\nseeds = 2") + (
        f'[corpus]\nsource = "{tmp_path}/*.txt"\ntokenizer = "bytes"\nevaluate_on = []\n[evaluation]\ntokens = 512\n'
    )
    study = Study(StudySpec.from_toml(text.replace("256", "128")), tmp_path / "study")
    runs = study.run(workers=1, progress=False)
    assert len(study.all_runs) == 8
    assert len(runs) == 4
    assert set(runs["rate_factor"]) == {1.0}
    for schedule in ("cosine", "kaplan", "constant"):
        other = text.replace("256", "128").replace("[training]", f'[training]\nschedule = "{schedule}"')
        again = Study(StudySpec.from_toml(other), tmp_path / schedule).run(workers=1, progress=False)
        assert len(again) == 4
