#!/usr/bin/env bash
# Builds .venv for machines without a GPU: every package at the version of requirements-cpu.lock, and azr itself, editable.
# Run it through `make setup`. An environment that is half built or of another Python is completed or refused, never mixed.
set -euo pipefail
cd "$(dirname "$0")/.."

LOCK=requirements-cpu.lock
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: %s\n' "$@" >&2; exit 1; }

# phase TEXT COMMAND...: one line with the seconds it took; the command's output only if it fails.
phase() {
    local text=$1 start=$SECONDS log
    shift
    log=$(mktemp)
    printf 'setup: %-44s' "$text ..."
    if "$@" >"$log" 2>&1; then
        printf '%4d s\n' $((SECONDS - start))
        rm -f "$log"
    else
        printf 'failed\n' >&2
        tail -n 25 "$log" >&2
        rm -f "$log"
        return 1
    fi
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3 python; do
        if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = 3.11 ]; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "the pinned set needs Python 3.11, and neither python3.11 nor python3 is that." \
        "Install it, or name it: make setup PYTHON=/path/to/python3.11"
}

# By its version file: torch cannot be imported before the rest is there.
is_cpu_torch() {
    .venv/bin/python -c "
import runpy, sys, sysconfig
found = runpy.run_path(sysconfig.get_path('purelib') + '/torch/version.py')
sys.exit(found['cuda'] is not None or found['hip'] is not None or found['__version__'].split('+')[0] != '$1')
" 2>/dev/null
}

# The CPU build of torch is on PyTorch's own index; elsewhere the same version usually means the CUDA build. So: PyTorch's
# index first, without retries (a network that refuses it costs seconds), then whatever pip is configured with, if that
# is the CPU build, which its requirements tell before it is installed.
install_torch() {
    local pip=(.venv/bin/pip --quiet)
    "${pip[@]}" --retries 0 --timeout 10 install --no-deps --index-url "$TORCH_CPU_INDEX" "torch==$1" && return
    "${pip[@]}" install --no-deps --dry-run --report - "torch==$1" | .venv/bin/python -c "
import json, sys
needs = json.load(sys.stdin)['install'][0]['metadata'].get('requires_dist', [])
if any(need.startswith(('nvidia-', 'cuda-')) for need in needs):
    sys.exit('pip finds only the CUDA build')
" && "${pip[@]}" install --no-deps "torch==$1"
}

case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) ;;
    *) fail "requirements-cpu.lock is for Linux on x86_64; this is $(uname -s) on $(uname -m)." \
        "Install the ranges of pyproject.toml with your platform's torch and vLLM instead." ;;
esac
command -v nvidia-smi >/dev/null && say "this machine has a GPU; the CPU build is installed here (for the other: pip install 'azr[gpu]')"

python=$(find_python)
[ -x .venv/bin/python ] || phase "virtual environment ($python)" "$python" -m venv .venv
[ "$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')" = 3.11 ] ||
    fail ".venv is of another Python than 3.11; remove it (make clean-venv) and try again"

torch=$(sed -n 's/^torch==\([0-9.]*\).*/\1/p' "$LOCK")
if ! is_cpu_torch "$torch"; then
    phase "torch $torch, CPU build" install_torch "$torch" && is_cpu_torch "$torch" || fail \
        "the CPU build of torch $torch is not there, and vLLM's CPU build needs exactly that." \
        "It comes from $TORCH_CPU_INDEX. If this machine cannot reach that, put the wheel" \
        "torch-$torch+cpu-cp311-cp311-manylinux_2_28_x86_64.whl into a folder and run: PIP_FIND_LINKS=/that/folder make setup"
fi

rest=$(mktemp)
trap 'rm -f "$rest"' EXIT
grep -v '^torch==' "$LOCK" >"$rest"
phase "$(grep -c '==' "$rest") pinned packages" .venv/bin/pip --quiet install --no-deps -r "$rest" ||
    fail "the packages above could not be installed; nothing else was changed, so try again when the cause is gone"
phase "azr itself, editable" .venv/bin/pip --quiet install --no-deps --no-build-isolation -e .
touch .venv/.azr-setup
say "done: .venv/bin/azr --help"
