#!/usr/bin/env bash
# Fuzzes the C++ core under sanitizers, in a temporary copy: first addresses and undefined behaviour, then races.
#   bench/sanitize.sh [examples]        PYTHON=... the interpreter of an environment in which pyscaling's tests run
# Leaks are not looked for: the interpreter's own would hide the core's. Interrupts and thread limits are left to the
# plain tests, because a sanitizer's own threads and signal handling are what they would meet.
set -eu
cd "$(dirname "$0")/.."
examples=${1:-50}
python=$(realpath -s "${PYTHON:-.venv/bin/python}")
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r pyscaling tests pyproject.toml "$copy"
rm -f "$copy"/pyscaling/_core*.so
target=$copy/pyscaling/_core$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')

run() { # name of the run-time library, flags of the compiler
    local library
    library=$(g++ -print-file-name="lib$1.so")
    # Clones are chosen before a sanitizer is set up, which crashes; what is checked is the code that all share.
    # shellcheck disable=SC2046
    g++ -O1 -g -std=c++17 -fPIC -shared -pthread -fopenmp-simd -fno-math-errno -fno-trapping-math -fno-omit-frame-pointer \
        -D_GLIBCXX_ASSERTIONS -DPYSCALING_NO_CLONES $2 $("$python" -m pybind11 --includes) csrc/*.cpp -o "$target"
    echo "== $1: $examples examples"
    (cd "$copy" && env LD_PRELOAD="$library $(g++ -print-file-name=libstdc++.so)" PYTHONPATH="$copy" PYTHONMALLOC=malloc \
        ASAN_OPTIONS=detect_leaks=0:halt_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
        TSAN_OPTIONS="halt_on_error=1 exitcode=66 suppressions=$copy/suppressions" \
        OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 PYSCALING_FUZZ="$examples" PYSCALING_FUZZ_LIMIT=120 \
        setarch -R "$python" -m pytest tests/fitting/test_fuzz.py -p no:cacheprovider --capture=sys -k "not interrupt and not more_threads")
}

: >"$copy/suppressions"
run asan "-fsanitize=address,undefined -fno-sanitize-recover=all"
run tsan "-fsanitize=thread"
