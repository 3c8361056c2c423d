#!/usr/bin/env bash
# train.sh RUNS STAGE MODEL [--set key=value ...]: train one stage of a model, or go on with it, within $LIMIT seconds.
set -euo pipefail
runs=$1 stage=$2 model=$3
shift 3
source scripts/gpu/setup.sh
timeout --signal=INT "${LIMIT:-560}" python3 -m tudsr train --stage "$stage" --model "$model" --data "$store/photos" \
  --out "$runs/stage_$stage" --resume --set workers=12 --set checkpoint_every=100 "$@" || test $? -eq 124
