#!/usr/bin/env bash
# All that needs a GPU, in one command of some ten minutes: the tests, then the benchmarks. Needs lgrpo installed with its
# `test` extra. What each prints is kept in the folder given, `gpu` where none is; one that fails does not stop the others.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:-gpu}
mkdir -p "$out"
failed=0

run() { # run NAME SECONDS COMMAND...
    printf '\n== %s\n' "${*:3}"
    timeout "$2" "${@:3}" 2>&1 | tee "$out/$1.txt" || failed=1
}

nvidia-smi | tee "$out/machine.txt"
run tests 100 python -m pytest -q -m gpu
run rollouts 100 python benchmarks/rollouts.py --device cuda --shape llama-3.2-1b
run step-low-1b 150 python benchmarks/rl_step.py --device cuda --shape llama-3.2-1b
run step-high-7b 200 python benchmarks/rl_step.py --device cuda --shape qwen2.5-7b --groups 2 --response 1024 --cold --repeats 1
run logits-memory 60 python benchmarks/logits_memory.py --device cuda
exit "$failed"
