"""Who may call, and how often."""

import os
import socket
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.helper.audit import AuditLog
from banger.helper.listening import bind, group_id
from banger.helper.policy import (
    BURST,
    MAX_CONNECTIONS,
    MAX_CONNECTIONS_OF_USER,
    PER_S,
    Caller,
    Policy,
    caller_of,
)
from banger.helper.verbs import VERBS, check
from banger.host import probe
from banger.model.errors import HostLacksError, InvalidInputError, NotFoundError, RefusedError
from banger.wire.helper import Request

GROUP = 990


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def user(uid, *groups):
    return Caller(1, uid, frozenset(groups))


def test_root_and_members_are_admitted_and_nobody_else():
    policy = Policy(GROUP, Clock())
    assert policy.admit(user(0)) == ""
    assert policy.admit(user(1000, 1000, GROUP)) == ""
    assert "group" in policy.admit(user(1001, 1001))
    assert "group" in Policy(None, Clock()).admit(user(1000, GROUP))


def test_a_connection_that_ends_makes_room():
    policy = Policy(GROUP, Clock())
    one = user(1000, GROUP)
    assert [policy.admit(one) for _ in range(MAX_CONNECTIONS_OF_USER)] == [""] * 8
    assert "this user" in policy.admit(one)
    policy.leave(one)
    assert policy.admit(one) == ""


def test_root_gets_in_though_users_have_taken_all_places():
    policy = Policy(GROUP, Clock())
    for uid in range(1, MAX_CONNECTIONS + 1):
        assert policy.admit(user(uid, GROUP)) == ""
    assert policy.admit(user(5000, GROUP)) == "too many connections"
    assert policy.admit(user(0)) == ""


def test_requests_are_counted_a_user_and_forgiven_with_time():
    clock = Clock()
    policy = Policy(GROUP, clock)
    for _ in range(BURST):
        policy.count_request(user(1000))
    with pytest.raises(RefusedError, match="asks too often") as caught:
        policy.count_request(user(1000))
    assert caught.value.hint
    policy.count_request(user(1001))
    clock.now += 1
    for _ in range(int(PER_S)):
        policy.count_request(user(1000))
    with pytest.raises(RefusedError):
        policy.count_request(user(1000))


def test_what_is_known_of_users_does_not_grow_for_ever():
    clock = Clock()
    policy = Policy(GROUP, clock)
    for uid in range(10_000):
        clock.now += 0.1
        policy.count_request(user(uid))
    assert len(policy._buckets._buckets) < 100


def test_the_kernel_says_who_is_at_the_other_end():
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        caller = caller_of(one)
    assert (caller.uid, caller.pid) == (os.geteuid(), os.getpid())
    assert os.getegid() in caller.groups


def test_every_inverse_is_a_verb():
    assert {verb.inverse for verb in VERBS.values()} - {None} <= set(VERBS)
    assert VERBS["uplink.attach"].inverse == "uplink.detach"
    assert VERBS["snapshot.attach"].inverse == "snapshot.detach"


@pytest.mark.parametrize("request_", [
    Request("uplink.detach"),
    Request("uplink.detach", {"slot": "3"}),
    Request("uplink.detach", {"slot": True}),
    Request("uplink.detach", {"slot": 3, "uid": 0}),
    Request("uplink.detach", {"slot": 3}, (9,)),
    Request("uplink.attach"),
    Request("uplink.attach", {}, (8, 9)),
    Request("uplink.attach", {"name": "eth0"}, (8,)),
    Request("snapshot.attach", {"installation": 1, "vm": 2, "sectors": 8}, (8,)),
    Request("snapshot.attach", {"installation": 1, "vm": 2}, (8, 9)),
    Request("snapshot.attach", {"installation": "x", "vm": 2, "sectors": 8}, (8, 9)),
    Request("snapshot.attach", {"installation": 1, "vm": 2, "sectors": 8, "name": "sda"}, (8, 9)),
    Request("snapshot.detach", {"slot": 3}, (8,)),
    Request("snapshot.grown", {"slot": False}),
    Request("hello", {"x": 1}),
])  # fmt: skip
def test_a_verb_takes_what_its_table_says_and_nothing_more(request_):
    with pytest.raises(InvalidInputError):
        check(request_)


def test_there_are_no_other_verbs():
    with pytest.raises(NotFoundError, match=r"no verb 'os\.system'"):
        check(Request("os.system"))


@given(st.text(max_size=30), st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.booleans(), max_size=3))  # fmt: skip
def test_whatever_is_asked_is_a_verb_or_refused(op, arguments):
    try:
        verb = check(Request(op, arguments))
    except (NotFoundError, InvalidInputError):
        return
    assert verb is VERBS[op]


def test_the_audit_log_is_private_bounded_and_follows_no_link(tmp_path):
    log = AuditLog(tmp_path / "audit.log", max_bytes=1000)
    for number in range(50):
        log.note(f"verb{number}", user(1000), ok=True, why="x" * 10_000)
    path = tmp_path / "audit.log"
    sizes = [each.stat().st_size for each in tmp_path.iterdir()]
    assert sorted(each.name for each in tmp_path.iterdir()) == ["audit.log", "audit.log.1"]
    assert max(sizes) < 2000
    path.unlink(missing_ok=True)
    victim = tmp_path / "victim"
    victim.write_text("kept")
    path.symlink_to(victim)
    with pytest.raises(OSError, match="symbolic"):
        log.note("verb")
    assert victim.read_text() == "kept"


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """What pytest makes is root's alone, below a sticky /tmp."""
    if not probe.root():
        pytest.skip("the directories above must be root's")
    return tmp_path / "run"


def test_the_socket_is_for_root_and_the_group(directory):
    with bind(directory / "h.sock", GROUP):
        status = (directory / "h.sock").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o660, 0, GROUP)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o755
        with pytest.raises(RefusedError, match="runs already"):
            bind(directory / "h.sock", GROUP)
    with bind(directory / "h.sock", None):  # a stale one is replaced
        assert stat.S_IMODE((directory / "h.sock").stat().st_mode) == 0o600


@pytest.mark.parametrize("trick", ["writable", "owned", "file", "link", "parent"])
def test_a_socket_where_others_could_put_theirs_is_refused(directory, tmp_path, trick):
    directory.mkdir(mode=0o755)
    path = directory / "h.sock"
    match trick:
        case "writable":
            directory.chmod(0o777)
        case "owned":
            os.chown(directory, 4801, -1)
        case "parent":
            tmp_path.chmod(0o777)
        case "file":
            path.write_text("precious")
        case "link":
            path.symlink_to("/etc/passwd")
    with pytest.raises(RefusedError) as caught:
        bind(path, GROUP)
    assert caught.value.hint
    tmp_path.chmod(0o700)
    if trick == "file":
        assert path.read_text() == "precious"


def test_a_group_that_is_missing_is_said():
    assert group_id("") is None
    with pytest.raises(HostLacksError) as caught:
        group_id("no-such-group")
    assert caught.value.hint == "sudo groupadd --system no-such-group"
