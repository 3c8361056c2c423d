#!/usr/bin/env bash
# train_tiny_7.sh VERSION_6 RUNS PHOTOS: how version 7 of the embedded model was made of version 6 (train_tiny.sh made that).
# LoRA-1 goes into the base, which learns on as a whole; what it learned comes out again, and LoRA-1 and LoRA-2 learn on.
# Finished phases are not repeated. Phases 1 and 2 ran on a GPU, on squares of 1000 px of the photos (scripts/gpu), in
# bfloat16; phase 3 on two CPU cores in float32. docs/experiments/2026-11-26-tiny-v7.md has the figures.
set -euo pipefail
model=$1 runs=$2 photos=$3
critic=model_discriminator.safetensors
source "$(dirname "${BASH_SOURCE[0]}")/tiny_phases.sh"
common+=(--set checkpoint_every=100 --set "$mix")
stage_1=(--set crop_px=192 --set batch=32 --set 'scales={"fixed":{"4":0.7},"uniform":[1.0,4.0]}')
stage_2=(--set crop_px=256 --set batch=2 --set loss_crop_px=128 --set loss_crops=2 --set init_adapter=from_stage_1)

mkdir -p "$runs"
[ -d "$runs/folded" ] || "$python" scripts/adapters.py fold "$model" "$runs/folded"
phase whole 1 "$runs/folded" "${stage_1[@]}" --set train=base --set steps=2000 --set lr=8e-4 --set warmup=200 --set lr_end=0.03 \
  --set ema=0.998 --set seed=51
[ -d "$runs/split" ] || "$python" scripts/adapters.py split "$model" "$runs/whole/model" "$runs/split"
phase first 1 "$runs/split" "${stage_1[@]}" --set steps=200 --set lr=2e-4 --set warmup=50 --set ema=0.99 --set seed=52 \
  --set "init_discriminator=$runs/whole/$critic"
phase second 2 "$runs/first/model" "${stage_2[@]}" --set steps=250 --set lr=3e-4 --set warmup=20 --set ema=0.98 --set seed=53 \
  --set "init_discriminator=$runs/first/$critic"
