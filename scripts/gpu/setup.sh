# Sourced by the other scripts: merges the parts of .pack that came along with those that came before, and puts the
# carried wheels and this checkout on the path. The machine's own packages stay as they are.
store=${TUDSR_STORE:-/tmp/tudsr-pack}
mkdir -p "$store"
for part in .pack/part-*; do
  if [ -d "$part" ]; then cp -r "$part/." "$store"; fi
done
if [ ! -d "$store/site" ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$store/site" "$store"/wheels/*.whl
fi
export PYTHONPATH="$PWD/src:$store/site" TUDSR_WEIGHTS="$store/weights" TUDSR_COMMIT=$(cat "$store/commit") PYTHONUNBUFFERED=1
