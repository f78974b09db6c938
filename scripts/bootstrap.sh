#!/usr/bin/env bash
# Make this machine ready for banger: system packages (installed where that is allowed, else named) and .venv.
#
#   scripts/bootstrap.sh run    what `make demo` needs
#   scripts/bootstrap.sh dev    what `make test` needs on top
#
# Idempotent, and quick the second time. Nothing outside of the checkout is written but system packages.
# Exit status: 0 ready; 5 this machine lacks something that the last lines name; 2 wrong use.
set -euo pipefail

kind=${1:-run}
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
log=build/bootstrap.log
apt_wait_s=300 # for another apt-get that runs, such as the first update of a new cloud machine

say() { printf '%s\n' "$*" >&2; }

# lacks WHAT HINT...: end, naming what is missing and what to do.
lacks() {
    say "error: $1"
    shift
    say ""
    printf 'hint: %s\n' "$@" >&2
    exit 5
}

# program|Debian|Fedora|Arch: the program that is looked for and the packages that bring it.
run_programs='
qemu-system-x86_64|qemu-system-x86|qemu-system-x86-core|qemu-system-x86
qemu-img|qemu-utils|qemu-img|qemu-img
mmdebstrap|mmdebstrap|mmdebstrap|mmdebstrap
slirp4netns|slirp4netns|slirp4netns|slirp4netns
nft|nftables|nftables|nftables
newuidmap|uidmap|shadow-utils|shadow
mke2fs|e2fsprogs|e2fsprogs|e2fsprogs
debugfs|e2fsprogs|e2fsprogs|e2fsprogs
ip|iproute2|iproute|iproute2
unshare|util-linux|util-linux|util-linux
tar|tar|tar|tar
ssh|openssh-client|openssh-clients|openssh
ssh-keygen|openssh-client|openssh-clients|openssh
'
dev_programs='
git|git|git|git
mkfs.xfs|xfsprogs|xfsprogs|xfsprogs
dmsetup|dmsetup|device-mapper|device-mapper
modprobe|kmod|kmod|kmod
rsync|rsync|rsync|rsync
curl|curl|curl|curl
pasta|passt|passt|passt
mount|mount|util-linux-core|util-linux
script|bsdutils|util-linux-script|util-linux
busybox|busybox-static|busybox|busybox
bzip2|bzip2|bzip2|bzip2
xz|xz-utils|xz|xz
lzop|lzop|lzop|lzop
lz4|lz4|lz4|lz4
zstd|zstd|zstd|zstd
'
case $kind in
run) programs=$run_programs ;;
dev) programs=$run_programs$dev_programs ;;
*)
    say "usage: scripts/bootstrap.sh run|dev"
    exit 2
    ;;
esac

[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
    lacks "banger runs on Linux on x86-64, this is $(uname -s) on $(uname -m)" "use another machine"

# As an ordinary user Debian's PATH leaves the system directories out.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# The first Python that is new enough; nothing if there is none.
find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" > /dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            command -v "$name"
            return
        fi
    done
}

# Debian names of the packages that are missing, one a line. $1: the column of the table (2 Debian, 3 Fedora, 4 Arch).
missing_packages() {
    local column=$1 line program python
    while IFS= read -r line; do
        program=${line%%|*}
        if [ -n "$program" ] && ! command -v "$program" > /dev/null; then
            printf '%s\n' "$line" | cut -d '|' -f "$column"
        fi
    done <<< "$programs"
    python=$(find_python)
    if [ -z "$python" ] && ! command -v python3 > /dev/null; then
        printf 'python3\n'
    fi
    if [ "$column" -eq 2 ]; then
        # Debian ships Python's venv, the certificates and, on its derivatives, Debian's own keys in packages of their own.
        if ! command -v uv > /dev/null && { [ -z "$python" ] || ! "$python" -c 'import ensurepip, venv' 2> /dev/null; }; then
            printf 'python3-venv\n'
        fi
        [ -e /etc/ssl/certs/ca-certificates.crt ] || printf 'ca-certificates\n'
        if ! compgen -G '/etc/apt/trusted.gpg.d/debian-archive-*' > /dev/null; then
            [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || printf 'debian-archive-keyring\n'
            command -v gpg > /dev/null || printf 'gpg\n' # mmdebstrap finds the keyring with it
        fi
    fi
}

packages() { missing_packages "$1" | sort -u | tr '\n' ' ' | sed 's/ $//'; }

as_root=()
apt() { "${as_root[@]}" env LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get -o "DPkg::Lock::Timeout=$apt_wait_s" -o Acquire::Retries=3 "$@" >> "$log" 2>&1; }

# The lists of packages; apt-get itself does not wait for another update to end.
update_lists() {
    local end=$((SECONDS + apt_wait_s))
    until apt update -qq; do
        if [ "$SECONDS" -ge "$end" ] || ! tail -n 5 "$log" | grep -q 'Could not get lock'; then
            say "warning: apt-get update failed; trying with the lists that are here"
            return
        fi
        say "waiting for another apt-get to end"
        sleep 5 # apt offers nothing to wait on
    done
}

install_packages() {
    local wanted
    wanted=$(packages 2)
    [ -n "$wanted" ] || return 0
    if ! command -v apt-get > /dev/null; then
        if command -v dnf > /dev/null; then
            lacks "this machine lacks packages: $(packages 3)" "sudo dnf install $(packages 3)"
        elif command -v pacman > /dev/null; then
            lacks "this machine lacks packages: $(packages 4)" "sudo pacman -S $(packages 4)  (mmdebstrap is in the AUR)"
        fi
        lacks "this machine lacks what Debian calls: $wanted" "install that with this system's package manager, then do this again"
    fi
    local command="apt-get install --no-install-recommends $wanted"
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo > /dev/null || ! sudo -n true 2> /dev/null; then
            lacks "this machine lacks packages: $wanted" "have its administrator run: sudo $command" "then do this again"
        fi
        as_root=(sudo -n)
    fi
    say "installing system packages: $wanted"
    : > "$log"
    update_lists
    # shellcheck disable=SC2086  # a list of words
    if ! apt install -y -qq --no-install-recommends $wanted; then
        tail -n 15 "$log" >&2
        lacks "apt-get could not install: $wanted" "read $log, then: sudo $command"
    fi
    hash -r
    wanted=$(packages 2)
    [ -z "$wanted" ] || [ "$wanted" = python3-venv ] || lacks "still missing after apt-get: $wanted" "read $log"
}

# What banger can do without, or an administrator has to allow: told, not demanded.
check_host() {
    local user
    user=$(id -un)
    if [ "$(id -u)" -ne 0 ] && { ! grep -q "^$user:" /etc/subuid || ! grep -q "^$user:" /etc/subgid; } 2> /dev/null; then
        say "warning: $user has no subordinate ids in /etc/subuid and /etc/subgid, so it cannot build images"
        say "hint: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $user"
    fi
    if ! unshare --user --map-root-user --net true 2> /dev/null; then
        say "warning: this host refuses user namespaces to $user: no image can be built, VMs get QEMU's own network"
        if [ "$(cat /proc/sys/kernel/apparmor_restrict_unprivileged_userns 2> /dev/null || echo 0)" = 1 ]; then
            say "hint: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        elif [ "$(cat /proc/sys/kernel/unprivileged_userns_clone 2> /dev/null || echo 1)" = 0 ]; then
            say "hint: sudo sysctl kernel.unprivileged_userns_clone=1"
        else
            say "hint: in a container allow them: docker run --privileged, or podman run --privileged"
        fi
    elif [ ! -w /dev/net/tun ]; then
        say "warning: $user may not open /dev/net/tun: VMs get QEMU's own network, whose guests can reach this host's 127.0.0.1"
        say "hint: sudo modprobe tun; sudo chmod 0666 /dev/net/tun"
    fi
    if [ -e /dev/kvm ] && [ ! -w /dev/kvm ]; then
        say "warning: $user may not open /dev/kvm: guests are emulated, about ten times slower"
        say "hint: sudo usermod -aG kvm $user, then log in again"
    fi
}

# npm fetches what images get beside packages. Debian's brings hundreds of packages along, so a wheel stands in where there is none.
has_npm() { command -v npm > /dev/null; }

# Exact versions with hashes, then the project itself; its build tool is pinned too, so nothing else is fetched.
install_python() {
    local python=$1 requirements=(-r requirements/"$kind".txt -r requirements/build.txt)
    has_npm || requirements+=(-r requirements/npm.txt)
    say "installing Python packages into .venv"
    rm -f build/.bootstrap-*
    if [ ! -x .venv/bin/python ] || ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
        rm -rf .venv
    fi
    if command -v uv > /dev/null; then
        [ -d .venv ] || uv venv -q --python "$python" .venv
        uv pip install -q --python .venv/bin/python --require-hashes "${requirements[@]}"
        uv pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
    else
        .venv/bin/python -m pip --version > /dev/null 2>&1 || "$python" -m venv .venv
        .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes "${requirements[@]}"
        .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
    fi
}

mkdir -p build
install_packages
check_host

digest=$(cat requirements/*.txt pyproject.toml scripts/bootstrap.sh | sha256sum | cut -d ' ' -f 1)" $root $(has_npm && echo npm || echo wheel)"
for stamp in build/.bootstrap-dev build/.bootstrap-"$kind"; do
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$digest" ] && .venv/bin/python -c 'import banger' 2> /dev/null; then
        exit 0
    fi
done

python=$(find_python)
if [ -z "$python" ] && command -v uv > /dev/null; then
    python=3.11 # uv finds or fetches one
fi
if [ -z "$python" ]; then
    lacks "banger needs Python 3.11 or newer, this machine has $(python3 --version 2>&1)" \
        "install python3.11 with python3.11-venv (Ubuntu 22.04 has them), or a newer distribution" \
        "or install uv, which fetches a Python of its own"
fi
if ! install_python "$python"; then
    lacks "the Python packages could not be installed" "see above; they come from the package index that pip or uv is set to"
fi
printf '%s\n' "$digest" > build/.bootstrap-"$kind"
