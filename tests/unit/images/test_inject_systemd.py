"""What systemd is told in a foreign root: what starts, what does not, and which file systems it waits for."""

import pytest

from banger.images.addition import Addition
from banger.images.inject_systemd import add_units, fstab
from banger.images.layers import Member
from banger.images.root_tree import RootTree

UNITS = "etc/systemd/system"
INIT = "/usr/lib/systemd/systemd"
DEBIAN = (
    INIT[1:], "usr/lib/systemd/systemd-udevd", "usr/lib/systemd/system/ssh.service", "usr/lib/systemd/system/multi-user.target",
)  # fmt: skip


def added(*names, files=DEBIAN, **links):
    tree = RootTree()
    members = [Member(n, tuple(name.split("/")), "file") for n, name in enumerate((*files, *names))]
    members += [Member(900 + n, tuple(name.split("__")), "symlink", target=target) for n, (name, target) in enumerate(links.items())]  # fmt: skip
    tree.apply(0, members, "root")
    layer = Addition()
    add_units(layer, tree, INIT, "/usr/bin/python3 agent.pyz", sshd=True)
    return layer


def test_the_agent_waits_for_nothing_that_a_foreign_root_could_hold_up():
    unit = added().files[f"{UNITS}/banger-agent.service"].decode()
    assert "ExecStart=/usr/bin/python3 agent.pyz\n" in unit
    assert "After=" not in unit
    assert "DefaultDependencies=no\n" in unit


def test_its_init_is_systemd_whatever_lies_there():
    assert "sbin/init" not in added(sbin__init="/lib/systemd/systemd", lib="usr/lib").links
    assert added().links["sbin/init"] == INIT
    assert added("sbin/init").links["sbin/init"] == INIT
    assert added("bin/busybox", sbin__init="/bin/busybox").links["sbin/init"] == INIT


@pytest.mark.parametrize("name", ["ssh.service", "serial-getty@.service", "serial-getty@ttyS0.service", "multi-user.target"])  # fmt: skip
def test_what_a_guest_needs_is_not_masked_any_more(name):
    assert added(**{f"etc__systemd__system__{name}": "/dev/null"}).removed == [f"{UNITS}/{name}"]
    assert added(**{f"etc__systemd__system__{name}": "/lib/x"}).removed == []
    assert added(f"{UNITS}/{name}").removed == []


def test_sshds_sockets_are_off_and_nobody_requires_what_is_masked():
    pulls = [
        "sockets.target.wants/ssh.socket", "ssh.service.requires/ssh.socket", "x.target.requires/networking.service",
        "x.target.wants/networking.service", "multi-user.target.wants/cron.service",
    ]  # fmt: skip
    layer = added(*(f"{UNITS}/{name}" for name in pulls))
    assert sorted(layer.removed) == sorted(f"{UNITS}/{name}" for name in pulls[:3])
    assert f"{UNITS}/ssh.socket" not in layer.links


def test_without_udev_the_getty_waits_for_no_device():
    assert f"{UNITS}/serial-getty@ttyS0.service" not in added().files
    unit = added(files=(INIT[1:],)).files[f"{UNITS}/serial-getty@ttyS0.service"].decode()
    assert "BindsTo" not in unit
    assert "-o '-p -- \\\\u'" in unit


def test_without_modprobe_nothing_tries_to_load_modules():
    unit = f"{UNITS}/kmod-static-nodes.service"
    assert added().links[unit] == "/dev/null"
    assert unit not in added("usr/bin/kmod", usr__sbin__modprobe="../bin/kmod", sbin="usr/sbin").links  # fmt: skip


def test_cloud_init_and_encrypted_disks_are_waited_for_by_nobody():
    layer = added("etc/cloud/cloud.cfg", "etc/crypttab")
    assert layer.files["etc/cloud/cloud-init.disabled"] == b""
    assert layer.files["etc/crypttab"].startswith(b"#")
    assert not {"etc/cloud/cloud-init.disabled", "etc/crypttab"} & set(added().files)


def test_of_an_fstab_only_what_lies_in_memory_is_mounted():
    kept = ["# mine", "", "tmpfs /tmp tmpfs size=1G 0 0"]
    gone = [
        "UUID=1-2 / ext4 defaults 0 1", "/dev/sdb1 /data xfs nofail 0 2", "LABEL=swap none swap sw 0 0",
        "tmpfs /root/ tmpfs", "tmpfs / tmpfs", "host:/x /x nfs _netdev", "/dev/sdc tmpfs", "\xff",
    ]  # fmt: skip
    lines = fstab("\n".join([*kept, *gone]).encode("latin-1")).decode("latin-1").splitlines()
    assert all(line in lines for line in kept)
    assert all(f"#{line}" in lines for line in gone)
    assert len(fstab(b"").splitlines()) == 1
