#!/usr/bin/env bash
# bench.sh OUT: TUDSR-S shapes with random weights: seconds and memory of 128² → 512² and 256² → 2048², JSON in OUT.
set -euo pipefail
out=$1
source scripts/gpu/setup.sh
mkdir -p "$out"
model=$(mktemp -d)/sd21
python3 -m tudsr models init sd21 --random-weights --out "$model"
python3 benchmarks/upscale.py --model "$model" --side 128 --scale 4 --runs 1 --warm 10 --out "$out/sd21-128-x4.json"
python3 benchmarks/upscale.py --model "$model" --side 256 --scale 8 --runs 1 --warm 5 --out "$out/sd21-256-x8.json"
