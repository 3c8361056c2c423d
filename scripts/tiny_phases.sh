# Sourced by the recipes of the embedded model since version 7, with RUNS in $runs and the photos in $photos: what their
# trainings have in common, and `phase NAME STAGE FROM settings...`, which does not repeat a finished one.
python=${PYTHON:-.venv/bin/python} workers=${WORKERS:-1}
# The package's own sample photos are not trained on.
mine=(spices-of-life oakland-zoo-otters lake-sherburne roman-colosseum motherboard-circuits budgie-branch perched-osprey)
exclude=$(printf '"%s",' "${mine[@]}")
mix='degradation={"weights":{"light":0.6,"heavy":0.1,"camera":0.3}}'
common=(--data "$photos" --set val_count=12 --set val_every=100000 --set "workers=$workers" --set jitter_px=32
  --set loss_gan=0.1 --set lr_d=3e-4 --set 'discriminator_options={"width":40}'
  --set 'losses={"mae":0.5,"detail":0.5,"grid_4":24,"dists":4,"lpips_alex":2}' --set "exclude=[${exclude%,}]")

phase() {
  local out=$runs/$1 stage=$2 from=$3
  shift 3
  # A run that is finished is left as it is; a stopped one, which has a model too, goes on.
  "$python" -m tudsr train --stage "$stage" --model "$from" --out "$out" --resume "${common[@]}" "$@"
}
