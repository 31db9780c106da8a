"""What pyproject.toml promises, constraints-oldest.txt pins at its lower end and constraints.txt within it."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
# `make` installs no parquet and no logs; constraints-oldest.txt says why torch is newer there
NOT_PINNED, NEWER = {"pyarrow", "tensorboard", "wandb"}, {"torch"}


def pins(file: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    requirements = [Requirement(line) for line in lines]
    for requirement in requirements:
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), f"{file}: {requirement} is no exact pin"
    names = [canonicalize_name(requirement.name) for requirement in requirements]
    assert names == sorted(set(names)), f"{file} is not sorted, or names a package twice"
    return {n: Version(str(r.specifier)[2:]) for n, r in zip(names, requirements, strict=True)}


REQUIREMENTS = {
    f"{where}: {text}": Requirement(text)
    for where, texts in {
        "build": PROJECT["build-system"]["requires"],
        "dependencies": PROJECT["project"]["dependencies"],
        **EXTRAS,
    }.items()
    for text in texts
}


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_the_oldest_is_the_lower_bound(requirement: str) -> None:
    required = REQUIREMENTS[requirement]
    name = canonicalize_name(required.name)
    if name in NOT_PINNED:
        return
    (lower,) = (Version(s.version) for s in required.specifier if s.operator in (">=", "=="))
    oldest, newest = pins("constraints-oldest.txt")[name], pins("constraints.txt")[name]
    assert oldest > lower if name in NEWER else oldest == lower
    assert oldest <= newest and newest in required.specifier


def test_one_python() -> None:
    (bound,) = re.findall(r"^>=(3)\.(\d+)$", PROJECT["project"]["requires-python"])
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{''.join(bound)}"
    assert PROJECT["tool"]["mypy"]["python_version"] == ".".join(bound)
    assert f"sys.version_info < ({', '.join(bound)})" in (ROOT / "Makefile").read_text()
