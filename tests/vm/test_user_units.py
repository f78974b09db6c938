"""bangerd under a user manager of a real systemd, in a guest: its socket starts it, and what it has started outlives it."""

import io
import json
import sys
import tarfile

import pytest

from tests.framework.installation import ROOT
from tests.framework.testhost import PYTHON, distributions

CHECKOUT = "home/dev/checkout"
SITE = f"{CHECKOUT}/.venv/site"
MODULES = {"banger": "banger.cli.main", "bangerd": "banger.daemon.main"}
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
            member = tarfile.TarInfo(f"{CHECKOUT}/.venv/bin/{name}")
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
        " && tar -x -f /var/lib/checkout.tar -C / && chown -R dev: /home/dev"
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
    assert f"[{second}]" in dev("journalctl --user -u bangerd -o short --no-pager")


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
