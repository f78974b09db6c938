"""The stand-in and a real Firecracker asked the same things: the same answers, heads included.

Before a guest boots a real one needs no KVM. It is the program that $BANGER_FIRECRACKER names, or the firecracker on PATH.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.framework.firecracker import official
from tests.framework.firecracker.examples import AFTER_BOOT, AFTER_BOOT_1_14, REFUSED, SESSION
from tests.framework.firecracker.install import make_firecracker
from tests.framework.firecracker.play import Play
from tests.framework.firecracker.running import StandIn
from tests.framework.toy import toy_kernel

VARIABLE = "BANGER_FIRECRACKER"


@pytest.fixture(scope="module")
def real():
    found = os.environ.get(VARIABLE) or shutil.which("firecracker")
    if not found:
        pytest.skip(f"there is no Firecracker to compare with; set {VARIABLE} to one")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    return Path(found), re.match(r"Firecracker v(\S+)", said)[1]


@contextlib.contextmanager
def both(real, monkeypatch):
    """A real one and one that plays it; the official description is stricter than either and left out."""
    program, version = real
    monkeypatch.setenv(official.VARIABLE, "/nowhere")
    with contextlib.ExitStack() as stack:
        pair = []
        for name in ("real", "fake"):
            directory = Path(tempfile.mkdtemp(prefix="bgr-", dir="/tmp"))
            stack.callback(shutil.rmtree, directory)
            (directory / "disk").write_bytes(bytes(4096))
            (directory / "kernel").write_bytes(b"no kernel" * 100)
            chosen = program if name == "real" else None
            made = StandIn(directory, Play(version=version), "--id", "box-1", program=chosen)
            stack.callback(made.close)
            made.wait_for_socket()
            pair.append(made)
        yield pair


def exchange(made, method, path, body):
    """Head and body of an answer, without the directory's name and the length that depends on it."""
    data = body.replace("DIR", str(made.directory)).encode()
    length = f"Content-Length: {len(data)}\r\n" if data else ""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(made.socket))
        client.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\n".encode() + data
        )
        said = b""
        while b"\r\n\r\n" not in said:
            said += client.recv(65536)
        head, _, rest = said.partition(b"\r\n\r\n")
        wanted = re.search(rb"Content-Length: (\d+)\r\n", head + b"\r\n")
        while wanted and len(rest) < int(wanted[1]):
            rest += client.recv(65536)
    text = rest.decode().replace(str(made.directory), "DIR")
    return re.sub(rb"Content-Length: \d+", b"Content-Length", head).decode(), text


def test_a_session_with_its_mistakes_is_answered_alike(real, monkeypatch):
    with both(real, monkeypatch) as (genuine, played):
        for method, path, body in SESSION:
            answers = [exchange(made, method, path, body) for made in (genuine, played)]
            assert answers[0] == answers[1], (method, path, body[:200])


def test_a_running_vm_answers_alike(real, monkeypatch):
    """The guest does nothing; a Firecracker that can make VMs but not run them will do."""
    with both(real, monkeypatch) as (genuine, played):
        for made in (genuine, played):
            (made.directory / "kernel").write_bytes(toy_kernel("idle", bits=64))
            made.configure(made.directory / "kernel", boot_args="quiet")
            made.put(
                "/drives/a",
                drive_id="a",
                is_root_device=False,
                path_on_host=str(made.directory / "disk"),
            )
            made.put("/balloon", amount_mib=8, deflate_on_oom=True, stats_polling_interval_s=1)
            made.put("/vsock", guest_cid=3, uds_path=str(made.vsock))
        status, said = genuine.ask("PUT", "/actions", {"action_type": "InstanceStart"})
        if status != 204:
            pytest.skip(f"Firecracker cannot make a VM here: {said}")
        played.act("InstanceStart")
        later = AFTER_BOOT_1_14 if Play(version=real[1]).numbers >= (1, 14) else []
        for method, path, body in [*AFTER_BOOT, *later]:
            answers = [exchange(made, method, path, body) for made in (genuine, played)]
            assert answers[0] == answers[1], (method, path, body)


@pytest.mark.parametrize(
    "boot",
    [
        {"kernel_image_path": "/etc/passwd"},
        {"boot_args": "x" * 2030},
        {"boot_args": "x" * 2047},
        {"initrd_path": "DIR/large"},
    ],
)
def test_a_start_that_fails_is_refused_alike(real, monkeypatch, boot):
    with both(real, monkeypatch) as (genuine, played):
        said = []
        for made in (genuine, played):
            (made.directory / "kernel").write_bytes(toy_kernel("idle", bits=64))
            with (made.directory / "large").open("wb") as file:
                file.truncate(200 << 20)
            values = {"kernel_image_path": "DIR/kernel", **boot}
            made.put(
                "/boot-source",
                **{key: text.replace("DIR", str(made.directory)) for key, text in values.items()},
            )
            said.append(made.ask("PUT", "/actions", {"action_type": "InstanceStart"}))
        if "kvm" in str(said[0][1]).lower():
            pytest.skip(f"Firecracker cannot make a VM here: {said[0][1]}")
        assert said[0] == said[1]


def test_bad_requests_are_refused_alike(real, monkeypatch):
    if Play(version=real[1]).numbers < (1, 17):
        pytest.skip(f"the examples know fields that release {real[1]} does not")
    with both(real, monkeypatch) as (genuine, played):
        for method, path, body, words in REFUSED:
            answers = [exchange(made, method, path, body) for made in (genuine, played)]
            assert answers[0] == answers[1], (method, path, body)
            assert words in answers[0][1].encode().decode("unicode_escape"), (method, path, body)


@pytest.mark.parametrize(
    "words",
    [
        ["--version"], ["--snapshot-version"], ["--bad"], ["bad"], ["--id"], ["--id", "a", "--id", "b"], ["--no-api"],
        ["--no-seccomp", "--seccomp-filter", "f"], ["--level", "Loud"], ["--api-sock", "/no/such/s"],
        ["--api-sock", "/" + "x" * 120], ["--api-sock", "/etc/passwd"], ["--log-path", "/no/log"],
        ["--metrics-path", "/no/metrics"],
    ],
)  # fmt: skip
def test_command_lines_end_alike(real, tmp_path, words):
    """The same exit status and log; Rust's own form of an error is compared as far as it is not the library's."""
    program, version = real
    played = make_firecracker(tmp_path, version=version)
    ends = []
    for chosen in (program, played):
        done = subprocess.run(
            [chosen, *words], env={}, capture_output=True, text=True, timeout=20, check=False
        )
        said = re.sub(r"^\d{4}-\S+ ", "", done.stdout, flags=re.MULTILINE)
        ends.append((done.returncode, said, done.stderr.partition("(")[0]))
    assert ends[0] == ends[1]
