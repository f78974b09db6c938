#!/usr/bin/env bash
# Fuzz what banger reads and did not write; options are those of scripts/fuzz.py. The fuzzing engine is installed into .venv at the first run.
set -euo pipefail

cd "$(dirname "$0")/.."
bash scripts/bootstrap.sh run
if ! .venv/bin/python -c 'import atheris' 2> /dev/null; then
    printf 'installing the fuzzing engine into .venv\n' >&2
    if command -v uv > /dev/null; then
        uv pip install -q --python .venv/bin/python --require-hashes -r requirements/fuzz.txt
    else
        .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements/fuzz.txt
    fi
fi
exec .venv/bin/python scripts/fuzz.py "$@"
