#!/usr/bin/env bash
# train_tiny_9.sh VERSION_8 RUNS PHOTOS: what may make a better version of the embedded model of version 8
# (train_tiny_8.sh made that). LoRA-1 goes into the base, which learns on as a whole; what it learned comes out again, and
# LoRA-2 begins as LoRA-1. Finished phases are not repeated. For a GPU, where batches serve twice since it learns faster
# than processors degrade; STEPS and STEPS_2 say for how long. A phase that is told to stop (SIGTERM) hands its model on.
set -euo pipefail
model=$1 runs=$2 photos=$3
source "$(dirname "${BASH_SOURCE[0]}")/tiny_phases.sh"
common+=(--set checkpoint_every=1000 --set "$mix" --set crop_px=192 --set losses.dists=5 --set echoes=2)
stopped() { test $? -eq 143; }

mkdir -p "$runs"
[ -d "$runs/folded" ] || "$python" scripts/adapters.py fold "$model" "$runs/folded"
phase whole 1 "$runs/folded" --set train=base --set batch=48 --set "steps=${STEPS:-4000}" --set lr=8e-4 --set warmup=150 \
  --set lr_end=0.02 --set ema=0.998 --set seed=101 --set 'scales={"fixed":{"4":0.7},"uniform":[1.0,4.0]}' || stopped
[ -d "$runs/split" ] || "$python" scripts/adapters.py split "$model" "$runs/whole/model" "$runs/split"
phase second 2 "$runs/split" --set batch=32 --set overlap_px=96 --set loss_crop_px=null --set init_adapter=from_stage_1 \
  --set "steps=${STEPS_2:-1000}" --set lr=4e-4 --set warmup=20 --set lr_end=0.03 --set ema=0.99 --set seed=102 \
  --set "init_discriminator=$runs/whole/model_discriminator.safetensors" || stopped
