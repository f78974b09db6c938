"""A real guest of a Debian root with systemd as people have one, made for another machine: with a network manager of each kind, cloud-init,
an sshd that lets root not in, and disks that are not there.

``BANGER_FOREIGN_RELEASE`` names another release of Debian.
"""

import io
import os
import re
import shutil
import tarfile

import pytest

from tests.framework import toy_container as toy
from tests.framework.debian_root import debian_root as made_root

pytestmark = pytest.mark.long
PACKAGES = (
    "systemd-sysv,udev,dbus,openssh-server,python3,ifupdown,isc-dhcp-client,network-manager,systemd-resolved,cloud-init"
)  # fmt: skip
RELEASE = os.environ.get("BANGER_FOREIGN_RELEASE", "bookworm")
UNITS, VENDOR = "etc/systemd/system", "/lib/systemd/system"
SSHD = b"""Port 2222
PermitRootLogin no
AllowUsers admin
PasswordAuthentication yes
HostKey /etc/ssh/shared_key
Include /etc/ssh/sshd_config.d/*.conf
UsePAM yes
Subsystem sftp /usr/lib/openssh/sftp-server
"""
FSTAB = b"""UUID=0b1c-11 / ext4 defaults 0 1
UUID=0b1c-12 /boot/efi vfat umask=0077 0 1
/dev/sdb1 /data xfs nofail 0 2
UUID=0b1c-13 none swap sw 0 0
tmpfs /scratch tmpfs size=8M 0 0
"""
WAITS = b"[Unit]\nWants=network-online.target\nAfter=network-online.target\n[Service]\nType=oneshot\nExecStart=/bin/touch /run/online\n"  # fmt: skip
SETTINGS = [
    toy.member("etc/ssh/sshd_config", SSHD),
    toy.member("etc/ssh/sshd_config.d/10-hardening.conf", b"PasswordAuthentication yes\nListenAddress 192.0.2.7\n"),
    toy.member("etc/fstab", FSTAB),
    toy.member("etc/crypttab", b"secret UUID=0b1c-14 none luks\n"),
    toy.member("etc/network/interfaces", b"auto eth0\nallow-hotplug eth0\niface eth0 inet dhcp\n"),
    toy.member("etc/systemd/network/lan.network", b"[Match]\nName=e*\n[Network]\nDHCP=yes\n"),
    toy.symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
    toy.symlink(f"{UNITS}/default.target", f"{VENDOR}/graphical.target"),
    toy.symlink(f"{UNITS}/ssh.service", "/dev/null"),
    toy.symlink(f"{UNITS}/sockets.target.wants/ssh.socket", f"{VENDOR}/ssh.socket"),
    toy.symlink(f"{UNITS}/ssh.service.requires/ssh.socket", f"{VENDOR}/ssh.socket"),
    toy.symlink(f"{UNITS}/multi-user.target.wants/systemd-networkd.service", f"{VENDOR}/systemd-networkd.service"),
    toy.symlink(f"{UNITS}/network-online.target.wants/systemd-networkd-wait-online.service", f"{VENDOR}/systemd-networkd-wait-online.service"),
    toy.member(f"{UNITS}/waits.service", WAITS),
    toy.symlink(f"{UNITS}/multi-user.target.wants/waits.service", "../waits.service"),
]  # fmt: skip


@pytest.fixture(scope="module")
def plain_root(image):
    """A root of Debian packages and nothing else, as a tar; made once, as the debian image is."""
    return made_root("systemd", PACKAGES, release=RELEASE)


@pytest.fixture(scope="module")
def used_root(plain_root, tmp_path_factory):
    """It after an administrator's work: root has a password that has expired, and no shell; a later member replaces an earlier one."""
    path = tmp_path_factory.mktemp("root") / "root.tar"
    shutil.copyfile(plain_root, path)
    with tarfile.open(path) as archive:
        users, secrets = (archive.extractfile(f"./etc/{name}").read() for name in ("passwd", "shadow"))  # fmt: skip
    users = users.replace(b":/root:/bin/bash", b":/root:/usr/sbin/nologin")
    secrets = re.sub(rb"(?m)^root:[^:]*:[^:]*", b"root:$6$x$y:0", secrets)
    with tarfile.open(path, "a") as archive:
        for info, data in [toy.member("etc/passwd", users), toy.member("etc/shadow", secrets), *SETTINGS]:  # fmt: skip
            archive.addfile(info, None if data is None else io.BytesIO(data))
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def imported(shared, used_root):
    """An installation with that image and a VM of it."""
    done = shared.run("image", "import", str(used_root), "--name", "mine", "--kernel-from", "debian", timeout=600)  # fmt: skip
    print(done.stderr)
    shared.create("one", "--image", "mine", timeout=400)
    yield shared
    shared.run("vm", "delete", "--all", check=False)
    shared.run("image", "delete", "mine")


def ask(banger, script, *, name="one"):
    return banger.run("vm", "exec", name, "--", "sh", "-c", script).stdout.strip()


@pytest.mark.timeout(1800)
def test_a_debian_root_with_systemd_is_running_with_no_failed_unit(imported):
    state = ask(imported, "systemctl is-system-running --wait; systemctl --failed --no-legend; systemctl list-jobs --no-legend")  # fmt: skip
    assert state == "running"
    assert imported.vm("one")["status"]["services"] == [{"name": "ssh", "port": 22, "ready": True}]
    assert ask(imported, "cat /proc/1/comm; cat /etc/hostname; hostname") == "systemd\none\none"
    assert ask(imported, "grep -c ' /root ' /proc/mounts; stat -f -c %T /scratch; test -e /run/online && echo online") == "1\ntmpfs\nonline"  # fmt: skip


def test_ssh_is_by_key_only_on_its_port_with_the_vms_host_key(imported):
    assert imported.run("vm", "ssh", "one", "--", "echo $0").stdout.strip() in {"bash", "-bash"}
    said = ask(imported, "/usr/sbin/sshd -T").splitlines()
    for line in (
        "port 22", "listenaddress 0.0.0.0:22", "permitrootlogin without-password", "passwordauthentication no", "kbdinteractiveauthentication no"
    ):  # fmt: skip
        assert line in said
    assert not [line for line in said if line.startswith("allowusers") or "192.0.2.7" in line]
    assert {line for line in said if line.startswith("hostkey ")} == {
        "hostkey /etc/ssh/ssh_host_ed25519_key"
    }
    assert ask(imported, "ls /etc/ssh/ssh_host_*_key") == "/etc/ssh/ssh_host_ed25519_key"
    assert ask(imported, "grep ^root: /etc/shadow").startswith("root:*:")
    tries = "ssh -v -o BatchMode=no -o NumberOfPasswordPrompts=0 -o StrictHostKeyChecking=no -o PubkeyAuthentication=no root@127.0.0.1 2>&1"  # fmt: skip
    assert "can continue: publickey\n" in ask(imported, tries + "; true") + "\n"


def test_nothing_else_configures_the_network_or_waits_for_what_is_not_there(imported):
    units = "systemd-networkd NetworkManager networking ifup@eth0 systemd-resolved cloud-init cloud-final ssh.socket getty@tty1 display-manager"
    assert set(ask(imported, f"systemctl is-active {units}; true").split()) == {"inactive"}
    assert ask(imported, "cat /proc/[0-9]*/comm | grep -E '^(dhclient|NetworkManager|systemd-network|systemd-resolve)$'; true") == ""  # fmt: skip
    assert ask(imported, "test -L /etc/resolv.conf || cat /etc/resolv.conf").startswith("nameserver 10.")  # fmt: skip
    assert ask(imported, "cat /etc/fstab").count("\n#UUID=") == 3


def test_it_stops_cleanly_and_starts_again_as_the_same_machine(imported):
    before = ask(imported, "cat /etc/machine-id; echo kept > /root/kept; echo kept > /var/kept")
    assert re.fullmatch("[0-9a-f]{32}", before)
    stopped = imported.run("vm", "stop", "one")
    assert "kill" not in stopped.stderr.lower()
    imported.run("vm", "start", "one", timeout=400)
    assert ask(imported, "cat /etc/machine-id /root/kept /var/kept") == f"{before}\nkept\nkept"
    assert imported.run("vm", "ssh", "one", "--", "true").returncode == 0
