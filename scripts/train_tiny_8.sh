#!/usr/bin/env bash
# train_tiny_8.sh VERSION_7 CRITIC RUNS PHOTOS: how version 8 of the embedded model was made of version 7 (train_tiny_7.sh
# made that, and CRITIC, the discriminator of its phase «second»). Only LoRA-2 learns. Finished phases are not repeated.
# On two CPU cores in float32, 2.7 s a step; docs/experiments/2026-11-27-tiny-v8.md has the figures.
set -euo pipefail
model=$1 critic=$2 runs=$3 photos=$4
python=${PYTHON:-.venv/bin/python}

phase() { # phase NAME FROM CRITIC settings...
  local out=$runs/$1 from=$2 critic=$3
  shift 3
  # A run that is finished is left as it is; a stopped one, which has a model too, goes on. The package's own sample
  # photos are not trained on. An overlap as large as a chunk makes one window of the whole crop.
  "$python" -m tudsr train --stage 2 --model "$from" --data "$photos" --out "$out" --resume \
    --set val_count=12 --set val_every=100000 --set checkpoint_every=100 --set "workers=${WORKERS:-1}" --set jitter_px=32 \
    --set loss_gan=0.1 --set lr_d=3e-4 --set 'discriminator_options={"width":40}' --set "init_discriminator=$critic" \
    --set 'losses={"mae":0.5,"detail":0.5,"grid_4":24,"dists":4,"lpips_alex":2}' --set init_adapter=keep \
    --set 'degradation={"weights":{"light":0.6,"heavy":0.1,"camera":0.3}}' --set crop_px=192 --set batch=3 \
    --set overlap_px=96 --set loss_crop_px=null --set warmup=20 --set lr_end=0.03 "$@" --set \
    'exclude=["spices-of-life","oakland-zoo-otters","lake-sherburne","roman-colosseum","motherboard-circuits","budgie-branch","perched-osprey"]'
}

phase second "$model" "$critic" --set steps=450 --set lr=3e-4 --set ema=0.99 --set seed=94
phase second_2 "$runs/second/model" "$runs/second/model_discriminator.safetensors" --set steps=1200 --set lr=2.5e-4 \
  --set ema=0.995 --set seed=95
