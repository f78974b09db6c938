"""A real Debian behind Firecracker's API, played by the stand-in: its drives, its TAP, its agent over vsock, snapshots, its end."""

import asyncio
import contextlib
import io
import json
import os
import re
import subprocess
import tarfile
import time

import pytest

from banger.guest.identity import IdentityStore
from banger.host import probe
from banger.model.machine import IdentityRequest
from tests.framework.firecracker.play import Play
from tests.framework.firecracker.running import stand_in
from tests.framework.toy import vm_paths

BOOT_S = 90
MAC = "02:00:00:00:00:07"
CMDLINE = "console=ttyS0 quiet loglevel=1 reboot=k panic=1 net.ifnames=0 cryptomgr.notests random.trust_cpu=on"
OWN_NETWORK = ("unshare", "--net", "sh", "-c", 'ip tuntap add tap7 mode tap && ip link set tap7 up && exec "$@"', "sh")  # fmt: skip
LOOK = """say() { echo "LOOK $*" > /dev/ttyS0; }
for d in vda vdb vdc; do say "$d $(blockdev --getsize64 /dev/$d) $(cat /sys/block/$d/ro)"; done
say "mac $(cat /sys/class/net/eth0/address) mtu $(cat /sys/class/net/eth0/mtu)"
say "cmdline $(cat /proc/cmdline)"
say "rng $(cat /sys/class/misc/hw_random/rng_available)"
"""
UNIT = """[Unit]
DefaultDependencies=no
After=local-fs.target
[Service]
Type=oneshot
ExecStart=/bin/bash /look.sh
"""
WANTS = "rootfs/etc/systemd/system/multi-user.target.wants"


class Debian:
    """The files of one VM and what its stand-in is told."""

    def __init__(self, image, directory):
        self.image = image
        self.directory = directory
        self.root, self.work = directory / "root.img", directory / "work.img"
        for source, target in (("rootfs.img", self.root), ("work-seed.img", self.work)):
            subprocess.run(
                ["cp", "--reflink=auto", "--sparse=always", image / source, target], check=True
            )
            target.chmod(0o600)
        self.paths = vm_paths(directory)
        request = IdentityRequest("a" * 12, "box", None)
        asyncio.run(IdentityStore(directory).write(request, self.paths))
        self._add_look()
        self.token = self.paths.agent_token.read_text().strip()

    def _add_look(self):
        files = {"rootfs/look.sh": LOOK, "rootfs/etc/systemd/system/look.service": UNIT}
        with tarfile.open(self.paths.identity, "a", format=tarfile.USTAR_FORMAT) as archive:
            for name, text in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(text)
                archive.addfile(info, io.BytesIO(text.encode()))
            link = tarfile.TarInfo(f"{WANTS}/look.service")
            link.type, link.linkname = tarfile.SYMTYPE, "../look.service"
            archive.addfile(link)

    def configure(self, made, *, network=False):
        """Everything that banger would say, in an order of its own."""
        said = json.loads((self.image / "manifest.json").read_text())["cmdline"]
        made.put("/machine-config", vcpu_count=2, mem_size_mib=512)
        made.put("/vsock", guest_cid=3, uds_path=str(made.vsock))
        made.put("/entropy")
        made.put("/drives/work", drive_id="work", is_root_device=False, path_on_host=str(self.work))
        made.put(
            "/drives/identity", drive_id="identity", is_root_device=False, is_read_only=True, path_on_host=str(self.paths.identity)
        )  # fmt: skip
        made.put(
            "/drives/rootfs", drive_id="rootfs", is_root_device=True, path_on_host=str(self.root), cache_type="Writeback"
        )  # fmt: skip
        made.configure(
            self.image / "vmlinux", initrd_path=str(self.image / "initramfs.img"), boot_args=f"{CMDLINE} {said}"
        )  # fmt: skip
        if network:
            made.put(
                "/network-interfaces/eth0",
                iface_id="eth0",
                host_dev_name="tap7",
                guest_mac=MAC,
                mtu=1400,
            )

    def ask_agent(self, made, method, target, body=b""):
        """Status and body of the agent's answer over CONNECT 1024; None while it cannot be reached."""
        client, line = made.connect(1024)
        with contextlib.closing(client):
            if not line:
                return None
            assert re.fullmatch(rb"OK 1\d{9}\n", line)
            head = f"{method} {target} HTTP/1.1\r\nHost: guest\r\nAuthorization: Bearer {self.token}\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            said = b""
            while data := client.recv(65536):
                said += data
        if not said:
            return None
        head, _, rest = said.partition(b"\r\n\r\n")
        return int(head.split()[1]), rest

    def wait_for_agent(self, made):
        deadline = time.monotonic() + BOOT_S
        while (answer := self.ask_agent(made, "GET", "/healthz")) is None:
            assert time.monotonic() < deadline, made.console.read_text()
            time.sleep(0.1)
        assert answer[0] == 200
        return json.loads(answer[1])


@pytest.fixture
def debian(test_image, tmp_path):
    answer = probe.qemu()
    if not answer:
        pytest.skip(answer.why)
    return Debian(test_image, tmp_path)


def test_debian_boots_with_its_drives_and_tap_and_its_agent_answers_over_vsock(debian):
    network = os.geteuid() == 0
    wrapper = OWN_NETWORK if network else ()
    with stand_in(play=Play(version="1.16.1"), wrapper=wrapper) as made:
        debian.configure(made, network=network)
        made.act("InstanceStart")
        assert debian.wait_for_agent(made)["status"] == "ok"
        said = made.wait_for_console("LOOK rng virtio_rng", BOOT_S)
        assert f"LOOK vda {debian.root.stat().st_size} 0" in said
        assert f"LOOK vdb {debian.work.stat().st_size} 0" in said
        assert f"LOOK vdc {debian.paths.identity.stat().st_size} 1" in said
        assert "virtio_rng" in re.search(r"LOOK rng (.*)", said)[1]
        assert re.search(rf"LOOK cmdline {re.escape(CMDLINE)} .*pci=off root=/dev/vda rw", said)
        if network:
            assert f"LOOK mac {MAC} mtu 1400" in said

        with contextlib.ExitStack() as stack:  # many at once, held open
            for _ in range(20):
                client, line = made.connect(1024)
                stack.enter_context(contextlib.closing(client))
                assert line
            assert debian.ask_agent(made, "GET", "/stats")[0] == 200
        client, line = made.connect(9)
        client.close()
        assert line == b""

        assert made.ask("PATCH", "/vm", {"state": "Paused"}) == (204, None)
        with pytest.raises(TimeoutError):
            made.connect(1024, timeout_s=1)
        assert made.ask("PATCH", "/vm", {"state": "Resumed"}) == (204, None)
        assert debian.wait_for_agent(made)["status"] == "ok"

        made.act("SendCtrlAltDel")
        assert made.process.wait(BOOT_S) == 0
        assert "reboot: Restarting system" in made.console.read_text()


def test_debian_goes_on_from_a_snapshot_and_powers_off(debian):
    state, memory = debian.directory / "state", debian.directory / "memory"
    with stand_in(play=Play(version="1.16.1")) as made:
        debian.configure(made)
        made.act("InstanceStart")
        before = debian.wait_for_agent(made)
        assert made.ask("PATCH", "/vm", {"state": "Paused"}) == (204, None)
        made.put("/snapshot/create", snapshot_path=str(state), mem_file_path=str(memory))
        assert made.ask("GET", "/")[1]["state"] == "Paused"
        assert made.ask("PATCH", "/vm", {"state": "Resumed"}) == (204, None)
        assert (
            debian.wait_for_agent(made)["boot_id"] == before["boot_id"]
        )  # the original goes on too

    with stand_in(play=Play(version="1.16.1")) as again:
        backend = {"backend_type": "File", "backend_path": str(memory)}
        override = {"uds_path": str(again.vsock)}
        again.put(
            "/snapshot/load", snapshot_path=str(state), mem_backend=backend, vsock_override=override
        )
        assert again.ask("GET", "/")[1]["state"] == "Paused"
        assert again.ask("PATCH", "/vm", {"state": "Resumed"}) == (204, None)
        assert debian.wait_for_agent(again)["boot_id"] == before["boot_id"]
        until = time.monotonic() + BOOT_S
        while (taken := debian.ask_agent(again, "POST", "/shutdown", b'{"reboot": false}')) not in {None, (204, b"")}:  # fmt: skip
            assert taken[0] == 500, (
                taken
            )  # systemd has ten seconds to take it, and may do so later: None
            assert time.monotonic() < until
        assert again.process.wait(BOOT_S) == 0
        assert "banger: powered off" in again.console.read_text()
