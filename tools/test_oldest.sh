#!/usr/bin/env bash
# test_oldest.sh PYTHON FOLDER: install the oldest allowed version of every dependency into FOLDER and run the tests.
#
# OVERRIDES: a file of requirements that replace those of pyproject.toml, for packages whose oldest version is not to be had
# (torch's without CUDA). PYTEST_OPTIONS: which tests, by default all.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1
folder=$2
"$python" -m venv "$folder/tool"
"$folder/tool/bin/python" -m pip install --quiet uv
"$python" -m venv "$folder/venv"
# The lowest direct versions; what those depend on themselves is taken new, as their own authors leave it open.
"$folder/tool/bin/uv" pip compile --quiet --python "$folder/venv/bin/python" --resolution lowest-direct --extra test \
    ${OVERRIDES:+--override "$OVERRIDES"} --output-file "$folder/requirements.txt" pyproject.toml
"$folder/venv/bin/python" -m pip install --quiet --requirement "$folder/requirements.txt"
"$folder/venv/bin/python" -m pip install --quiet --no-deps --editable .
"$folder/venv/bin/python" -m pytest -n "${JOBS:-auto}" --dist loadfile ${PYTEST_OPTIONS:-}
