#!/usr/bin/env bash
# Wheel and sdist into build/dist; programs that run from this checkout into build/bin.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
mkdir -p build/bin build/dist
if command -v uv > /dev/null; then
    uv build -q --out-dir build/dist
else
    .venv/bin/pip wheel -q --disable-pip-version-check --no-deps --wheel-dir build/dist .
fi
for name in banger bangerd banger-helper; do
    printf '#!/bin/sh\nexec "%s/.venv/bin/%s" "$@"\n' "$root" "$name" > "build/bin/$name"
    chmod 755 "build/bin/$name"
done
ls build/bin build/dist
