"""What a running guest is told to be: all of it is checked before any of it is applied."""

import json

import pytest

from banger_agent import identity
from banger_agent.http import BadRequest, Request


class Machine(identity.System):
    """A root of its own; what would change this host's kernel is written down instead."""

    def __init__(self, root):
        super().__init__(root)
        self.ran = []

    def name_kernel(self, name):
        self.ran.append(("sethostname", name))

    def run(self, *argv):
        self.ran.append(argv)


@pytest.fixture
def root(tmp_path):
    for name in ("etc/banger", "dev"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc/hosts").write_text(
        "127.0.0.1 localhost\n127.0.1.1 old.banger old\n10.0.0.1 mine\n"
    )
    (tmp_path / "etc/banger/authorized_keys").write_text("old\n")
    return tmp_path


@pytest.fixture
def machine(root, monkeypatch):
    made = Machine(root)
    monkeypatch.setattr(identity, "System", lambda: made)
    return made


class Stream:
    """One request on its way in, and what is answered."""

    def __init__(self, body):
        data = json.dumps(body).encode()
        self.left = b"POST /identity HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(data) + data
        self.said = b""

    def recv(self, limit):
        data, self.left = self.left[:limit], self.left[limit:]
        return data

    def sendall(self, data):
        self.said += bytes(data)


def post(body):
    stream = Stream(body)
    identity.serve(Request(stream))
    return stream.said


def test_a_guest_gets_a_whole_new_identity(root, machine):
    said = post(
        {
            "hostname": "new-1",
            "machine_id": "0123456789abcdef" * 2,
            "authorized_keys": ["ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two"],
            "seed": "00ff" * 100,
            "network": {"address": "10.113.0.20/16", "gateway": "10.113.0.1"},
        }
    )
    assert said.startswith(b"HTTP/1.1 204 ")
    assert (root / "etc/hostname").read_text() == "new-1\n"
    assert (
        root / "etc/hosts"
    ).read_text() == "127.0.0.1 localhost\n10.0.0.1 mine\n127.0.1.1 new-1.banger new-1\n"
    assert (root / "etc/machine-id").read_text() == "0123456789abcdef" * 2 + "\n"
    keys = root / "etc/banger/authorized_keys"
    assert keys.read_text() == "ssh-ed25519 AAAA one\nssh-ed25519 BBBB two\n"
    assert keys.stat().st_mode & 0o777 == 0o600
    assert (root / "dev/urandom").read_bytes() == bytes.fromhex("00ff" * 100)
    assert machine.ran == [
        ("sethostname", "new-1"),
        ("ip", "address", "flush", "dev", "eth0"),
        ("ip", "address", "add", "10.113.0.20/16", "dev", "eth0"),
        ("ip", "route", "replace", "default", "via", "10.113.0.1", "dev", "eth0"),
    ]
    assert list(root.rglob("*.new")) == []


def test_what_is_not_named_stays(root, machine):
    post({"hostname": "new"})
    assert (root / "etc/banger/authorized_keys").read_text() == "old\n"
    assert not (root / "etc/machine-id").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"hostname": ""}, {"hostname": "a.b"}, {"hostname": "-a"}, {"hostname": "x" * 64}, {"hostname": 5}, {"hostname": "a\nb"},
        {"machine_id": "0" * 31}, {"machine_id": "G" * 32}, {"machine_id": None},
        {"authorized_keys": "key"}, {"authorized_keys": ["a\nb"]}, {"authorized_keys": [1]}, {"authorized_keys": ["k"] * 101},
        {"seed": "0"}, {"seed": "zz"}, {"seed": ""}, {"seed": "00" * 4096},
        {"network": {}}, {"network": {"address": "10.0.0.1", "gateway": "10.0.0.1"}}, {"network": []},
        {"network": {"address": "10.0.0.5/24", "gateway": "10.1.0.1"}},
        {"network": {"address": "10.0.0.5/24", "gateway": "10.0.0.1", "mtu": 5}},
        {"token": "x"},
    ],
)  # fmt: skip
def test_a_wrong_identity_is_refused_whole(root, machine, wrong):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(BadRequest) as caught:
        post({**({"hostname": "fine"} if wrong and "hostname" not in wrong else {}), **wrong})
    assert caught.value.status == 400
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert machine.ran == []
