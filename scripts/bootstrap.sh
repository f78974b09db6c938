#!/usr/bin/env bash
# Make this machine ready for banger: system packages (installed where that is allowed, else named) and .venv.
#
#   scripts/bootstrap.sh run    what `make demo` needs
#   scripts/bootstrap.sh dev    what `make test` needs on top
#
# Idempotent and quick the second time. Writes nothing outside of the checkout but system packages.
set -euo pipefail

kind=${1:-run}
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"

say() { printf '%s\n' "$*" >&2; }

# program:Debian package
programs=(qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils mmdebstrap:mmdebstrap slirp4netns:slirp4netns
    nft:nftables newuidmap:uidmap mke2fs:e2fsprogs debugfs:e2fsprogs ip:iproute2 unshare:util-linux tar:tar
    ssh:openssh-client ssh-keygen:openssh-client git:git)
if [ "$kind" = dev ]; then
    programs+=(mkfs.xfs:xfsprogs rsync:rsync curl:curl pasta:passt mount:mount busybox:busybox-static)
fi

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
missing=()
for entry in "${programs[@]}"; do
    command -v "${entry%%:*}" > /dev/null || missing+=("${entry#*:}")
done
find_python() {
    for name in python3 python3.13 python3.12 python3.11; do
        if command -v "$name" > /dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            command -v "$name"
            return
        fi
    done
}
python=$(find_python)
if [ -z "$python" ]; then
    missing+=(python3)
fi
if ! command -v uv > /dev/null && { [ -z "$python" ] || ! "$python" -c 'import ensurepip, venv' 2> /dev/null; }; then
    missing+=(python3-venv)
fi
[ -e /etc/ssl/certs/ca-certificates.crt ] || [ -e /etc/pki/tls/certs/ca-bundle.crt ] || missing+=(ca-certificates)

install_packages() {
    local packages
    mapfile -t packages < <(printf '%s\n' "${missing[@]}" | sort -u)
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if command -v sudo > /dev/null && sudo -n true 2> /dev/null; then
            as_root=(sudo -n)
        else
            say "error: this machine lacks: ${packages[*]}"
            say ""
            say "hint: ask its administrator for: sudo apt-get install --no-install-recommends ${packages[*]}"
            exit 5
        fi
    fi
    if ! command -v apt-get > /dev/null; then
        say "error: this machine lacks what Debian calls: ${packages[*]}"
        say ""
        say "hint: install these with this system's package manager, then run this again"
        exit 5
    fi
    say "installing: ${packages[*]}"
    local options=(-y -qq --no-install-recommends -o DPkg::Lock::Timeout=300)
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "${packages[@]}" > /dev/null
    hash -r
}

if [ "${#missing[@]}" -gt 0 ]; then
    install_packages
    python=$(find_python)
fi
if [ -z "$python" ]; then
    say "error: banger needs Python 3.11 or newer, this machine has $(python3 --version 2>&1 || echo none)"
    say ""
    say "hint: install python3.11, or a newer distribution"
    exit 5
fi

check_user() {
    [ "$(id -u)" -ne 0 ] || return 0
    local user
    user=$(id -un)
    if ! grep -q "^$user:" /etc/subuid 2> /dev/null || ! grep -q "^$user:" /etc/subgid 2> /dev/null; then
        say "warning: user $user has no subordinate ids, so it cannot build images"
        say "hint: sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $user"
    fi
    if [ ! -w /dev/net/tun ]; then
        say "warning: /dev/net/tun cannot be opened by $user: VMs get QEMU's own user network, whose guests reach this host's loopback"
        say "hint: sudo chmod 0666 /dev/net/tun"
    fi
}
check_user

# The Python environment: exact versions with hashes, then the project itself.
stamp=build/.bootstrap-$kind
digest=$(cat requirements/"$kind".txt pyproject.toml scripts/bootstrap.sh | sha256sum | cut -d' ' -f1)
if [ -x .venv/bin/banger ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$digest" ]; then
    exit 0
fi
mkdir -p build
if command -v uv > /dev/null; then
    [ -x .venv/bin/python ] || uv venv -q --python "$python" .venv
    uv pip install -q --python .venv/bin/python --require-hashes -r requirements/"$kind".txt
    uv pip install -q --python .venv/bin/python --no-deps -e .
else
    [ -x .venv/bin/pip ] || "$python" -m venv .venv
    .venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/"$kind".txt
    .venv/bin/pip install -q --disable-pip-version-check --no-deps -e .
fi
printf '%s\n' "$digest" > "$stamp"
