"""The jailers that tests can use: Firecracker's own where it is here, and a shell script that plays it everywhere."""

import os
import shutil
from pathlib import Path

# What docs/jailer.md of Firecracker says that the jailer does, with the options that banger gives it; all others are refused.
PLAYED = r"""#!/bin/sh
set -eu
PATH=$PATH:/usr/sbin:/sbin
while [ "$1" != -- ]; do
    case $1 in
    --id) id=$2 ;;
    --exec-file) program=$2 ;;
    --uid) uid=$2 ;;
    --gid) gid=$2 ;;
    --chroot-base-dir) base=$2 ;;
    --resource-limit)
        case $2 in
        fsize=*) prlimit --pid $$ --fsize="${2#fsize=}" ;;
        no-file=*) prlimit --pid $$ --nofile="${2#no-file=}" ;;
        *) exit 2 ;;
        esac ;;
    *) echo "unknown option $1" >&2; exit 2 ;;
    esac
    shift 2
done
shift
name=$(basename "$program")
root=$base/$name/$id/root
mkdir -p "$root/dev/net" "$root/run"
cp "$program" "$root/$name"
mknod "$root/dev/net/tun" c 10 200
mknod "$root/dev/kvm" c 10 232
mknod "$root/dev/urandom" c 1 9
chown "$uid:$gid" "$root" "$root/dev" "$root/dev/net" "$root/run" "$root/dev/net/tun" "$root/dev/kvm" "$root/dev/urandom"
exec env -i "$(command -v chroot)" --groups= --userspec="+$uid:+$gid" "$root" "/$name" --id "$id" --start-time-us 1 "$@"
"""


def played(directory):
    """The script, in ``directory``."""
    path = Path(directory) / "jailer"
    path.write_text(PLAYED)
    path.chmod(0o755)
    return path


def real():
    """Firecracker's own: ``$BANGER_JAILER``, or the one on PATH; None if there is none."""
    found = os.environ.get("BANGER_JAILER") or shutil.which("jailer")
    return Path(found) if found else None
