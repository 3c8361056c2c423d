#!/usr/bin/env bash
# train_tiny_8.sh VERSION_7 CRITIC RUNS PHOTOS: how version 8 of the embedded model was made of version 7 (train_tiny_7.sh
# made that, and CRITIC, the discriminator of its phase «second»). Only LoRA-2 learns. Finished phases are not repeated.
# On two CPU cores in float32, 2.7 s a step; docs/experiments/2026-11-27-tiny-v8.md has the figures.
set -euo pipefail
model=$1 critic=$2 runs=$3 photos=$4
source "$(dirname "${BASH_SOURCE[0]}")/tiny_phases.sh"
# An overlap as large as a chunk makes one window of the whole crop.
stage_2=(--set checkpoint_every=100 --set "$mix" --set init_adapter=keep --set crop_px=192 --set batch=3 --set overlap_px=96
  --set loss_crop_px=null --set warmup=20 --set lr_end=0.03)

phase second 2 "$model" "${stage_2[@]}" --set "init_discriminator=$critic" --set steps=450 --set lr=3e-4 --set ema=0.99 \
  --set seed=94
phase second_2 2 "$runs/second/model" "${stage_2[@]}" --set "init_discriminator=$runs/second/model_discriminator.safetensors" \
  --set steps=1200 --set lr=2.5e-4 --set ema=0.995 --set seed=95
