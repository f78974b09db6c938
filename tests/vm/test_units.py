"""bangerd and banger-helper under a real systemd, in a guest: their sockets start them, and what they have made outlives them."""

import io
import json
import sys
import tarfile

import pytest

from banger.cli.commands.setup_helper import NAMES
from tests.framework.installation import ROOT, wait_until
from tests.framework.portable import portable
from tests.framework.testhost import PYTHON, distributions

CHECKOUT = "home/dev/checkout"
SITE = f"{CHECKOUT}/.venv/site"
NFT = "opt/nft"
CHECKOUT_PATH = f"PATH=/{CHECKOUT}/.venv/bin:$PATH"
MODULES = {
    "banger": "banger.cli.main",
    "bangerd": "banger.daemon.main",
    "banger-helper": "banger.helper.main",
}
UNITS = "/home/dev/.config/systemd/user"
pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != PYTHON, reason="a guest's Python could not import our packages"
)


def write_checkout(path):
    """A tar, to be unpacked at /: a checkout as an ordinary user's ``make demo`` leaves it."""
    with tarfile.open(path, "w") as archive:
        for name in ("src", "scripts", "config"):
            archive.add(
                ROOT / name,
                f"{CHECKOUT}/{name}",
                filter=lambda member: None if "__pycache__" in member.name else member,
            )
        for distribution in distributions(tools=()):
            for file in distribution.files or ():
                source = distribution.locate_file(file)
                if source.is_file() and ".." not in file.parts and source.suffix != ".pyc":
                    archive.add(source, f"{SITE}/{file}")
        for name, module in MODULES.items():
            text = f'#!/bin/sh\nPYTHONPATH=/{CHECKOUT}/src:/{SITE} exec python3 -m {module} "$@"\n'
            _add_script(archive, f"{CHECKOUT}/.venv/bin/{name}", text)
        files, loader = portable("nft")
        for source, name in files:
            archive.add(source, f"{NFT}/{name}")
        text = f'#!/bin/sh\nexec /{NFT}/{loader} --library-path /{NFT} /{NFT}/nft "$@"\n'
        _add_script(archive, "usr/sbin/nft", text)


def _add_script(archive, name, text):
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(text), 0o755
    archive.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture(scope="module")
def dev(vm, tmp_path_factory):
    """An ordinary user of the guest, with a user manager and a checkout; runs a line of shell as that user."""
    tar = tmp_path_factory.mktemp("units") / "checkout.tar"
    write_checkout(tar)
    vm.run("vm", "cp", str(tar), "box:/var/lib/checkout.tar")
    prepare = (
        "useradd --create-home --shell /bin/bash dev && loginctl enable-linger dev"
        " && tar -x --keep-directory-symlink -f /var/lib/checkout.tar -C / && chown -R dev: /home/dev"
    )
    vm.run("vm", "exec", "box", "--", "sh", "-c", prepare)
    uid = vm.run("vm", "exec", "box", "--", "id", "-u", "dev").stdout.strip()

    def run(line, **options):
        path = f"PATH=/{CHECKOUT}/.venv/bin:/usr/bin:/bin"
        user = ("runuser", "-u", "dev", "--", "env", f"XDG_RUNTIME_DIR=/run/user/{uid}", path)
        argv = (*user, "bash", "-c", line)
        return vm.run("vm", "exec", "-w", "/home/dev", "box", "--", *argv, **options).stdout.strip()

    run(
        "for i in $(seq 100); do systemctl --user is-system-running && exit; sleep 0.1; done; exit 1"
    )
    return run


def main_pid(dev):
    return dev("systemctl --user show --property MainPID --value bangerd.service")


def test_the_socket_starts_the_daemon_and_what_it_started_outlives_it(vm, dev):
    said = dev(f"bash checkout/scripts/user-units.sh install {UNITS}")
    assert "systemd starts bangerd now" in said
    assert main_pid(dev) == "0"
    assert dev("banger vm list --format json") == "[]"
    first = main_pid(dev)
    assert json.loads(dev("banger daemon status --format json"))["pid"] == int(first)

    # A process of the service stands for a VM: there is nothing in the guest to boot one with.
    group = dev("systemctl --user show --property ControlGroup --value bangerd.service")
    child = f"setsid sleep 1000 > /dev/null 2>&1 & echo $! > /sys/fs/cgroup{group}/cgroup.procs; echo $!"
    sleeper = vm.run("vm", "exec", "box", "--", "sh", "-c", child).stdout.strip()
    assert sleeper in dev(f"cat /sys/fs/cgroup{group}/cgroup.procs").split()
    dev("systemctl --user stop bangerd.service")
    assert main_pid(dev) == "0"
    dev(f"test -d /proc/{sleeper}")
    vm.run("vm", "exec", "box", "--", "kill", sleeper)

    assert dev("banger vm list --format json") == "[]"
    second = main_pid(dev)
    assert second not in {"0", first}
    # The guest's journal is volatile, which journald keeps for the system alone: root reads it.
    journal = ("journalctl", "--no-pager", "_SYSTEMD_USER_UNIT=bangerd.service")
    wait_until(lambda: f"pid {second}" in vm.run("vm", "exec", "box", "--", *journal).stdout, 60)


def test_a_daemon_that_is_killed_is_started_again(dev):
    before = main_pid(dev)
    dev("systemctl --user kill --signal KILL bangerd.service")
    dev(f"for i in $(seq 100); do test -d /proc/{before} || exit 0; sleep 0.1; done; exit 1")
    assert dev("banger vm list --format json") == "[]"
    assert main_pid(dev) not in {"0", before}


def test_the_units_are_taken_back(dev):
    dev(f"bash checkout/scripts/user-units.sh remove {UNITS}")
    assert dev(f"ls {UNITS}") == ""
    assert dev("ss -xlH | grep -c banger || true") == "0"


ATTACH = """
import asyncio, os, subprocess, sys
from pathlib import Path
from banger.wire.helper import ask
keeper = subprocess.Popen(["unshare", "--user", "--map-root-user", "--net", "--", "sh", "-c", "echo; exec sleep 1000"],
                          stdout=subprocess.PIPE, start_new_session=True)
keeper.stdout.readline()
namespace = os.open(f"/proc/{keeper.pid}/ns/net", os.O_RDONLY)
found = asyncio.run(ask(Path("/run/banger-helper/helper.sock"), "uplink.attach", descriptors=[namespace]))
print(keeper.pid, found["slot"], found["link"])
"""
DETACH = """
import asyncio, sys
from pathlib import Path
from banger.wire.helper import ask
asyncio.run(ask(Path("/run/banger-helper/helper.sock"), "uplink.detach", slot=int(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def root_in(vm, dev):
    """Runs a line of shell as root of the guest."""
    del dev

    def run(line, **options):
        argv = ("vm", "exec", "box", "--", "bash", "-c", line)
        return vm.run(*argv, **options).stdout.strip()

    return run


def python(dev, script, *words):
    """Done with banger's modules in the guest by a user who has just logged in, so with all its groups."""
    line = f"PYTHONPATH=/{CHECKOUT}/src:/{SITE} python3 - {' '.join(words)} <<'END'\n{script}\nEND"
    return dev(line)


def helper_pid(root_in):
    return root_in("systemctl show --property MainPID --value banger-helper.service")


def test_the_helper_is_set_up_started_by_a_member_and_its_uplinks_outlive_it(root_in, dev):
    before = root_in("ip -o link; ip route; nft list ruleset")
    said = root_in(f"{CHECKOUT_PATH} banger setup helper --user dev 2>&1")
    assert "can be changed by others than root" in said  # /home/dev is that user's
    assert "try: banger run --network bridge" in said
    assert "dev" in root_in("getent group banger").split(":")[-1].split(",")
    assert root_in("stat -c '%a %G' /run/banger-helper/helper.sock") == "660 banger"
    assert helper_pid(root_in) == "0"

    keeper, slot, link = python(dev, ATTACH).split()
    first = helper_pid(root_in)
    assert first != "0"
    assert link in root_in("ip -o link")
    assert "banger_host" in root_in("nft list tables")
    root_in("systemctl kill --signal KILL banger-helper.service")
    root_in(f"for i in $(seq 100); do test -d /proc/{first} || exit 0; sleep 0.1; done; exit 1")
    assert link in root_in("ip -o link")

    python(dev, DETACH, slot)
    assert helper_pid(root_in) not in {"0", first}
    assert link not in root_in("ip -o link")
    root_in(f"kill {keeper}")
    assert root_in("ip -o link; ip route; nft list ruleset") == before


def test_the_helper_is_not_for_a_stranger(root_in):
    root_in("useradd --system stranger")
    line = "runuser -u stranger -- python3 -c \"import socket; socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect('/run/banger-helper/helper.sock')\" 2>&1 || true"
    assert "PermissionError" in root_in(line)


def test_the_unit_gives_the_helper_no_more_than_it_needs(root_in):
    pid = helper_pid(root_in)
    status = root_in(f"cat /proc/{pid}/status")
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    bounding = int(status.partition("CapBnd:")[2].split()[0], 16)
    assert bounding == (1 << 12) | (1 << 13) | (1 << 10)  # net_admin, net_raw, net_bind_service
    assert root_in(f"nsenter -t {pid} -m touch /etc/mark 2>&1 || true").endswith(
        "Read-only file system"
    )


def test_the_helper_is_taken_back(root_in):
    root_in(f"{CHECKOUT_PATH} banger setup helper --remove")
    for name in NAMES:
        root_in(f"test ! -e /etc/systemd/system/{name}")
    root_in("test ! -e /run/banger-helper/helper.sock")
    assert root_in("systemctl is-active banger-helper.socket || true") == "inactive"
