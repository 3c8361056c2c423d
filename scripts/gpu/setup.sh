# Sourced by the other scripts: merges the parts of .pack that came along with those that came before, and puts the
# carried wheels and this checkout on the path. The machine's own packages stay as they are. The commit is the packed one
# where none is given: the tree that came along may be newer.
store=${TUDSR_STORE:-/tmp/tudsr-pack}
mkdir -p "$store"
for part in .pack/part-*; do
  if [ -d "$part" ]; then cp -r "$part/." "$store"; fi
done
if [ ! -d "$store/site" ]; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$store/site" "$store"/wheels/*.whl
fi
export PYTHONPATH="$PWD/src:$store/site" TUDSR_WEIGHTS="$store/weights" PYTHONUNBUFFERED=1
export TUDSR_COMMIT="${TUDSR_COMMIT:-$(cat "$store/commit")}"
