#!/usr/bin/env bash
# bench_memory.sh OUT: 256² → 2048² within 8 and 4 GB of a GPU, real processes with TUDSR-S shapes, JSON in OUT; and the
# tests that need CUDA. Seconds do not count, so that it may run beside other work. Ends with 1 where something failed.
set -uo pipefail
out=$1
source scripts/gpu/setup.sh
source scripts/gpu/steps.sh

for budget in 8GB 4GB; do
  step "memory-$budget" benchmarks/memory.py --strict --model "$model" --runs "256x256x8@$budget" --out "$out/sd21-memory-$budget.json"
done
EACH=${EACH:-240} step tests -m pytest -q -m gpu -p no:cacheprovider $(grep -rl "mark.gpu" tests)
exit "$failed"
