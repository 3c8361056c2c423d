#!/usr/bin/env bash
# train_tiny.sh RUNS TEACHER [PHOTOS]: the embedded model from nothing, phase by phase; run it again to go on where it
# stopped. TEACHER holds pairs made by scripts/make_pairs.py --teacher from the same photos. The step counts are those of version
# 2 (docs/experiments/2026-11-23-tiny-v2.md); more is better. Where no lr_end is given, the preset brings the rate down;
# version 2's phases of that kind were cut off before.
set -euo pipefail
runs=$1 teacher=$2 photos=${3:-../shared/data/train}
bin=${BIN:-.venv/bin}
# The package's own sample photos are not trained on.
export OMP_WAIT_POLICY=passive
common=(--data "$photos" --set val_count=12 --set checkpoint_every=100 --set
  'exclude=["spices-of-life","oakland-zoo-otters","lake-sherburne","roman-colosseum","motherboard-circuits","budgie-branch","perched-osprey"]')

phase() { # phase NAME STAGE FROM settings...
  local out=$runs/$1 stage=$2 from=$3
  shift 3
  [ -f "$out/model/tudsr.json" ] || "$bin/tudsr" train --stage "$stage" --model "$from" --out "$out" --resume "${common[@]}" "$@"
}

[ -f "$runs/random/tudsr.json" ] || "$bin/tudsr" models init tiny --random-weights --out "$runs/random"
phase prior 0 "$runs/random" --set steps=700 --set batch=12 --set warmup=50

# Clean: what a teacher made of an LQ picture is one picture, so that plain distances sharpen without inventing a grid.
like_teacher=(--set "pairs=$teacher" --set loss_gan=0 --set ema=0.995 --set warmup=30)
phase clean_1 1 "$runs/prior/model" "${like_teacher[@]}" --set steps=600 --set batch=12 --set lr=2e-3 --set 'losses={"mae":1}'
phase clean_2 1 "$runs/clean_1/model" "${like_teacher[@]}" --set steps=300 --set batch=8 --set lr=1.5e-3 --set seed=1 \
  --set 'losses={"mae":2,"dists":1}'
phase clean_3 1 "$runs/clean_2/model" "${like_teacher[@]}" --set steps=800 --set batch=12 --set lr=2e-3 --set seed=3 \
  --set 'losses={"mae":1,"detail":4}'

# Sharp: the one-step GAN on true photos. Between both lies what neither reaches alone.
phase sharp 1 "$runs/clean_2/model" --set steps=500 --set batch=8 --set warmup=30 --set lr=1.5e-3 --set lr_d=4e-4 \
  --set ema=0.995 --set seed=2 --set loss_gan=0.1 --set 'losses={"mae":1,"dists":2,"lpips_alex":0.5}'
[ -f "$runs/mixed/tudsr.json" ] || "$bin/python" scripts/interpolate.py "$runs/clean_3/model" "$runs/sharp/model" \
  "$runs/mixed" --stage 1 --share 0.6
phase stage_1 1 "$runs/mixed" --set steps=330 --set batch=8 --set warmup=10 --set lr=8e-4 --set lr_end=0.03 --set lr_d=3e-4 \
  --set ema=0.99 --set seed=4 --set loss_gan=0.05 --set 'losses={"mae":1,"detail":1,"dists":2,"lpips_alex":0.5}' \
  --set "init_discriminator=$runs/sharp/model_discriminator.safetensors"
[ -f "$runs/stage_1_mixed/tudsr.json" ] || "$bin/python" scripts/interpolate.py "$runs/clean_3/model" "$runs/stage_1/model" \
  "$runs/stage_1_mixed" --stage 1 --share 0.65
phase stage_2 2 "$runs/stage_1_mixed" --set steps=300 --set batch=2 --set warmup=10 --set lr=8e-4 --set lr_end=0.03 \
  --set lr_d=3e-4 --set ema=0.99 --set seed=5 --set loss_gan=0.05 --set loss_crop_px=128 --set loss_crops=2 \
  --set 'losses={"mae":1,"detail":1,"dists":2,"lpips_alex":0.5}' \
  --set "init_discriminator=$runs/stage_1/model_discriminator.safetensors"
[ -f "$runs/stage_2_mixed/tudsr.json" ] || "$bin/python" scripts/interpolate.py "$runs/stage_2/model" "$runs/clean_3/model" \
  "$runs/stage_2_mixed" --stage 2 --other-stage 1 --share 0.3
