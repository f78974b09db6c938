"""The smoke run tells a sound banger from a broken one by its last line, and shows what is needed to find out why."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.framework.installation import ROOT, wait_until
from tests.framework.net_host import BEYOND, ECHO_PORT

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def verify(banger, tmp_path):
    """Runs the script with the installation's images; nothing of it may be left."""
    program = tmp_path / "banger"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m banger.cli.main "$@"\n')
    program.chmod(0o755)
    before = set(Path("/tmp").glob("bgv-*"))

    def run(*argv, outside="127.0.0.1:1", program=program):
        env = {**banger.env, "BANGER": str(program), "BANGER_VERIFY_OUTSIDE": outside}
        done = subprocess.run(
            [ROOT / "scripts" / "verify.sh", *argv], env=env, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=800,
        )  # fmt: skip
        print(done.stdout, done.stderr)
        assert set(Path("/tmp").glob("bgv-*")) == before
        wait_until(lambda: left_of(before) == [], 60)  # what was killed may end later
        return done

    return run


def left_of(before):
    """Processes of a smoke run, by their directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            matches = set(re.findall(rb"/tmp/bgv-\w+", text))
            found += [(entry.name, m) for m in matches if Path(m.decode()) not in before]
    return found


def last(done):
    return done.stdout.splitlines()[-1]


def test_a_sound_banger_is_ok(verify, own_host):
    done = verify(outside=f"192.0.2.99:9 {BEYOND}:{ECHO_PORT}")
    assert (done.returncode, last(done)) == (0, "[verify] ok")
    said = done.stdout
    for step in (
        "daemon up",
        "ready, qemu",
        "ssh",
        "leads to its SSH",
        "health",
        "restart",
        "delete",
    ):
        assert step in said
    assert "outside: reached, not without NAT, and with it again" in said
    assert "4 TAPs in the pool" in said


def test_a_host_without_an_outside_is_told_so_and_a_service_that_never_answers_fails_it(
    verify, banger
):
    """A deadline passes: the dump has what the VM is, its console, its network; and the VM is gone afterwards."""
    banger.run("image", "register", "--name", "never", "--from", "debian", "--service", "web:8080")
    try:
        done = verify("--image", "never", "--timeout", "60")
    finally:
        banger.run("image", "delete", "never")
    assert done.returncode == 1
    assert re.fullmatch(
        r"\[verify\] FAILED: create verify-\w+: status 6: banger op wait \w+", last(done)
    )
    dump = done.stderr
    assert "a service did not answer" in dump
    assert '"state": "stopped"' in dump
    assert "banger: booted" in dump.partition("console.log")[2]
    assert "bangerd.log" in dump
    assert "table inet banger" in dump.partition("NAT and filter")[2]
    assert "br0" in dump.partition("those of the pool are capacity")[2]


def test_a_vmm_that_is_killed_is_shown_with_its_signal(verify):
    """As soon as there is one."""
    killed = threading.Event()

    def find():
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"qemu-system" in words[0] and b"/tmp/bgv-" in b" ".join(words):
                    return int(entry.name)
        return None

    def kill():
        with contextlib.suppress(AssertionError):
            pid = wait_until(find, 200)
            time.sleep(1)
            os.kill(pid, 9)
            killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    done = verify()
    thread.join()
    assert killed.is_set()
    assert done.returncode == 1
    assert last(done).startswith("[verify] FAILED: create verify-")
    assert "SIGKILL" in done.stderr


def test_an_interrupted_run_takes_all_back_though_nobody_listens_any_more(verify, banger, tmp_path):
    """As by Ctrl-C in front of a pipe: the reader is gone, and the VM is in the middle of its boot."""
    before = set(Path("/tmp").glob("bgv-*"))
    env = {**banger.env, "BANGER": str(tmp_path / "banger")}
    running = subprocess.Popen(
        [ROOT / "scripts" / "verify.sh"], env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    for line in running.stdout:
        if "image debian" in line:
            break
    wait_until(lambda: any(b"qemu" in text for text in arguments(before)), 60)
    running.stdout.close()
    began = time.monotonic()
    running.terminate()
    assert running.wait(60) == 1
    assert time.monotonic() - began < 30
    assert set(Path("/tmp").glob("bgv-*")) == before
    wait_until(lambda: left_of(before) == [], 60)


def arguments(before):
    """Command lines of a smoke run's processes."""
    for pid, _ in left_of(before):
        with contextlib.suppress(OSError):
            yield Path(f"/proc/{pid}/cmdline").read_bytes()


def test_without_a_banger_it_fails_at_once(verify, tmp_path):
    done = verify(program=tmp_path / "nothing")
    assert done.returncode == 1
    assert last(done).startswith("[verify] FAILED: find banger")
    done = verify("--no-such-option")
    assert (done.returncode, last(done)) == (
        2,
        "[verify] FAILED: unknown argument --no-such-option",
    )
