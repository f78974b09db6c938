"""Modes, fallback and command lines, without a namespace."""

import stat

import pytest

from banger.host.probe import Answer
from banger.model.errors import HostLacksError, InvalidInputError
from banger.model.process import ProcessIdentity
from banger.network import user
from banger.network.plan import NetworkPlan
from banger.network.processes import uplink_argv
from banger.network.record import Files, NetworkRecord, read_record, write_record
from banger.network.user import UserNetwork

NO = Answer(
    ok=False,
    why="/dev/net/tun cannot make a TAP: Permission denied",
    hint="sudo chmod 0666 /dev/net/tun",
)


@pytest.fixture
def asked(monkeypatch):
    """Every probe of the host; the host says no."""
    asked = []
    monkeypatch.setattr(user, "probe_namespaces", lambda rules: asked.append(rules) or NO)
    monkeypatch.setattr(user, "find_program", lambda *_, **__: "/bin/true")
    return asked


@pytest.fixture
async def network(tmp_path, asked):
    made = UserNetwork(tmp_path / "run", tmp_path / "state")
    await made.start()
    yield made
    await made.close()


def lease(network):
    return network.plan_lease("a" * 12, [])


async def test_without_namespaces_auto_falls_back_with_a_warning_in_plain_words(network):
    attached = await network.attach(lease(network), "auto", named=False)
    assert (attached.mode, attached.tap_fd, attached.lease) == ("qemu-user", None, lease(network))
    assert "127.0.0.1" in attached.warning
    assert NO.why in attached.warning
    assert NO.hint in attached.warning
    described = await network.describe()
    assert described == {"mode": "qemu-user", "detail": attached.warning}


async def test_a_guest_that_may_not_go_out_needs_no_warning(network):
    attached = await network.attach(lease(network), "auto", named=False, outward=False)
    assert (attached.mode, attached.warning) == ("qemu-user", "")


async def test_without_namespaces_user_is_an_error_with_the_next_step(network):
    with pytest.raises(HostLacksError) as caught:
        await network.attach(lease(network), "user", named=False)
    assert (caught.value.detail, caught.value.hint) == (NO.why, NO.hint)


async def test_a_host_that_lacked_something_is_asked_again(network, asked, monkeypatch):
    await network.describe()
    await network.describe()
    assert len(asked) == 2
    monkeypatch.setattr(user, "probe_namespaces", lambda rules: Answer(ok=True))
    assert (await network.describe())["mode"] == "user"


async def test_the_probe_tries_the_very_rules_that_are_used(network, asked):
    await network.describe()
    assert "table bridge banger" in asked[0]
    assert "masquerade" in asked[0]


async def test_a_missing_program_is_named_with_its_package(tmp_path, monkeypatch):
    def missing(name, *, package):
        raise HostLacksError(f"program {name} was not found", hint=f"apt-get install {package}")

    monkeypatch.setattr(user, "find_program", missing)
    network = UserNetwork(tmp_path, tmp_path, uplink="pasta")
    await network.start()
    detail = (await network.describe())["detail"]
    assert "pasta was not found" in detail
    assert "apt-get install passt" in detail
    await network.close()


async def test_none_is_no_nic(network):
    attached = await network.attach(lease(network), "none", named=False)
    assert (attached.mode, attached.lease, attached.tap_fd) == ("none", None, None)


async def test_what_is_not_there_is_detached_and_stopped_with_success_and_cannot_be_dialed(network):
    await network.detach(lease(network))
    await network.stop(if_unused=False)
    with pytest.raises(ConnectionRefusedError):
        await network.dial(lease(network), 22)


async def test_an_adopted_vm_whose_network_is_gone_is_told_about(network, asked):
    network.adopted(lease(network))
    network._probe = None
    asked.clear()
    assert "until they are restarted" in network._trouble


def test_an_unknown_uplink_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="'vpn'"):
        UserNetwork(tmp_path, tmp_path, uplink="vpn")


async def test_its_directory_is_private(network, tmp_path):
    assert stat.S_IMODE((tmp_path / "run" / "net").stat().st_mode) == 0o700


def argv(kind, monkeypatch, uid=1000):
    monkeypatch.setattr(
        "banger.network.processes.find_program", lambda name, **_: f"/usr/bin/{name}"
    )
    monkeypatch.setattr("os.geteuid", lambda: uid)
    return uplink_argv(kind, NetworkPlan(), 77, ready_fd=5, exit_fd=6)


def test_slirp4netns_is_sandboxed_and_has_no_way_to_the_hosts_loopback(monkeypatch):
    assert argv("slirp4netns", monkeypatch) == [
        "/usr/bin/slirp4netns", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp", "--mtu=65520",
        "--cidr=10.114.0.0/24", "--ready-fd=5", "--exit-fd=6", "77", "uplink0",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["slirp4netns", "pasta"])
def test_roots_uplink_shares_no_mounts_with_the_host(monkeypatch, kind):
    start = ["/usr/bin/unshare", "--mount", "--propagation", "private", "--", f"/usr/bin/{kind}"]
    assert argv(kind, monkeypatch, uid=0)[:6] == start


def test_pasta_maps_nothing_to_the_host_and_forwards_no_ports(monkeypatch):
    words = argv("pasta", monkeypatch)
    assert "--no-map-gw" in words
    assert words[-9:] == ["-t", "none", "-u", "none", "-T", "none", "-U", "none", "77"]
    assert "--runas" not in words
    assert "--runas" in argv("pasta", monkeypatch, uid=0)


def test_the_record_is_read_back_and_nonsense_is_none(tmp_path):
    path = tmp_path / "network.json"
    record = NetworkRecord(
        ProcessIdentity(1, 2, "b"), NetworkPlan(), "slirp4netns", ProcessIdentity(3, 4, "b")
    )
    write_record(path, record)
    assert read_record(path) == record
    for junk in (b"", b"{}", b"[1]", b'{"holder": 5}', b"\xff" * 9):
        path.write_bytes(junk)
        assert read_record(path) is None
    assert read_record(tmp_path / "none") is None


def test_the_holders_socket_lies_in_the_runtime_directory(tmp_path):
    files = Files(tmp_path / "run", tmp_path / "state")
    assert files.control == tmp_path / "run" / "net" / "holder.sock"
    files.forget()
