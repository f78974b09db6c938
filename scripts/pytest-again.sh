#!/usr/bin/env bash
# pytest with the arguments given; then, if tests of three files at most failed, those tests once more, by themselves. They are named at the end,
# whatever became of them: docs/adr/0026-a-second-try-alone.md says why. Exit status: pytest's.
set -euo pipefail

most_files=3
python=${PYTHON:-.venv/bin/python}
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT

status=0
"$python" -m pytest -o cache_dir="$cache" "$@" || status=$?
((status == 1)) || exit "$status"  # 1: tests failed, and nothing else is wrong

failed=$("$python" -c 'import json, sys; print(*json.load(open(sys.argv[1])), sep="\n")' "$cache/v/cache/lastfailed")
if (($(cut -d: -f1 <<<"$failed" | sort -u | wc -l) > most_files)); then
    exit 1
fi
printf '\n%s\n' "once more, by themselves:" "$failed"
status=0
BANGER_REQUIRE_TESTS='' "$python" -m pytest -o cache_dir="$cache" "$@" -n 0 --last-failed --last-failed-no-failures none || status=$?
((status == 0)) && verdict="failed beside others, passed alone" || verdict="failed twice, or others of these did"
while read -r test; do
    echo "UNSTEADY: $verdict: $test"
done <<<"$failed"
exit "$status"
