#!/usr/bin/env bash
# bench.sh OUT: TUDSR-S shapes with random weights, JSON in OUT: seconds and memory of 128² → 512² and 256² → 2048², the
# latter within 8 and 4 GB too, its share of this GPU's matrix product, and training steps of both stages. Ends with 1
# where a run within a budget was refused or went above it, after all else was measured.
set -euo pipefail
out=$1
source scripts/gpu/setup.sh
mkdir -p "$out"
model=$(mktemp -d)/sd21
python3 -m tudsr models init sd21 --random-weights --out "$model"
python3 benchmarks/upscale.py --model "$model" --side 128 --scale 4 --runs 1 --warm 10 --out "$out/sd21-128-x4.json"
python3 benchmarks/upscale.py --model "$model" --side 256 --scale 8 --runs 1 --warm 5 --out "$out/sd21-256-x8.json"
python3 -m tudsr bench --model "$model" --sizes 128x128,256x256 --scale 8 --json > "$out/sd21-bench.json"
kept=0
python3 benchmarks/memory.py --strict --model "$model" --runs 256x256x8@8GB,256x256x8@4GB \
  --out "$out/sd21-memory.json" || kept=$?
python3 benchmarks/train_step.py --model "$model" --steps 12 --set 'discriminator_options={"weights":"random"}' \
  --out "$out/sd21-train-step.json"
exit "$kept"
