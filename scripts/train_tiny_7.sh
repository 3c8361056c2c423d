#!/usr/bin/env bash
# train_tiny_7.sh VERSION_6 RUNS PHOTOS: how version 7 of the embedded model was made of version 6 (train_tiny.sh made that).
# LoRA-1 goes into the base, which learns on as a whole; what it learned comes out again, and LoRA-1 and LoRA-2 learn on.
# Finished phases are not repeated. Phases 1 and 2 ran on a GPU, on squares of 1000 px of the photos (scripts/gpu), in
# bfloat16; phase 3 on two CPU cores in float32. docs/experiments/2026-11-26-tiny-v7.md has the figures.
set -euo pipefail
model=$1 runs=$2 photos=$3
python=${PYTHON:-.venv/bin/python} critic=model_discriminator.safetensors
# The package's own sample photos are not trained on.
common=(--data "$photos" --set val_count=12 --set val_every=100000 --set checkpoint_every=100 --set "workers=${WORKERS:-1}"
  --set jitter_px=32 --set loss_gan=0.1 --set lr_d=3e-4 --set 'discriminator_options={"width":40}'
  --set 'degradation={"weights":{"light":0.6,"heavy":0.1,"camera":0.3}}' --set
  'losses={"mae":0.5,"detail":0.5,"grid_4":24,"dists":4,"lpips_alex":2}' --set
  'exclude=["spices-of-life","oakland-zoo-otters","lake-sherburne","roman-colosseum","motherboard-circuits","budgie-branch","perched-osprey"]')
stage_1=(--set crop_px=192 --set batch=32 --set 'scales={"fixed":{"4":0.7},"uniform":[1.0,4.0]}')
stage_2=(--set crop_px=256 --set batch=2 --set loss_crop_px=128 --set loss_crops=2 --set init_adapter=from_stage_1)

phase() { # phase NAME STAGE FROM settings...
  local out=$runs/$1 stage=$2 from=$3
  shift 3
  # A run that is finished is left as it is; a stopped one, which has a model too, goes on.
  "$python" -m tudsr train --stage "$stage" --model "$from" --out "$out" --resume "${common[@]}" "$@"
}

mkdir -p "$runs"
[ -d "$runs/folded" ] || "$python" scripts/adapters.py fold "$model" "$runs/folded"
phase whole 1 "$runs/folded" "${stage_1[@]}" --set train=base --set steps=2000 --set lr=8e-4 --set warmup=200 --set lr_end=0.03 \
  --set ema=0.998 --set seed=51
[ -d "$runs/split" ] || "$python" scripts/adapters.py split "$model" "$runs/whole/model" "$runs/split"
phase first 1 "$runs/split" "${stage_1[@]}" --set steps=200 --set lr=2e-4 --set warmup=50 --set ema=0.99 --set seed=52 \
  --set "init_discriminator=$runs/whole/$critic"
phase second 2 "$runs/first/model" "${stage_2[@]}" --set steps=250 --set lr=3e-4 --set warmup=20 --set ema=0.98 --set seed=53 \
  --set "init_discriminator=$runs/first/$critic"
