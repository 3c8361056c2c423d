#!/usr/bin/env bash
# train_tiny.sh RUNS TEACHER PAIRS CAMERA [PHOTOS]: the embedded model from nothing, phase by phase; run it again to go on
# where it stopped. TEACHER, PAIRS and CAMERA hold pairs made by scripts/make_pairs.py from the same photos: with
# --teacher, without, and with --mix light=0.6 heavy=0.1 camera=0.3. The step counts are those of version 6
# (docs/experiments/2026-11-26-tiny-v6.md); train_tiny_7.sh goes on from there.
set -euo pipefail
runs=$1 teacher=$2 pairs=$3 camera=$4 photos=${5:-../shared/data/train}
bin=${BIN:-.venv/bin}
# The package's own sample photos are not trained on. The prior that ran, in version 1, knew no `exclude` yet and had seen
# them; it kept 16 photos for validation.
export OMP_WAIT_POLICY=passive
common=(--data "$photos" --set val_count=12 --set checkpoint_every=100 --set
  'exclude=["spices-of-life","oakland-zoo-otters","lake-sherburne","roman-colosseum","motherboard-circuits","budgie-branch","perched-osprey"]')

phase() { # phase NAME STAGE FROM settings...
  local out=$runs/$1 stage=$2 from=$3
  shift 3
  "$bin/tudsr" train --stage "$stage" --model "$from" --out "$out" --resume "${common[@]}" "$@"
}

[ -f "$runs/random/tudsr.json" ] || "$bin/tudsr" models init tiny --random-weights --out "$runs/random"
phase prior 0 "$runs/random" --set steps=700 --set batch=12 --set warmup=50

# Clean: the base learns to restore. What a teacher made of an LQ picture is one picture, so that plain distances sharpen
# without inventing a grid; photos first, since they take the net away from predicting noise.
mostly_x4=(--set 'scales={"fixed":{"4":0.7},"uniform":[1.0,4.0]}')
restore=(--set train=base --set loss_gan=0 --set 'losses={"mae":1,"detail":1}' --set batch=12 "${mostly_x4[@]}")
phase base_1 1 "$runs/prior/model" "${restore[@]}" --set "pairs=$pairs" --set steps=600 --set lr=6e-4 --set warmup=60 \
  --set ema=0.998 --set seed=11
phase base_2 1 "$runs/base_1/model" "${restore[@]}" --set "pairs=$teacher" --set steps=2800 --set lr=1e-3 --set warmup=30 \
  --set ema=0.996 --set seed=12
phase base_3 1 "$runs/base_2/model" "${restore[@]}" --set "pairs=$teacher" --set steps=4500 --set lr=1e-3 --set warmup=60 \
  --set ema=0.998 --set seed=21

mix() { # mix OUT STAGE SHARE MODEL OTHER: MODEL with a share of OTHER's adapter of that stage
  [ -f "$runs/$1/tudsr.json" ] ||
    "$bin/python" scripts/adapters.py mix "$runs/$4" "$runs/$5" "$runs/$1" --stage "$2" --share "$3"
}

# Sharp: the one-step GAN on true photos, in the adapters.
sharpen=(--set jitter_px=32 --set loss_gan=0.05 --set lr_d=3e-4 --set warmup=20)
stage_1=("${sharpen[@]}" "${mostly_x4[@]}" --set "pairs=$pairs" --set batch=8 --set ema=0.99)
stage_2=("${sharpen[@]}" --set batch=2 --set ema=0.98 --set loss_crop_px=128 --set loss_crops=2)
first=(--set lr=1e-3 --set 'losses={"mae":1,"detail":1,"grid_4":16,"dists":2,"lpips_alex":1}')
more=(--set lr=7e-4 --set 'losses={"mae":1,"detail":1,"grid_4":24,"dists":2.5,"lpips_alex":1}')
critic=model_discriminator.safetensors

phase stage_1 1 "$runs/base_3/model" "${stage_1[@]}" "${first[@]}" --set steps=900 --set seed=23
mix stage_1_mixed 1 0.8 base_3/model stage_1/model
phase stage_2 2 "$runs/stage_1_mixed" "${stage_2[@]}" "${first[@]}" --set steps=300 --set seed=24 \
  --set "init_discriminator=$runs/stage_1/$critic"
phase stage_1_more 1 "$runs/stage_1/model" "${stage_1[@]}" "${more[@]}" --set steps=1800 --set seed=31 \
  --set "init_discriminator=$runs/stage_1/$critic"
mix stage_1_more_mixed 1 0.9 base_3/model stage_1_more/model
mix both_more 2 1.0 stage_1_more_mixed stage_2/model
phase stage_2_more 2 "$runs/both_more" "${stage_2[@]}" "${more[@]}" --set init_adapter=keep \
  --set "init_discriminator=$runs/stage_1_more/$critic" --set steps=320 --set seed=32

# LoRA-1 goes into the base, which learns on as a whole, and what it learned comes out again as LoRA-1.
[ -f "$runs/folded/tudsr.json" ] || "$bin/python" scripts/adapters.py fold "$runs/stage_2_more/model" "$runs/folded"
phase whole 1 "$runs/folded" "${sharpen[@]}" "${mostly_x4[@]}" --set "pairs=$camera" --set train=base --set batch=6 \
  --set ema=0.995 --set warmup=40 --set lr=5e-4 --set loss_gan=0.1 --set steps=1500 --set seed=41 \
  --set 'losses={"mae":1,"detail":1,"grid_4":24,"dists":4,"lpips_alex":1}'
[ -f "$runs/version_6/tudsr.json" ] ||
  "$bin/python" scripts/adapters.py split "$runs/stage_2_more/model" "$runs/whole/model" "$runs/version_6"
