#!/usr/bin/env bash
# train_tiny.sh RUNS [PHOTOS]: the embedded model from nothing, phase by phase; run it again to go on where it stopped.
# The step counts are those of version 1 (docs/experiments/2026-11-23-tiny-v1.md); more is better.
set -euo pipefail
runs=$1 photos=${2:-../shared/data/train}
tudsr=${TUDSR:-.venv/bin/tudsr}
# The package's own sample photos are not trained on.
export OMP_WAIT_POLICY=passive
common=(--data "$photos" --set val_count=12 --set checkpoint_every=100 --set
  'exclude=["spices-of-life","oakland-zoo-otters","lake-sherburne","roman-colosseum","motherboard-circuits","budgie-branch","perched-osprey"]')

phase() { # phase NAME STAGE FROM settings...
  local out=$runs/$1 stage=$2 from=$3
  shift 3
  [ -f "$out/model/tudsr.json" ] || "$tudsr" train --stage "$stage" --model "$from" --out "$out" --resume "${common[@]}" "$@"
}

[ -f "$runs/random/tudsr.json" ] || "$tudsr" models init tiny --random-weights --out "$runs/random"
phase prior 0 "$runs/random" --set steps=700 --set batch=12 --set warmup=50
# A cheap loss first: LPIPS on AlexNet costs a hundredth of DISTS on VGG16, and what it leaves behind, DISTS cleans up.
phase stage_1_cheap 1 "$runs/prior/model" --set steps=1500 --set batch=10 --set warmup=50 --set lr_end=0.65 \
  --set loss_gan=0 --set 'losses={"mae":1.0,"lpips_alex":1.5}'
phase stage_1 1 "$runs/stage_1_cheap/model" --set steps=1100 --set batch=6 --set warmup=30 --set lr=7e-4 --set lr_end=0.33
phase stage_2 2 "$runs/stage_1/model" --set steps=320 --set batch=3 --set warmup=20 --set lr=6e-4 --set lr_end=0.6 \
  --set init_discriminator="$runs/stage_1/model_discriminator.safetensors"
