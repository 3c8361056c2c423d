#!/usr/bin/env bash
# targets.sh [OUT]: what docs/benchmarks/targets.md asks of a CPU, in one run; run it again to go on where it stopped.
# Nothing should run beside it. On two cores with fast bf16 it takes some two hours; QUICK=1 leaves out what
# takes most of that: sd21 at 2048², the gigapixel (20 GB in WORK) and chunk memory.
# SD21: a folder by `tudsr models init sd21 --random-weights --dtype bf16` (else one is made, 1.9 GB).
# PEERS: a folder of peers' .safetensors, PEERS_PYTHON: a Python with spandrel, torch and this package; else no peers.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/benchmarks} failed=0
work=${WORK:-$out/work} python=${PYTHON:-.venv/bin/python}
mkdir -p "$out" "$work"
commit=$("$python" -c 'from tudsr.machine import commit; print(commit())')

step() { # step NAME SCRIPT options...
  grep -qs "\"commit\": \"$commit\"" "$out/$1.json" && return  # of another commit it is no part of this run
  local begun=$SECONDS
  "${with:-$python}" "benchmarks/$2" "${@:3}" --out "$out/$1.json" > "$out/$1.log" 2>&1 \
    && echo "$1: $((SECONDS - begun)) s" && return
  failed=1
  echo "$1: failed after $((SECONDS - begun)) s; see $out/$1.log"
}

step tiny-256-x8 upscale.py --side 256 --scale 8
step tiny-256-x4 upscale.py --side 256 --scale 4
for weights in ${PEERS:+"$PEERS"/*.safetensors}; do
  with=${PEERS_PYTHON:-$python} step "peer-time-$(basename "$weights" .safetensors)" peer_time.py "$weights" --side 256
done
step profile-tiny-256-x4 profile_ops.py --side 256 --scale 4
step profile-tiny-256-x8 profile_ops.py --side 256 --scale 8
step memory-tiny memory.py --strict --work "$work" \
  --runs 768x512x4@2GB,1500x1000x4@900MB,2048x2048x4@1500MB,768x512x4@700MB!
step ray-throughput ray_throughput.py

model=${SD21:-$work/sd21}
if [ -z "${SD21:-}" ] && [ ! -f "$model/tudsr.json" ]; then
  rm -rf "$model"  # what is left of an init that was cut off; tudsr.json is written last
  "$python" -m tudsr models init sd21 --random-weights --dtype bf16 --out "$model" || failed=1
fi
step sd21-128-x8 upscale.py --model "$model" --side 128 --scale 8 --runs 1 --warm 1
step sd21-128-x8-plain plain.py --model "$model" --side 128 --scale 8 --runs 1 --warm 1
step profile-sd21-128-x4 profile_ops.py --model "$model" --side 128 --scale 4
step memory-sd21 memory.py --strict --work "$work" --model "$model" --runs 128x128x8@8GB,128x128x8@5GB
if [ -z "${QUICK:-}" ]; then
  step memory-tiny-giga memory.py --strict --work "$work" --runs 1000x1000x4@2GB,8192x8192x4@2GB
  step chunk-memory chunk_memory.py
  step sd21-256-x8 upscale.py --model "$model" --side 256 --scale 8 --runs 1 --warm 1
  step sd21-256-x8-plain plain.py --model "$model" --side 256 --scale 8 --runs 1 --warm 1
fi
exit "$failed"
