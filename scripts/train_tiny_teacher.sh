#!/usr/bin/env bash
# train_tiny_teacher.sh MODEL CRITIC RUNS PHOTOS TEACHER: what may make a better version of the embedded model of an
# earlier one (train_tiny_7.sh made CRITIC, the discriminator of its phase «first»); not run to its end yet. TEACHER is
# RealESRGAN_x4plus's weights (BSD-3-Clause) as safetensors, which spandrel reads (see make_pairs.py). LoRA-1 goes into
# the base, which learns on as a whole from the teacher's pictures and from photos; what it learned comes out again, and
# LoRA-2 learns on photos. Finished phases are not repeated. For a GPU: some two minutes for the pairs, 0.19 s a step of
# «whole» on an H100.
set -euo pipefail
model=$1 critic=$2 runs=$3 photos=$4 teacher=$5
source "$(dirname "${BASH_SOURCE[0]}")/tiny_phases.sh"
common+=(--set checkpoint_every=200 --set crop_px=192)

mkdir -p "$runs"
[ -d "$runs/folded" ] || "$python" scripts/adapters.py fold "$model" "$runs/folded" &
fold=$!
if [ ! -d "$runs/pairs" ]; then
  rm -rf "$runs/pairs.part"
  "$python" scripts/make_pairs.py "$photos" "$runs/pairs.part" --teacher "$teacher" --low-sigma 6 --true-share 0.6 \
    --mix light=0.6 heavy=0.1 camera=0.3 --exclude "${mine[@]}" --crops "${CROPS:-8}" --seed 91 --workers "$workers"
  mv "$runs/pairs.part" "$runs/pairs"
fi
wait "$fold"
[ "${STOP_AFTER:-}" != pairs ] || exit 0
phase whole 1 "$runs/folded" --set "pairs=$runs/pairs" --set train=base --set "batch=${BATCH:-64}" --set "steps=${STEPS:-2700}" \
  --set lr=8e-4 --set warmup=150 --set lr_end=0.02 --set ema=0.998 --set seed=91 \
  --set 'scales={"fixed":{"4":0.7},"uniform":[1.5,4.0]}' --set "init_discriminator=$critic"
[ -d "$runs/split" ] || "$python" scripts/adapters.py split "$model" "$runs/whole/model" "$runs/split"
[ "${STOP_AFTER:-}" != split ] || exit 0
phase second 2 "$runs/split" --set "batch=${BATCH_2:-32}" --set overlap_px=96 --set loss_crop_px=null --set init_adapter=from_stage_1 \
  --set "$mix" --set "steps=${STEPS_2:-350}" --set lr=4e-4 \
  --set warmup=20 --set lr_end=0.03 --set ema=0.99 --set seed=92 \
  --set "init_discriminator=$runs/whole/model_discriminator.safetensors"
