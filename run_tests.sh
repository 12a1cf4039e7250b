#!/usr/bin/env bash
# Command 2: sets up as quickstart.sh does, then lint, types and tests. CI runs this file.
#
#   bash run_tests.sh              all of it, on at most four cores
#   bash run_tests.sh -k labels    arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")"

bash quickstart.sh --setup-only
# shellcheck source=/dev/null
source .venv/bin/activate
stamp=.venv/dev.sha256
wanted=$(python -c 'import hashlib; print(hashlib.sha256(open("pyproject.toml", "rb").read()).hexdigest())')
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "== installing ruff, mypy and pytest into .venv"
    python -m pip install --disable-pip-version-check --quiet -e '.[dev]'
    echo "$wanted" >"$stamp"
fi
echo "== ruff"
ruff format --check .
ruff check .
echo "== mypy"
mypy .
echo "== pytest"
# At most 4 processes, of up to 2 GB each. By number of tests, the files of one long test would come
# last, and all but one process would wait for them.
[ $# -gt 0 ] || set -- -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
python -m pytest "$@"
