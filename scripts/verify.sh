#!/usr/bin/env bash
# A live smoke run: a daemon, a VM that becomes ready, SSH, a forward, the way outside, health, restart, delete, and nothing left.
# The last line and the exit status say it all: "[verify] ok" and 0, or "[verify] FAILED: why" and 1; what is needed to find out
# why stands before it. Everything has a deadline.
#
#   scripts/verify.sh [--image NAME] [--vmm NAME] [--network MODE] [--timeout SECONDS] [--in-place] [--keep]
#
# It has state and runtime directories of its own, with the images of your own state directory; --in-place uses your daemon and
# directories instead. --keep leaves its directories. $BANGER names the program, else it is this checkout's or that of PATH.
# $BANGER_VERIFY_OUTSIDE are the HOST:PORT that are tried from inside, the first that this host itself reaches.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=scripts/smoke-common.sh
. "$root/scripts/smoke-common.sh"
image='' vmm='' network='' patience=300 in_place=no keep=no
while [ $# -gt 0 ]; do
    case $1 in
        --image) image=${2:?--image needs a name}; shift ;;
        --vmm) vmm=${2:?--vmm needs a name}; shift ;;
        --network) network=${2:?--network needs a mode}; shift ;;
        --timeout) patience=${2:?--timeout needs seconds}; shift ;;
        --in-place) in_place=yes ;;
        --keep) keep=yes ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; echo "[verify] FAILED: unknown argument $1"; exit 2 ;;
    esac
    shift
done
banger=$(find_banger "$root")
read -r -a outside <<< "${BANGER_VERIFY_OUTSIDE:-1.1.1.1:443 9.9.9.9:443 www.debian.org:80}"
name=verify-$(od -An -N3 -tx1 /dev/urandom | tr -d ' ')
here='' id='' operation='' child='' started_daemon=no step=start
scratch=$(mktemp -d)
state=/nonexistent runtime=/nonexistent
export NO_COLOR=1
trap '' PIPE # who reads this may go: what was made is taken back all the same

say() { printf '[verify] %s\n' "$*"; }
tell() { printf '%s\n' "$*" >&2; }

fail() {
    trap - EXIT INT TERM
    set +e
    [ -z "$child" ] || kill "$child"
    tell ""
    tell "step: $step"
    [ "$state" = /nonexistent ] || dump >&2
    finish >&2
    say "FAILED: $*"
    exit 1
}
trap 'fail "$step: interrupted"' INT TERM
trap '[ $? = 0 ] || fail "$step: broke off"' EXIT

# run SECONDS COMMAND…: its output in $out; fails this run if it fails or does not end in time. It is waited for, so that an
# interruption is heard at once.
out=''
run() {
    local seconds=$1 status=0
    shift
    timeout --kill-after=5 "$seconds" "$@" > "$scratch/out" 2> "$scratch/words" < /dev/null &
    child=$!
    wait "$child" || status=$?
    child=''
    out=$(cat "$scratch/out")
    if [ "$status" -ne 0 ]; then
        printable < "$scratch/words" >&2
        case $status in
            124 | 137) fail "$step: no end within $seconds s: ${*##*/}" ;;
            *) fail "$step: status $status: ${*##*/}" ;;
        esac
    fi
}

# field KEY INDENT: the value of a key of the API's JSON in $out, at the top level (INDENT "") or one below; of two, the last.
field() { printf '%s\n' "$out" | sed -n "s/^$2  \"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" | tail -n 1; }

# What the daemon says of the VM. Its operation has ended before this, and only then ends well: nothing here waits by the clock.
expect_ready() {
    run 30 "$banger" vm show "$name" --format json
    [ "$(field state '')" = running ] || fail "$step: the VM is $(field state '')"
    [ "$(field ready '')" = true ] || fail "$step: the VM is not ready"
}

# answers HOST PORT: whether this host reaches it.
answers() { timeout 5 bash -c "exec 3<> /dev/tcp/$1/$2" 2> /dev/null; }
# inside COMMAND…: its status in the guest, without failing this run.
inside() { timeout 30 "$banger" vm exec "$name" -- "$@" > /dev/null 2>&1 < /dev/null; }
goes_out() { inside timeout 8 bash -c "exec 3<> /dev/tcp/$1/$2"; }

# holders: pids of the processes that keep a network's namespace, and whose records say so.
holders() { sed -n 's/.*"holder":{"pid":\([0-9]*\).*/\1/p' "$runtime"/net*/network.json 2> /dev/null || true; }
# links: the network interfaces in their namespaces, and on the host.
links() {
    local pid
    for pid in $(holders) self; do
        sed -n 's/^ *\([^: ]*\):.*/\1/p' "/proc/$pid/net/dev" 2> /dev/null || true
    done
}

# taps: those of VMs; those of the pool are capacity.
taps() { links | grep '^tap' | grep -v '^tap-pool-' || true; }
pool_size() { links | grep -c '^tap-pool-' || true; }

# ours WORD: processes with WORD in their arguments or environment, but this one and its children.
ours() {
    local entry pid
    for entry in /proc/[0-9]*; do
        pid=${entry#/proc/}
        if grep -qsaF -- "$1" "$entry/cmdline" "$entry/environ" && [ "$pid" != $$ ] &&
            [ "$(sed -n 's/^PPid:[[:space:]]*//p' "$entry/status" 2> /dev/null)" != $$ ]; then
            printf '%s %s\n' "$pid" "$(tr '\0' ' ' 2> /dev/null < "$entry/cmdline" | cut -c 1-160)"
        fi
    done 2> /dev/null
}

section() { printf '\n--- %s\n' "$*"; }
shown() {
    section "$*"
    timeout 10 "$@" 2>&1 < /dev/null | printable | tail -n 200
}
dump() {
    local pid path
    shown "$banger" vm show "$name" --format json
    [ -z "$operation" ] || shown "$banger" op show "$operation" --format json
    shown "$banger" vm health "$name"
    shown "$banger" daemon status
    for path in "$state/vms/$id"/{vm.json,vmm.log,console.log} "$state"/{holder.log,uplink.log,bangerd.log}; do
        if [ -n "$id" ] && [ -s "$path" ]; then
            section "the end of $path"
            tail -c 6000 "$path" | printable
            echo
        fi
    done
    section "files and sockets"
    find "$state/vms" "$runtime" -maxdepth 3 -ls 2>&1 | printable
    shown ss -xlpn src "$runtime*"
    section "processes"
    ours "$runtime"
    [ -n "$(holders)" ] || section "no network's holder runs"
    for pid in $(holders); do
        local within=(nsenter --preserve-credentials --user --net --target "$pid" --)
        section "TAPs: those of the pool are capacity"
        cat "/proc/$pid/net/dev"
        shown "${within[@]}" ip -d address
        shown "${within[@]}" ip route
        section "NAT and filter"
        shown "${within[@]}" nft list ruleset
    done
    shown ip -o link
    if [ "$(id -u)" = 0 ]; then
        shown nft list tables
        if command -v dmsetup > /dev/null; then shown dmsetup ls; fi
        shown losetup --list
    fi
}

# finish: nothing of this run stays, whatever came before.
finish() {
    local left
    rm -rf "$scratch"
    timeout 60 "$banger" vm delete "$name" > /dev/null 2>&1 < /dev/null
    if [ "$in_place" = no ] || [ "$started_daemon" = yes ]; then
        timeout 30 "$banger" daemon stop > /dev/null 2>&1 < /dev/null
    fi
    if [ -n "$here" ]; then
        left=$(ours "$here/")
        if [ -n "$left" ]; then
            tell "left: $left"
            printf '%s\n' "$left" | while read -r pid _; do kill -9 "$pid" 2> /dev/null; done
        fi
        if [ "$keep" = yes ]; then
            tell "kept: $here"
        else
            rm -rf "$here"
        fi
    fi
    return 0
}

step="find banger"
command -v "$banger" > /dev/null || fail "$step: $banger is not there; set BANGER, or run: make build"
run 30 "$banger" config show --format json
state=$(field state_dir '') runtime=$(field runtime_dir '')
[ -n "$image" ] || image=$(field default_image '')
if [ "$in_place" = no ]; then
    here=$(mktemp -d /tmp/bgv-XXXXXX)
    mkdir -m 700 "$here/s" "$here/r"
    if [ -d "$state/images" ]; then ln -s "$(cd "$state/images" && pwd -P)" "$here/s/images"; fi
    state=$here/s runtime=$here/r
    export BANGER_STATE_DIR=$state BANGER_RUNTIME_DIR=$runtime
fi
say "$("$banger" --version), state in $state"

step="daemon up"
timeout 10 "$banger" daemon status > /dev/null 2>&1 || started_daemon=yes
run 60 "$banger" daemon start
run 30 "$banger" daemon status
say "$step"

step="image $image"
if ! timeout 30 "$banger" image show "$image" > /dev/null 2>&1; then
    say "$step: it is not here yet and is built"
    run 1800 "$banger" image build "$image"
fi
say "$step"
taps_before=$(taps | wc -l)

step="create $name"
options=(--name "$name" --image "$image" --memory 1G --work-size 2G --timeout "$patience")
[ -z "$vmm" ] || options+=(--vmm "$vmm")
[ -z "$network" ] || options+=(--network "$network")
run 60 "$banger" vm create "${options[@]}" --no-wait
operation=$out
run 30 "$banger" vm show "$name" --format json
id=$(field id '')
run $((patience + 60)) "$banger" op wait "$operation"
expect_ready
mode=$(field network '  ')
say "$step: ready, $(field vmm '  '), network $mode"

step="ssh"
run 60 "$banger" vm ssh "$name" -- echo inside
[ "$out" = inside ] || fail "$step: it said: $(printf '%s' "$out" | printable | head -c 200)"
say "$step"

step="forward"
if [ "$mode" = none ]; then
    say "$step: skipped, this VM has no network"
else
    run 30 "$banger" vm forward "$name" --format name
    port=$(printf '%s\n' "$out" | head -n 1)
    banner=$(timeout 20 bash -c "exec 3<> /dev/tcp/127.0.0.1/$port && read -r -t 15 line <&3 && printf %s \"\$line\"" | printable) || true
    case $banner in
        SSH-*) say "$step: 127.0.0.1:$port leads to its SSH" ;;
        *) fail "$step: 127.0.0.1:$port does not lead to its SSH" ;;
    esac
fi

step="outside"
there=''
if [ "$mode" != none ]; then
    for each in "${outside[@]}"; do
        if answers "${each%:*}" "${each##*:}"; then
            there=$each
            break
        fi
    done
fi
if [ "$mode" = none ]; then
    say "$step: skipped, this VM has no network"
elif [ -z "$there" ]; then
    say "$step: skipped, this host itself reaches none of ${outside[*]}"
else
    goes_out "${there%:*}" "${there##*:}" || fail "$step: the guest does not reach $there, this host does"
    if [ "$mode" = qemu-user ]; then
        say "$step: reached; NAT of QEMU's own network cannot be changed while it runs"
    else
        run 30 "$banger" vm set "$name" --no-nat
        if goes_out "${there%:*}" "${there##*:}"; then fail "$step: the guest reaches $there without NAT"; fi
        run 30 "$banger" vm set "$name" --nat
        goes_out "${there%:*}" "${there##*:}" || fail "$step: the guest does not reach $there after its NAT was given back"
        say "$step: reached, not without NAT, and with it again"
    fi
fi

step="health"
healthy 60
say "$step"

step="restart"
run $((patience + 60)) "$banger" vm restart "$name" --timeout "$patience"
expect_ready
run 60 "$banger" vm ssh "$name" -- echo inside
healthy 60
say "$step"

step="delete"
run 120 "$banger" vm delete "$name"
say "$step"

step="nothing left"
left=$(ours "$state/vms/$id"; ours "$runtime/vms/$id")
[ -z "$left" ] || fail "$step: processes: $left"
for path in "$state/vms/$id" "$runtime/vms/$id"; do
    [ ! -e "$path" ] || fail "$step: $path is still there"
done
taps_now=$(taps | wc -l)
[ "$taps_now" -le "$taps_before" ] || fail "$step: TAPs: $(taps | tr '\n' ' ')"
say "no process, file, socket or TAP of the VM; $(pool_size) TAPs in the pool"
if [ "$in_place" = no ] || [ "$started_daemon" = yes ]; then
    run 60 "$banger" daemon stop
fi
if [ "$in_place" = no ]; then
    for _ in $(seq 100); do
        left=$(ours "$here/")
        [ -n "$left" ] || break
        sleep 0.1
    done
    [ -z "$left" ] || fail "$step: after the daemon ended: $left"
    left=$(find "$runtime" ! -type d 2> /dev/null)
    [ -z "$left" ] || fail "$step: after the daemon ended: $left"
    say "no process or socket of the daemon"
fi
trap - EXIT INT TERM
set +e
finish >&2
say "ok"
