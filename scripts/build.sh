#!/usr/bin/env bash
# Manual pages into build/man, wheel (with them) and sdist into build/dist; programs that run from this checkout into build/bin.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
rm -rf build/dist build/bin build/man
mkdir -p build/dist build/bin
.venv/bin/python scripts/man_pages.py build/man
.venv/bin/python -m hatchling build -d build/dist
for name in banger bangerd banger-helper; do
    printf '#!/bin/sh\nexec "%s/.venv/bin/%s" "$@"\n' "$root" "$name" > "build/bin/$name"
    chmod 755 "build/bin/$name"
done
printf '%s\n' build/bin/* build/dist/*
