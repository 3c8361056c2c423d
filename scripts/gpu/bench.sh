#!/usr/bin/env bash
# bench.sh OUT: TUDSR-S shapes with random weights, JSON in OUT: seconds and memory of 128² → 512² and 256² → 2048², the
# latter within 8 and 4 GB too, where the time goes, and training steps of both stages. What fails does not stop the
# rest; ends with 1 where something failed, a run was refused or went above its budget.
set -uo pipefail
out=$1 failed=0
source scripts/gpu/setup.sh
mkdir -p "$out"
model=${MODEL:-$store/sd21}

step() {
  local begun=$SECONDS name=$1
  shift
  timeout "${EACH:-90}" python3 "$@" > "$out/$name.log" 2>&1 && echo "$name: $((SECONDS - begun)) s" && return
  failed=1
  echo "$name: failed after $((SECONDS - begun)) s"
  tail -n 15 "$out/$name.log"
}

if [ ! -f "$model/tudsr.json" ]; then  # it is written last
  [ -z "${MODEL:-}" ] || { echo "MODEL=$MODEL: holds no tudsr.json"; exit 1; }
  rm -rf "$model"  # what is left of an init that was cut off
  EACH=${EACH:-240} step init -m tudsr models init sd21 --random-weights --out "$model"
fi
upscale() { # upscale SIDE SCALE NAME options...
  step "$1-x$2$3" benchmarks/upscale.py --model "$model" --side "$1" --scale "$2" --runs 1 --warm 7 "${@:4}" \
    --out "$out/sd21-$1-x$2$3.json"
}

upscale 128 4 -graphs --options '{"graphs": true}'
upscale 256 8 -graphs --options '{"graphs": true, "batch": 1}'
upscale 256 8 ''
step profile benchmarks/profile_ops.py --model "$model" --side 256 --scale 8 --out "$out/sd21-profile-256-x8.json"
for stage in 1 2; do  # the loop as in the paper, and what is done survives what is not
  EACH=${EACH:-150} step "train-$stage" benchmarks/train_step.py --model "$model" --stages "$stage" --steps 8 --most-mb 24000 \
    --set 'discriminator_options={"weights":"random"}' --set loop=paper --set loss_crop_px=null \
    --out "$out/sd21-train-step-$stage.json"
done
step memory benchmarks/memory.py --strict --model "$model" --runs 256x256x8@8GB,256x256x8@4GB --out "$out/sd21-memory.json"
exit "$failed"
