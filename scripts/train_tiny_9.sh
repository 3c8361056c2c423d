#!/usr/bin/env bash
# train_tiny_9.sh VERSION_8 RUNS PHOTOS: how version 9 of the embedded model was made of version 8 (train_tiny_8.sh made
# that). LoRA-1 goes into the base, which learns on as a whole; what it learned comes out again; then LoRA-1 learns with
# three times the GAN's weight, and LoRA-2 begins as it. Finished phases are not repeated. «whole» ran on a GPU, on squares
# of 1000 px of the photos, in bfloat16, each batch twice (the option `echoes` of commit 96039c1, which saved nothing and
# is gone); the other two on two CPU cores in float32. docs/experiments/2026-11-27-tiny-v9.md has the figures.
set -euo pipefail
model=$1 runs=$2 photos=$3
source "$(dirname "${BASH_SOURCE[0]}")/tiny_phases.sh"
common+=(--set "$mix")
scales='scales={"fixed":{"4":0.7},"uniform":[1.0,4.0]}'
sharp=(--set loss_gan=0.3 --set losses.dists=6 --set losses.lpips_alex=3 --set lr_end=0.03 --set ema=0.99)

mkdir -p "$runs"
[ -d "$runs/folded" ] || "$python" scripts/adapters.py fold "$model" "$runs/folded"
phase whole 1 "$runs/folded" --set checkpoint_every=1000 --set crop_px=192 --set losses.dists=5 --set train=base --set batch=48 \
  --set steps=3600 --set lr=8e-4 --set warmup=150 --set lr_end=0.02 --set ema=0.998 --set seed=101 --set "$scales"
[ -d "$runs/split" ] || "$python" scripts/adapters.py split "$model" "$runs/whole/model" "$runs/split"
phase sharp 1 "$runs/split" "${sharp[@]}" --set checkpoint_every=100 --set crop_px=160 --set batch=6 --set steps=1000 --set lr=4e-4 \
  --set warmup=30 --set seed=111 --set "$scales" --set "init_discriminator=$runs/whole/model_discriminator.safetensors"
phase second 2 "$runs/sharp/model" "${sharp[@]}" --set checkpoint_every=50 --set crop_px=192 --set batch=3 --set overlap_px=96 \
  --set loss_crop_px=null --set init_adapter=from_stage_1 --set steps=350 --set lr=3e-4 --set warmup=20 --set seed=112 \
  --set "init_discriminator=$runs/sharp/model_discriminator.safetensors"
phase third 2 "$runs/second/model" --set checkpoint_every=50 --set crop_px=192 --set batch=3 --set overlap_px=96 --set loss_crop_px=null \
  --set init_adapter=keep --set steps=250 --set lr=2.5e-4 --set warmup=10 --set lr_end=0.03 --set ema=0.98 --set seed=113 \
  --set loss_gan=0.15 --set 'losses={"mae":1,"detail":1,"grid_4":24,"dists":5,"lpips_alex":2.5}' \
  --set "init_discriminator=$runs/second/model_discriminator.safetensors"
