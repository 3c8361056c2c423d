# Sourced by train.sh and bench.sh: carried wheels and this checkout on the path, nothing installed for good.
site=$(mktemp -d)
if ls .pack/wheels/*.whl >/dev/null 2>&1; then
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" .pack/wheels/*.whl
fi
export PYTHONPATH="$PWD/src:$site" TUDSR_WEIGHTS="$PWD/.pack/weights" PYTHONUNBUFFERED=1
