"""Builds the C++ fitting core; everything else about the package is in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

# -fopenmp-simd vectorises the marked loops without linking OpenMP; -ffast-math stays off: it would
# break the NaN checks and, at link time, flush denormals in the user's whole process.
core = Pybind11Extension(
    "pyscaling._core",
    sorted(glob("csrc/*.cpp")),
    depends=sorted(glob("csrc/*.hpp")),
    cxx_std=17,
    extra_compile_args=["-O3", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"],
    extra_link_args=["-pthread"],
)

ParallelCompile().install()
setup(ext_modules=[core])
