"""The identity drive: what it says, what it keeps, and that no two VMs share any of it."""

import asyncio
import io
import json
import stat
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from banger.guest import identity
from banger.guest.identity import SEED_BYTES, IdentityStore
from banger.model.lease import Lease
from banger.model.machine import IdentityRequest, VmPaths
from banger.model.manifest import Service

A, B = "a" * 12, "b" * 12
LEASE = Lease(A, 4, "02:00:00:00:00:04", "10.0.0.4", 16, "10.0.255.2", "10.0.255.3")
KEY = "rootfs/etc/ssh/ssh_host_ed25519_key"


@pytest.fixture
def store(tmp_path):
    return IdentityStore(tmp_path)


@pytest.fixture
def paths(tmp_path):
    def of(vm_id):
        made = VmPaths(tmp_path / "vms" / vm_id, tmp_path / "run" / vm_id)
        made.state.mkdir(parents=True, exist_ok=True)
        return made

    return of


def request(vm_id=A, name="web", lease=LEASE, mtu=1400):
    return IdentityRequest(vm_id, name, lease, mtu)


def drive(path):
    """Name -> content of the drive's files."""
    with tarfile.open(path) as archive:
        return {m.name: archive.extractfile(m).read() for m in archive if m.isfile()}


async def test_the_drive_says_who_the_vm_is(store, paths, tmp_path):
    before = int(time.time())
    key = await store.write(request(), paths(A))
    files = drive(paths(A).identity)
    assert files["rootfs/etc/hostname"] == b"web\n"
    assert b"127.0.1.1 web.banger web\n" in files["rootfs/etc/hosts"]
    machine_id = files["rootfs/etc/machine-id"].decode()
    assert len(machine_id) == 33
    assert int(machine_id, 16) > 0
    assert files[f"{KEY}.pub"].decode().startswith(key.public)
    assert files["rootfs/etc/resolv.conf"] == b"nameserver 10.0.255.3\n"
    assert files["control/network"] == b"ADDRESS=10.0.0.4/16\nGATEWAY=10.0.255.2\nMTU=1400\n"
    assert before <= int(files["control/clock"]) <= time.time()
    assert len(files["control/seed"]) == SEED_BYTES
    assert (
        files["rootfs/etc/banger/authorized_keys"] == (tmp_path / "ssh/id_ed25519.pub").read_bytes()
    )
    assert files["rootfs/etc/banger/agent-token"] == paths(A).agent_token.read_bytes()


async def test_a_vm_that_has_peers_asks_for_their_names_first(store, paths):
    await store.write(replace(request(), peers=True), paths(A))
    resolvers = drive(paths(A).identity)["rootfs/etc/resolv.conf"]
    assert resolvers == b"nameserver 10.0.255.4\nnameserver 10.0.255.3\n"


async def test_a_vm_without_network_gets_none_and_no_name_server(store, paths):
    await store.write(request(lease=None, mtu=None), paths(A))
    files = drive(paths(A).identity)
    assert "control/network" not in files
    assert files["rootfs/etc/resolv.conf"] == b""


async def test_the_host_key_is_a_pair(store, paths, tmp_path):
    await store.write(request(), paths(A))
    files = drive(paths(A).identity)
    private = tmp_path / "key"
    private.write_bytes(files[KEY])
    private.chmod(0o600)
    done = subprocess.run(["ssh-keygen", "-y", "-f", private], capture_output=True, check=True)
    assert done.stdout.split()[:2] == files[f"{KEY}.pub"].split()[:2]


async def test_a_key_half_made_lies_in_the_vms_own_directory(store, paths, monkeypatch):
    """Who is killed in it leaves no private key behind that nobody would remove."""
    made_in = []

    async def keygen(argv, **_):
        path = Path(argv[-1])
        made_in.append(path.parent.parent)
        for each in (path, path.with_suffix(".pub")):
            each.write_bytes(b"ssh-ed25519 AAAA\n")

    monkeypatch.setattr(identity, "run", keygen)
    await store.write(request(), paths(A))
    assert made_in == [paths(A).state.parents[1] / "ssh", paths(A).state]
    assert not list(paths(A).state.glob(".*"))


async def test_secrets_are_for_root_alone_in_the_guest_and_on_the_host(store, paths, tmp_path):
    await store.write(request(), paths(A))
    with tarfile.open(paths(A).identity) as archive:
        members = {m.name: m for m in archive}
    assert {(m.uid, m.gid) for m in members.values()} == {(0, 0)}
    for name in (KEY, "rootfs/etc/banger/agent-token", "rootfs/etc/banger/authorized_keys"):
        assert members[name].mode == 0o600, name
    assert all(m.mode == 0o755 for m in members.values() if m.isdir())
    assert members["rootfs/etc/hostname"].mode == 0o644
    for path in (
        paths(A).identity,
        paths(A).agent_token,
        tmp_path / "ssh/id_ed25519",
        tmp_path / "known_hosts",
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "ssh").stat().st_mode) == 0o700


async def test_the_drive_is_a_whole_number_of_sectors(store, paths):
    await store.write(request(), paths(A))
    assert paths(A).identity.stat().st_size % 512 == 0


async def test_the_next_start_keeps_machine_id_keys_and_token_and_renews_seed_name_and_network(
    store, paths
):
    first_key = await store.write(request(), paths(A))
    first = drive(paths(A).identity)
    again = IdentityStore(paths(A).state.parents[1])  # another daemon
    assert await again.write(request(name="api", mtu=None), paths(A)) == first_key
    second = drive(paths(A).identity)
    for name in (
        KEY,
        f"{KEY}.pub",
        "rootfs/etc/machine-id",
        "rootfs/etc/banger/agent-token",
        "rootfs/etc/banger/authorized_keys",
    ):
        assert second[name] == first[name], name
    assert second["control/seed"] != first["control/seed"]
    assert second["rootfs/etc/hostname"] == b"api\n"
    assert b"MTU" not in second["control/network"]


async def test_no_two_vms_share_anything_that_tells_them_apart(store, paths):
    await store.write(request(A, "one"), paths(A))
    await store.write(request(B, "two"), paths(B))
    one, two = drive(paths(A).identity), drive(paths(B).identity)
    own = {
        KEY,
        f"{KEY}.pub",
        "rootfs/etc/machine-id",
        "rootfs/etc/banger/agent-token",
        "rootfs/etc/hostname",
        "rootfs/etc/hosts",
        "control/seed",
    }
    for name in own:
        assert one[name] != two[name], name
    assert paths(A).agent_token.read_bytes() != paths(B).agent_token.read_bytes()


@pytest.mark.parametrize("damage", [b"", b"no tar" * 1000])
async def test_a_damaged_drive_is_made_anew(store, paths, damage):
    first = await store.write(request(), paths(A))
    paths(A).identity.write_bytes(damage)
    second = await store.write(request(), paths(A))
    assert second != first
    assert drive(paths(A).identity)["rootfs/etc/hostname"] == b"web\n"


async def test_a_drive_that_lacks_a_part_is_made_anew_as_a_whole(store, paths):
    first = await store.write(request(), paths(A))
    buffer = io.BytesIO()
    with (
        tarfile.open(paths(A).identity) as source,
        tarfile.open(fileobj=buffer, mode="w") as target,
    ):
        for member in source:
            if member.isfile() and member.name != "rootfs/etc/machine-id":
                target.addfile(member, source.extractfile(member))
    paths(A).identity.write_bytes(buffer.getvalue())
    assert await store.write(request(), paths(A)) != first


async def test_known_hosts_has_one_line_a_vm_under_id_and_name(store, paths, tmp_path):
    one = await store.write(request(A, "one"), paths(A))
    await store.write(request(A, "one"), paths(A))
    await store.write(request(B, "two"), paths(B))
    lines = (tmp_path / "known_hosts").read_text().splitlines()
    assert len(lines) == 2
    key = " ".join(one.public.split()[:2])
    assert lines[0] == f"{A}.banger,one.banger {key}"
    for host in (f"{A}.banger", "one.banger"):
        done = subprocess.run(
            ["ssh-keygen", "-F", host, "-f", tmp_path / "known_hosts"],
            capture_output=True,
            text=True,
            check=True,
        )
        assert key.split()[1] in done.stdout


async def test_a_renamed_vm_is_known_by_its_new_name_only(store, paths, tmp_path):
    await store.write(request(A, "one"), paths(A))
    await store.write(request(A, "uno"), paths(A))
    text = (tmp_path / "known_hosts").read_text()
    assert "uno.banger" in text
    assert "one.banger" not in text


async def test_a_name_that_goes_to_another_vm_takes_the_line_with_it(store, paths, tmp_path):
    await store.write(request(A, "one"), paths(A))
    await store.write(request(B, "one"), paths(B))
    (line,) = (tmp_path / "known_hosts").read_text().splitlines()
    assert line.startswith(f"{B}.banger,one.banger ")


async def test_lines_of_others_in_known_hosts_stay(store, paths, tmp_path):
    (tmp_path / "known_hosts").write_text("example.org ssh-ed25519 AAAA\n")
    await store.write(request(), paths(A))
    await store.forget(A, paths(A))
    assert (tmp_path / "known_hosts").read_text() == "example.org ssh-ed25519 AAAA\n"


async def test_a_forgotten_vm_leaves_nothing_and_forgetting_again_is_no_error(
    store, paths, tmp_path
):
    await store.forget(A, paths(A))  # before anything was ever written
    await store.write(request(A, "one"), paths(A))
    await store.write(request(B, "two"), paths(B))
    for _ in range(2):
        await store.forget(A, paths(A))
    assert list(paths(A).state.iterdir()) == []
    (line,) = (tmp_path / "known_hosts").read_text().splitlines()
    assert line.startswith(f"{B}.banger,")


async def test_many_at_once_agree_on_one_client_key_and_lose_no_line(paths, tmp_path):
    ids = [f"{number:012x}" for number in range(8)]
    stores = [IdentityStore(tmp_path) for _ in ids]  # as many daemons would
    await asyncio.gather(
        *(s.write(request(i, f"vm{i}"), paths(i)) for s, i in zip(stores, ids, strict=True))
    )
    assert len((tmp_path / "known_hosts").read_text().splitlines()) == len(ids)
    keys = {drive(paths(i).identity)["rootfs/etc/banger/authorized_keys"] for i in ids}
    assert keys == {(tmp_path / "ssh/id_ed25519.pub").read_bytes()}
    done = subprocess.run(
        ["ssh-keygen", "-y", "-f", tmp_path / "ssh/id_ed25519"], capture_output=True, check=True
    )
    assert done.stdout.split()[1] == keys.pop().split()[1]


async def test_a_client_key_without_its_other_half_is_made_anew(store, paths, tmp_path):
    await store.write(request(), paths(A))
    first = (tmp_path / "ssh/id_ed25519.pub").read_bytes()
    (tmp_path / "ssh/id_ed25519").unlink()
    await store.write(request(), paths(A))
    assert (tmp_path / "ssh/id_ed25519.pub").read_bytes() != first
    assert (
        drive(paths(A).identity)["rootfs/etc/banger/authorized_keys"]
        == (tmp_path / "ssh/id_ed25519.pub").read_bytes()
    )


async def test_one_identity_starts_one_program_and_a_restart_none(store, paths, monkeypatch):
    from banger.guest import identity

    started = []
    real = identity.run

    async def counting(argv, **options):
        started.append(argv)
        return await real(argv, **options)

    monkeypatch.setattr(identity, "run", counting)
    await store.write(request(), paths(A))
    started.clear()
    await store.write(request(B, "two"), paths(B))
    assert len(started) == 1
    await store.write(request(B, "two"), paths(B))
    assert len(started) == 1


async def test_nothing_but_the_drive_and_the_token_is_left_in_the_vms_directory(store, paths):
    await store.write(request(), paths(A))
    assert sorted(p.name for p in paths(A).state.iterdir()) == ["agent-token", "identity.tar"]


async def test_the_guests_services_are_those_of_its_image(store, paths):
    await store.write(request(), paths(A))
    assert "rootfs/etc/banger/services.json" not in drive(paths(A).identity)
    asked = replace(request(), services=(Service("web", 80), Service("page", 81, "/ok")))
    await store.write(asked, paths(A))
    said = drive(paths(A).identity)["rootfs/etc/banger/services.json"]
    assert json.loads(said) == [
        {"name": "web", "port": 80},
        {"name": "page", "port": 81, "path": "/ok"},
    ]
