# Sourced by the benchmarks, after setup.sh and with OUT in $out: a model of TUDSR-S shapes in $model, made where it is
# not there yet, and `step NAME arguments...`, which runs Python for at most $EACH seconds and notes a failure in $failed.
failed=0
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
