"""A whole study on the Triton backend, in the interpreter where there is no GPU: the same runs as by PyTorch."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pyscaling.study import Study

SPEC = """
name = "{name}"
[corpus]
source = "{corpus}"
tokenizer = "bytes"
evaluate_on = []
[model]
context = 16
[training]
budgets = [192]
batch_tokens = 64
warmup_steps = 1
learning_rate = 0.01
backend = "{name}"
[evaluation]
tokens = 64
curve_tokens = 32
noise_batches = 0
[[sizes]]
d_model = 8
n_layer = 1
n_head = 1
seeds = 2
"""


def test_the_same_runs_as_by_pytorch(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    text = tmp_path / "corpus.txt"
    text.write_text(
        "\n\n".join(" ".join(generator.choice(["law", "loss", "falls", "with", "data"], 50)) for _ in range(40))
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYSCALING_INTERPRETER_SIDE"}  # blocks as a user's
    runs = []
    for backend in ("torch", "triton"):
        spec = tmp_path / f"{backend}.toml"
        spec.write_text(SPEC.format(name=backend, corpus=text))
        command = [
            sys.executable,
            "-m",
            "pyscaling.cli",
            "study",
            str(spec),
            "--out",
            str(tmp_path / backend),
            "--workers",
            "1",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert Study.open(tmp_path / backend).finished, done.stdout + done.stderr
        runs.append(Study.open(tmp_path / backend).all_runs)
    ours, plain = runs[1], runs[0]
    assert len(ours) == 2 and np.array_equal(ours.N, plain.N) and np.array_equal(ours.D, plain.D)
    np.testing.assert_allclose(ours.loss, plain.loss, rtol=1e-4)


@pytest.mark.skipif(os.environ.get("PYSCALING_TEST_DEVICE") == "cuda", reason="a GPU runs the kernels")
def test_without_a_gpu_nothing_is_written(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pyscaling.cli", "study", "--preset", "smoke", "--backend", "triton"]
    done = subprocess.run([*command, "--out", str(tmp_path / "s")], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "set TRITON_INTERPRET=1" in " ".join(done.stderr.split())
    assert not (tmp_path / "s").exists()
