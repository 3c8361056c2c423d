#!/usr/bin/env bash
# bench.sh OUT: TUDSR-S shapes with random weights, JSON in OUT: seconds and memory of 128² → 512² and 256² → 2048²,
# where the time goes, training steps of both stages as in the paper, with their seconds and their memory, and then what
# bench_memory.sh does, which may run beside other work, since only memory counts there (MEMORY=no: another call does
# it). What fails does not stop the rest; ends with 1 where something failed or a training step took more than 24 GB.
set -uo pipefail
out=$1
source scripts/gpu/setup.sh
source scripts/gpu/steps.sh

big=256x8
EACH=${EACH:-200} step warm benchmarks/warm.py --model "$model" --out "$out/sd21-warm.json" \
  --profile "$out/sd21-profile-256-x8.json" --case "$big" --case 128x4 --case '128x4 {"graphs": true}' \
  --case "$big"' {"low_memory": true, "batch": 1}' --case "$big"' {"graphs": true, "batch": 1}' --case "$big"' {"graphs": true}'
for stage in 1 2; do  # the loop as in the paper
  EACH=${EACH:-150} step "train-$stage" benchmarks/train_step.py --model "$model" --stages "$stage" --steps 6 --most-mb 24000 \
    --set 'discriminator_options={"weights":"random"}' --set loop=paper --set loss_crop_px=null \
    --out "$out/sd21-train-step-$stage.json"
done
[ "${MEMORY:-yes}" = no ] || bash scripts/gpu/bench_memory.sh "$out" || failed=1
exit "$failed"
