#!/usr/bin/env bash
# tiny.sh RUNS: go on with the embedded model. LoRA-1 goes into the base, which learns on as a whole ($WHOLE steps); what it
# learned comes out again, and LoRA-1 ($FIRST steps) and LoRA-2 ($SECOND steps) learn on. RUNS/second/model is the result.
set -euo pipefail
runs=$1
source scripts/gpu/setup.sh
tiny=src/tudsr/weights/tiny critic=model_discriminator.safetensors
adapters() { PYTHONPATH="$PYTHONPATH" python3 scripts/adapters.py "$@"; }
# The package's own sample photos are not trained on.
common=(--data "$store/photos" --set val_count=12 --set val_every=100000 --set checkpoint_every=100000 --set "workers=${WORKERS:-15}"
  --set precision=bf16 --set jitter_px=32 --set loss_gan=0.1 --set lr_d=3e-4 --set 'discriminator_options={"width":40}'
  --set 'degradation={"weights":{"light":0.6,"heavy":0.1,"camera":0.3}}' --set
  'losses={"mae":0.5,"detail":0.5,"grid_4":24,"dists":4,"lpips_alex":2}' --set
  'exclude=["spices-of-life","oakland-zoo-otters","lake-sherburne","roman-colosseum","motherboard-circuits","budgie-branch","perched-osprey"]')
stage_1=(--set crop_px=192 --set "batch=${BATCH:-32}" --set 'scales={"fixed":{"4":0.7},"uniform":[1.0,4.0]}')
stage_2=(--set crop_px=384 --set batch=8 --set loss_crop_px=192 --set loss_crops=4 --set init_adapter=keep)

phase() { # phase NAME STAGE FROM settings...
  local out=$runs/$1 stage=$2 from=$3 begun=$SECONDS
  shift 3
  python3 -m tudsr train --stage "$stage" --model "$from" --out "$out" --resume "${common[@]}" "$@"
  echo "$out: $((SECONDS - begun)) s"
}

mkdir -p "$runs"
[ -d "$runs/folded" ] || adapters fold "$tiny" "$runs/folded"
phase whole 1 "$runs/folded" "${stage_1[@]}" --set train=base --set "steps=$WHOLE" --set "lr=${LR:-8e-4}" --set warmup=200 \
  --set lr_end=0.03 --set ema=0.998 --set seed=51
[ -d "$runs/split" ] || adapters split "$tiny" "$runs/whole/model" "$runs/split"
phase first 1 "$runs/split" "${stage_1[@]}" --set "steps=$FIRST" --set lr=2e-4 --set warmup=50 --set ema=0.99 --set seed=52 \
  --set "init_discriminator=$runs/whole/$critic"
phase second 2 "$runs/first/model" "${stage_2[@]}" --set "steps=$SECOND" --set lr=4e-4 --set warmup=50 --set ema=0.99 --set seed=53 \
  --set "init_discriminator=$runs/first/$critic"
