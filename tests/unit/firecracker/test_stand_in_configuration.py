"""What is configured before a VM boots: checked like Firecracker, in its words, and shown as it shows it."""

import os
import socket

import pytest

from tests.framework.firecracker.engine import Descriptors, argv, cmdline, throttle
from tests.framework.firecracker.resources import Resources
from tests.framework.firecracker.routes import FaultError


@pytest.fixture
def resources():
    made = Resources(mmds_limit_bytes=200)
    yield made
    made.close()


@pytest.fixture
def disk(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    return path


def drive(path, name="a", **changes):
    return {
        "drive_id": name, "partuuid": None, "is_root_device": False, "cache_type": "Unsafe", "is_read_only": None,
        "path_on_host": str(path), "rate_limiter": None, "io_engine": None, "socket": None, **changes,
    }  # fmt: skip


def machine(**changes):
    return {
        "vcpu_count": 1,
        "mem_size_mib": 128,
        "smt": False,
        "cpu_template": None,
        "huge_pages": "None",
        **changes,
    }


def network(name="eth0", **changes):
    return {"iface_id": name, "host_dev_name": "t", "guest_mac": None, "rx_rate_limiter": None, "tx_rate_limiter": None, **changes}  # fmt: skip


def refused(put, *values):
    with pytest.raises(FaultError) as caught:
        put(*values)
    return caught.value.message


def names(resources):
    return [entry["drive_id"] for entry in resources.drives]


def test_the_root_drive_comes_first_and_the_others_in_the_order_of_their_mention(resources, disk):
    for name in ("b", "c"):
        resources.put_drive(drive(disk, name))
    resources.put_drive(drive(disk, "root", is_root_device=True))
    assert names(resources) == ["root", "b", "c"]
    resources.put_drive(drive(disk, "b", is_read_only=True))
    assert names(resources) == ["root", "b", "c"]
    assert resources.drives[1]["is_read_only"] is True


def test_there_is_one_root_drive(resources, disk):
    resources.put_drive(drive(disk, "root", is_root_device=True))
    resources.put_drive(drive(disk, "b"))
    words = "Drive config error: A root block device already exists!"
    assert refused(resources.put_drive, drive(disk, "b", is_root_device=True)) == words
    assert refused(resources.put_drive, drive(disk, "new", is_root_device=True)) == words
    resources.put_drive(drive(disk, "root", is_root_device=False))
    resources.put_drive(drive(disk, "b", is_root_device=True))
    assert names(resources) == ["b", "root"]


def test_a_drives_file_is_opened_as_it_will_be_used(resources, tmp_path, disk):
    what = "Drive config error: Unable to create the virtio block device: Virtio backend error: Error manipulating the backing file:"
    missing = tmp_path / "no"
    assert (
        refused(resources.put_drive, drive(missing))
        == f"{what} No such file or directory (os error 2) {missing}"
    )
    assert (
        refused(resources.put_drive, drive(tmp_path))
        == f"{what} Is a directory (os error 21) {tmp_path}"
    )
    resources.put_drive(drive("/proc/version", is_read_only=True))
    assert refused(resources.put_drive, drive("", path_on_host=None)).endswith(
        "Invalid block config."
    )
    assert names(resources) == ["a"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (machine(vcpu_count=0), "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled."),
        (machine(vcpu_count=33), "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled."),
        (machine(vcpu_count=3, smt=True), "The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if SMT is enabled."),
        (machine(mem_size_mib=0), "The memory size (MiB) is either 0, or not a multiple of the configured page size."),
        (machine(mem_size_mib=129, huge_pages="2M"), "The memory size (MiB) is either 0, or not a multiple of the configured page size."),
    ],
)  # fmt: skip
def test_a_machine_that_cannot_be_is_refused_as_a_whole(resources, values, words):
    before = resources.machine_shown()
    assert refused(resources.put_machine, values) == f"Machine config error: {words}"
    assert resources.machine_shown() == before


def test_a_patch_changes_only_what_it_names(resources):
    resources.put_machine(machine(vcpu_count=4, mem_size_mib=256))
    resources.put_machine({"mem_size_mib": 512, "vcpu_count": None})
    assert resources.machine_shown() == {
        "vcpu_count": 4, "mem_size_mib": 512, "smt": False, "track_dirty_pages": False, "huge_pages": "None",
    }  # fmt: skip


def test_balloon_and_memory_fit_each_other(resources):
    balloon = {"amount_mib": 129, "deflate_on_oom": False, "stats_polling_interval_s": 0}
    assert (
        refused(resources.put_balloon, balloon)
        == "Balloon config error: Amount of pages requested is too large."
    )
    resources.put_balloon({**balloon, "amount_mib": 100})
    words = "Machine config error: The memory size (MiB) is smaller than the previously set balloon device target size."
    assert refused(resources.put_machine, machine(mem_size_mib=64)) == words


def test_a_kernel_and_its_command_line_are_looked_at(resources, disk):
    boot = {"kernel_image_path": str(disk), "initrd_path": None, "boot_args": None}
    assert (
        refused(resources.put_boot, {**boot, "kernel_image_path": "/no"})
        == "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"
    )
    assert refused(resources.put_boot, {**boot, "initrd_path": "/no"}).startswith(
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. No such"
    )
    assert refused(resources.put_boot, {**boot, "boot_args": "x" * 2048}).endswith(
        "is invalid: Invalid cmdline capacity provided."
    )
    resources.put_boot({**boot, "boot_args": "x" * 2047})


def test_the_vsock_socket_listens_from_the_start_and_is_replaced(resources, tmp_path):
    first, second = str(tmp_path / "1"), str(tmp_path / "2")
    resources.put_vsock({"guest_cid": 3, "uds_path": first})
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(first)
    resources.put_vsock({"guest_cid": 4, "uds_path": second})
    assert not os.path.exists(first)
    assert resources.vsock == {"guest_cid": 4, "uds_path": second}


def test_a_vsock_path_that_is_taken_or_too_long_is_refused(resources, disk):
    what = "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket:"
    assert (
        refused(resources.put_vsock, {"guest_cid": 3, "uds_path": str(disk)})
        == f"{what} Address in use (os error 98)"
    )
    assert (
        refused(resources.put_vsock, {"guest_cid": 3, "uds_path": "/" + "x" * 107})
        == f"{what} path must be shorter than SUN_LEN"
    )
    assert resources.vsock is None


def test_mmds_is_a_store_with_a_limit_that_merges_patches(resources):
    assert (
        refused(resources.patch_mmds, {"a": 1})
        == "MMDS error: The MMDS data store is not initialized."
    )
    resources.put_mmds({"a": {"b": 1, "c": 2}})
    resources.patch_mmds({"a": {"b": None, "d": 3}})
    assert resources.mmds == {"a": {"c": 2, "d": 3}}
    with pytest.raises(FaultError) as caught:
        resources.patch_mmds({"e": "x" * 300})
    assert (caught.value.status, resources.mmds) == (413, {"a": {"c": 2, "d": 3}})


def test_mmds_needs_an_interface_that_is_there(resources):
    config = {"version": "V2", "network_interfaces": [], "ipv4_address": None}
    assert refused(resources.put_mmds_config, config).endswith("forwarding MMDS requests is empty.")
    assert "does not correspond to any existing network interface" in refused(
        resources.put_mmds_config, {**config, "network_interfaces": ["e"]}
    )
    assert refused(resources.put_mmds_config, {**config, "ipv4_address": "10.0.0.1"}).endswith(
        "not link local."
    )


def test_a_tap_that_cannot_be_opened_is_refused(resources, monkeypatch):
    def busy(name, **_):
        raise OSError(16, "busy")

    monkeypatch.setattr("tests.framework.firecracker.host.open_tap", busy)
    monkeypatch.setattr("os.access", lambda *_: True)
    assert refused(resources.put_network, network()) == (
        "Network config error: Could not create the network device: Open tap device failed: Error while creating ifreq structure: "
        "Resource busy (os error 16). Invalid TUN/TAP Backend provided by t. Check our documentation on setting up the network devices."
    )
    assert refused(resources.put_network, network(host_dev_name="x" * 16)).endswith(
        "Open tap device failed: Invalid interface name"
    )


def test_an_interface_that_is_put_again_gives_up_its_tap_first(resources, monkeypatch):
    opened = []

    def tap(name):
        opened.append(os.open("/dev/null", os.O_RDONLY))
        return opened[-1]

    monkeypatch.setattr("tests.framework.firecracker.host.tap", tap)
    resources.put_network(network("a", guest_mac="02:00:00:00:00:01"))
    resources.put_network(network("b", guest_mac="02:00:00:00:00:02"))
    resources.put_network(network("a", guest_mac="02:00:00:00:00:01"))
    assert len(resources.taps) == 2
    assert opened[2] == opened[0]  # its number was free again
    assert resources.taps["a"] != resources.taps["b"]
    words = "Network config error: The MAC address is already in use: 02:00:00:00:00:01"
    assert refused(resources.put_network, network("c", guest_mac="02:00:00:00:00:01")) == words
    assert refused(resources.put_network, network("c", mtu=67)).endswith(
        "MTU 67 is out of range [68, 65535]"
    )
    assert set(resources.taps) == {"a", "b"}


def test_the_whole_configuration_is_shown_as_firecracker_shows_it(resources, disk, tmp_path):
    resources.put_boot({"kernel_image_path": str(disk), "initrd_path": None, "boot_args": "quiet"})
    resources.put_drive(drive(disk, "root", is_root_device=True))
    full = resources.full()
    assert full["boot-source"] == {
        "kernel_image_path": str(disk),
        "initrd_path": None,
        "boot_args": "quiet",
    }
    assert full["drives"] == [
        {**drive(disk, "root", is_root_device=True), "is_read_only": False, "io_engine": "Sync"}
    ]
    assert [key for key, value in full.items() if value is None] == [
        "balloon",
        "cpu-config",
        "logger",
        "metrics",
        "mmds-config",
        "vsock",
        "entropy",
    ]


def test_the_kernel_command_line_is_as_given_with_what_firecracker_appends(resources, disk):
    assert (
        cmdline(resources, 0)
        == "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce pci=off"
    )
    resources.put_boot(
        {"kernel_image_path": str(disk), "initrd_path": None, "boot_args": "quiet root=/dev/sda"}
    )
    resources.put_drive(drive(disk, "root", is_root_device=True, is_read_only=True))
    assert (
        cmdline(resources, 2500000)
        == "quiet root=/dev/sda pci=off root=/dev/vda ro loglevel=5 tsc_early_khz=2500000 tsc=reliable"
    )
    resources.put_drive(drive(disk, "root", is_root_device=True, partuuid="12-34"))
    assert cmdline(resources, 0) == "quiet root=/dev/sda pci=off root=PARTUUID=12-34 rw"


def test_the_engine_is_qemu_with_what_was_configured(resources, disk, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "tests.framework.firecracker.host.tap", lambda name: os.open("/dev/null", os.O_RDONLY)
    )
    comma = tmp_path / "a,b"
    comma.write_bytes(b"")
    resources.put_machine(machine(vcpu_count=2, mem_size_mib=256))
    resources.put_boot(
        {"kernel_image_path": "/bin/sh", "initrd_path": "/bin/sh", "boot_args": "quiet"}
    )
    limiter = {"bandwidth": {"size": 1000, "refill_time": 100, "one_time_burst": None}, "ops": None}
    resources.put_drive(drive(comma, "data", is_read_only=True, rate_limiter=limiter))
    resources.put_drive(drive(disk, "root", is_root_device=True, cache_type="Writeback"))
    resources.put_network(network(guest_mac="02:00:00:00:00:01", mtu=1400))
    resources.put_vsock({"guest_cid": 3, "uds_path": str(tmp_path / "v")})
    resources.put_balloon(
        {
            "amount_mib": 0,
            "deflate_on_oom": True,
            "stats_polling_interval_s": 0,
            "free_page_reporting": True,
        }
    )
    resources.entropy = {}
    words = argv("qemu", resources, Descriptors(7, 8, {"eth0": 9}, 10), khz=1)
    assert " ".join(words).replace(str(tmp_path), "DIR") == (
        "qemu -nodefaults -no-user-config -display none -S -action reboot=shutdown,shutdown=pause "
        "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny "
        "-machine microvm,pit=on,pic=on,rtc=on,acpi=on -device i8042 -accel tcg,thread=multi -cpu max -smp 2 -m 256 "
        "-kernel /bin/sh -initrd /bin/sh -append quiet pci=off root=/dev/vda rw loglevel=5 tsc_early_khz=1 tsc=reliable "
        "-chardev socket,id=qmp,fd=7 -mon chardev=qmp,mode=control -chardev stdio,id=console,signal=off -serial chardev:console "
        "-drive id=root,if=none,format=raw,cache=writeback,aio=threads,read-only=off,file=DIR/disk -device virtio-blk-device,drive=root,id=disk-root "
        "-drive id=data,if=none,format=raw,cache=unsafe,aio=threads,read-only=on,file=DIR/a,,b,throttling.bps-total=10000,throttling.bps-total-max=10000 "
        "-device virtio-blk-device,drive=data,id=disk-data "
        "-netdev tap,id=net-eth0,fd=9,vhost=off -device virtio-net-device,netdev=net-eth0,mac=02:00:00:00:00:01,host_mtu=1400 "
        "-device virtio-serial-device,id=serial0 -chardev socket,id=agent,fd=8,server=on,wait=off "
        "-device virtserialport,id=agent0,chardev=agent,name=banger.agent "
        "-object rng-random,id=rng,filename=/dev/urandom -device virtio-rng-device,rng=rng "
        "-device virtio-balloon-device,id=balloon0,deflate-on-oom=on,free-page-reporting=on -incoming fd:10"
    )


def test_a_rate_limiter_is_a_rate_a_second_with_a_burst():
    bucket = {"size": 500, "refill_time": 250, "one_time_burst": 4000}
    assert throttle({"bandwidth": None, "ops": bucket}) == {
        "iops-total": 2000,
        "iops-total-max": 4500,
    }
    assert throttle({"bandwidth": {**bucket, "size": 0}, "ops": None}) == {}
    assert throttle(None) == {}
