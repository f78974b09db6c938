#!/usr/bin/env bash
# A live smoke run of the void image: a fresh VM of it boots runit, answers by SSH and by its agent, has mise and opencode where
# the image has them, and is deleted again. The last line and the exit status say it all: "[verify-void] ok" and 0, or
# "[verify-void] FAILED: why" and 1. Everything has a deadline.
#
#   scripts/verify-void.sh [--image NAME] [--vmm NAME] [--timeout SECONDS] [--with-tools]
#
# The image is void-exp unless told otherwise and must be there: `banger image lock void`, then `banger image build void`. It runs on your
# daemon. --with-tools fails where mise or opencode is missing; else they are skipped, and that is said. $BANGER names the program.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/smoke-common.sh
. "$root/scripts/smoke-common.sh"
image=void-exp vmm='' patience=300 tools=no
while [ $# -gt 0 ]; do
    case $1 in
        --image) image=${2:?--image needs a name}; shift ;;
        --vmm) vmm=${2:?--vmm needs a name}; shift ;;
        --timeout) patience=${2:?--timeout needs seconds}; shift ;;
        --with-tools) tools=yes ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; echo "[verify-void] FAILED: unknown argument $1"; exit 2 ;;
    esac
    shift
done
banger=$(find_banger "$root")
name=verify-void-$(od -An -N3 -tx1 /dev/urandom | tr -d ' ')
step=start made=no
export NO_COLOR=1

say() { printf '[verify-void] %s\n' "$*"; }
fail() {
    trap - EXIT INT TERM
    if [ "$made" = yes ]; then
        { timeout 30 "$banger" vm show "$name" && timeout 30 "$banger" vm logs "$name"; } 2>&1 < /dev/null | printable | tail -n 100 >&2 || true
        timeout 120 "$banger" vm delete "$name" > /dev/null 2>&1 < /dev/null || true
    fi
    say "FAILED: $*"
    exit 1
}
trap 'fail "$step: interrupted"' INT TERM
trap '[ $? = 0 ] || fail "$step: broke off"' EXIT

# run SECONDS COMMAND…: its output in $out; fails this run if it fails or does not end in time.
out=''
run() {
    local seconds=$1 status=0
    shift
    out=$(timeout --kill-after=5 "$seconds" "$@" < /dev/null) || status=$?
    [ "$status" = 0 ] || fail "$step: status $status: ${*##*/}"
}
inside() { run "$patience" "$banger" vm exec "$name" -- "$@"; }
has() { timeout 60 "$banger" vm exec "$name" -- test -e "$1" < /dev/null; }

step="image $image"
command -v "$banger" > /dev/null || fail "$step: $banger is not there; set BANGER, or run: make build"
run 60 "$banger" image show "$image" --format json
case $out in
    *'"distribution": "void"'*) ;;
    *) fail "$step: it is not Void; build it: $banger image build void" ;;
esac
say "$step"

step="create $name"
options=(--name "$name" --image "$image" --memory 1G --work-size 2G --timeout "$patience")
[ -z "$vmm" ] || options+=(--vmm "$vmm")
made=yes
run $((patience + 60)) "$banger" vm create "${options[@]}" --format name
say "$step: ready"

step="ssh, agent"
run "$patience" "$banger" vm ssh "$name" -- cat /proc/1/comm
[ "$(printf '%s' "$out" | printable)" = runit ] || fail "$step: PID 1 is $(printf '%s' "$out" | printable | head -c 100)"
by_ssh=$out
inside cat /proc/1/comm
[ "$out" = "$by_ssh" ] || fail "$step: by its agent PID 1 is $(printf '%s' "$out" | printable | head -c 100)"
inside grep -q ' /root ext4 ' /proc/mounts
say "$step: both say that PID 1 is runit, the work disk is mounted"

# check PATH WORDS…: run WORDS if the image has PATH.
check() {
    local path=$1
    shift
    if has "$path"; then
        inside "$@"
        say "$step: $(printf '%s' "$out" | printable | head -n 1 | cut -c 1-120)"
    elif [ "$tools" = yes ]; then
        fail "$step: the image has no $path"
    else
        say "$step: skipped, the image has no $path"
    fi
}
step=mise
check /usr/local/bin/mise mise --version
step=opencode
check /usr/local/bin/opencode opencode --version
if has /etc/sv/opencode; then
    healthy 60
    inside sv status /var/service/opencode
    say "$step: $(printf '%s' "$out" | printable | head -n 1 | cut -c 1-120)"
    step="opencode, killed"
    # shellcheck disable=SC2016  # the guest expands it
    inside sh -c '
        pid() { cat /run/runit/supervise.opencode/pid; }
        first=$(pid)
        kill -9 "$first"
        for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            sleep 1
            now=$(pid)
            [ -z "$now" ] || [ "$now" = "$first" ] || { echo "$first, then $now"; exit 0; }
        done
        exit 1'
    say "$step: started again by runit, pid $(printf '%s' "$out" | printable)"
    step=opencode
fi

step="health"
healthy "$patience" # what was killed takes its time again
say "$step"

step="delete"
run 120 "$banger" vm delete "$name"
made=no
if timeout 30 "$banger" vm show "$name" > /dev/null 2>&1 < /dev/null; then fail "$step: it is still there"; fi
say "$step"
trap - EXIT INT TERM
say "ok"
