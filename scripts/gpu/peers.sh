#!/usr/bin/env bash
# peers.sh: what the carried peers make of the carried sets, once, into the store.
set -euo pipefail
source scripts/gpu/setup.sh
for weights in "$store"/peers/*.safetensors; do
  peer=$(basename "$weights" .safetensors)
  for case in realsr:4 kodak:4 real-lr:4 real-lr:8 clic:8; do
    set=${case%:*} scale=${case#*:} out=$store/outputs/$peer/${case/:/-x}
    [ -d "$out" ] || python3 scripts/gpu/peers.py "$weights" "$store/sets/$set/lq" "$out" --scale "$scale"
  done
done
