"""What a study asks of the machine it runs on: a device for each worker, and the precision that its runs began with."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pyscaling.study import Study, StudySpec, executor
from pyscaling.study.store import StudyError

SPEC = """
name = "good"
[training]
budgets = ["10k", "20k"]
batch_tokens = 256
[[sizes]]
d_model = 16
n_layer = 1
n_head = 2
"""


def spec(precision: str | None = None) -> StudySpec:
    line = f'precision = "{precision}"\n' if precision else ""
    return StudySpec.from_toml(SPEC.replace("batch_tokens", line + "batch_tokens"))


@pytest.mark.parametrize(
    ("gpus", "expected"), [(0, ["cpu"] * 3), (1, ["cuda:0"] * 3), (2, ["cuda:0", "cuda:1", "cuda:0"])]
)
def test_each_worker_has_a_current_device(monkeypatch: pytest.MonkeyPatch, gpus: int, expected: list[str]) -> None:
    """Triton starts kernels on the current device, whatever the tensors': worker 1's fell on the first card."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert [executor._device(number) for number in range(3)] == expected
    assert [f"cuda:{index}" for index in current] == ([] if not gpus else expected)


def test_a_worker_trains_on_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Pipe:
        items: list[Any] = ["a fleet", None]  # noqa: RUF012 - of one test

        def recv(self) -> Any:
            return self.items.pop(0)

    for name in ("set_num_threads", "set_flush_denormal"):
        monkeypatch.setattr(torch, name, lambda value: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: seen.append(("set", index)))
    monkeypatch.setattr(executor.signal, "signal", lambda *handler: None)
    monkeypatch.setattr(executor, "_die_with", lambda parent: None)
    monkeypatch.setattr(executor, "_train", lambda item, pipe, device: seen.append(("train", device)))
    executor._worker(Pipe(), 6, 1)  # type: ignore[arg-type]
    assert seen == [("set", 2), ("train", "cuda:2")]


def test_folders_from_before_precision_was_auto_are_still_their_studies() -> None:
    """Keys as they were written when fp32 was the default, and all defaults were part of them."""
    key = "3dcf90fbfd99d219cb8307e7bfead709ec3dcd137507738ed3c642a18f3be7e4"
    bf16 = "ae8e6c6ffb804b5c6f9eb19ae2603bbe7f6ca009c904f7b63444da008768d089"
    for asked, known, other in ((None, key, bf16), ("auto", key, bf16), ("fp32", key, bf16), ("bf16", bf16, key)):
        assert Study(spec(asked))._was_key(known)
        assert not Study(spec(asked))._was_key(other)
    assert not any(Study(spec("ieee"))._was_key(known) for known in (key, bf16))
    assert Study._key(spec()) == Study._key(spec("auto")) == Study._key(spec("fp32"))
    assert len({Study._key(spec(asked)) for asked in ("auto", "bf16", "ieee")}) == 3
    with pytest.raises(ValueError, match="precision='fp16'"):
        spec("fp16")


class Facts:
    def __init__(self, **known: str) -> None:
        self.known = known

    def facts(self) -> dict[str, str]:
        return self.known


@pytest.mark.parametrize(
    ("asked", "gpu", "known", "expected"),
    [
        ("auto", False, {}, "fp32"),
        ("auto", True, {}, "bf16"),
        ("auto", True, {"version": "0.1"}, "fp32"),  # begun before precision was written down
        ("auto", False, {"version": "0.2", "precision": "bf16"}, "bf16"),  # begun on a card
        ("auto", True, {"version": "0.2", "precision": "fp32"}, "fp32"),  # begun on none
        ("bf16", False, {"version": "0.1"}, "bf16"),
        ("ieee", True, {}, "ieee"),
        ("fp32", True, {}, "fp32"),
        ("fp32", True, {"version": "0.2", "precision": "bf16"}, None),
    ],
)
def test_precision_stays_as_a_study_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, gpu: bool, known: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    study = Study(spec(asked), tmp_path)
    if expected is None:
        with pytest.raises(StudyError, match="begun with training.precision='bf16', not 'fp32'"):
            study._precision(Facts(**known))  # type: ignore[arg-type]
    else:
        assert study._precision(Facts(**known)) == expected  # type: ignore[arg-type]
