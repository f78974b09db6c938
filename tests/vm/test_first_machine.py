"""The README's first command, and a VM of an ordinary user: with banger's own network, and on a host that does not allow it."""

import contextlib
import json
import socket
import subprocess
import threading

import pytest

from banger.host.probe import root
from tests.framework.installation import ROOT, name_image, wait_until
from tests.framework.ordinary_user import OrdinaryUser, tun_mode

pytestmark = pytest.mark.timeout(900)  # the default image is built
needs_root = pytest.mark.skipif(not root(), reason=f"to become another user: {root().why}")


def shows_a_vm(done):
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'PRETTY_NAME="Debian' in done.stdout
    assert "systemd: running" in done.stdout
    assert "/dev/vdb" in done.stdout
    assert "it is gone" in done.stderr


@pytest.fixture(scope="module")
def user(image, dev_image):
    with OrdinaryUser() as user:
        names = {
            dev_image["id"]: "debian",
            image["id"]: "debian-base",
        }  # as after the README's commands
        user.equip(*names, names=names)
        yield user
        user.banger("vm", "delete", "--all")
        user.banger("daemon", "stop")
        wait_until(lambda: user.processes() == [], 60)  # what ends with the daemon may do so later


def test_the_demo_works(banger, image, dev_image):
    """Its image has been built already: that takes a minute, and is tested elsewhere."""
    name_image(banger.images / image["id"], "debian-base")
    name_image(banger.images / dev_image["id"], "debian")
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "demo.sh"], env=banger.env, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    shows_a_vm(done)
    assert banger.daemon_pid() is None
    assert banger.json("vm", "list") == []
    assert banger.json("image", "show", "debian")["id"] == dev_image["id"]


@needs_root
def test_the_demo_works_for_an_ordinary_user_on_banger_s_own_network(user):
    with tun_mode(0o666):
        done = user.run("bash", str(user.checkout / "scripts" / "demo.sh"), check=False)
    shows_a_vm(done)
    assert "warning:" not in done.stderr
    wait_until(lambda: user.processes() == [], 60)


@needs_root
def test_without_the_tun_device_a_vm_has_qemu_s_network_and_its_user_is_warned(user, image):
    """The warning is true: such a guest reaches servers on the host's own loopback."""
    with tun_mode(0o600):
        made = user.banger("vm", "create", "--name", "two", "--image", image["id"], "--memory", "512M", "--work-size", "1G")  # fmt: skip
        assert "warning:" in made.stderr
        assert "127.0.0.1" in made.stderr
        vm = json.loads(user.banger("vm", "show", "two", "--format", "json").stdout)
        assert vm["status"]["network"] == "qemu-user"
        assert user.banger("vm", "exec", "two", "--", "id", "-un").stdout == "root\n"
        assert user.banger("vm", "ssh", "two", "--", "hostname").stdout == "two\n"
        with greeting() as port:
            script = f"read -r line < /dev/tcp/$(ip route show default | cut -d' ' -f3)/{port}; echo $line"
            said = user.banger("vm", "exec", "two", "--", "timeout", "60", "bash", "-c", script)
            assert said.stdout == "hello from the host\n"
        user.banger("vm", "delete", "two")
        user.banger("daemon", "stop")
    wait_until(lambda: user.processes() == [], 60)


@contextlib.contextmanager
def greeting():
    """A server on the host's loopback that greets once; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)

        def greet():
            with contextlib.suppress(TimeoutError), server.accept()[0] as client:
                client.sendall(b"hello from the host\n")

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            thread.join()
