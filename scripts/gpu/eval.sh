#!/usr/bin/env bash
# eval.sh OUT MODEL: one report per carried set, against bicubic and the peers' outputs (peers.sh), in float32.
set -uo pipefail
out=$1 model=$2
source scripts/gpu/setup.sh
full=psnr,ssim,lpips,lpips_vgg,dists,niqe,lr_consistency

report() { # report SET SCALE METRICS options...
  local name=$1-x$2 others=()
  for peer in realesr-general-x4v3 realesrgan-x4plus; do
    if [ -d "$store/outputs/$peer/$name" ]; then others+=(--outputs "$peer=$store/outputs/$peer/$name"); fi
  done
  [ -d "$store/sets/$1/gt" ] && others+=(--gt "$store/sets/$1/gt")
  python3 -m tudsr eval --lq "$store/sets/$1/lq" --scale "$2" --model "$model" --metrics "$3" --dtype fp32 --threads 3 \
    "${others[@]}" "${@:4}" --out "$out/$name" > "$out/$name.log" 2>&1 || tail -n 5 "$out/$name.log"
  echo "$name: $SECONDS s"
}

mkdir -p "$out"
report realsr 4 "$full" --ways M4,M2N2 &
report kodak 4 "$full" --ways M4,M2N2 &
report clic 8 "$full" --ways M8,N8,M4N2 &
report real-lr 4 niqe,lr_consistency --ways M4,M2N2 &
report real-lr 8 niqe,lr_consistency --ways M4N2 &
wait
