"""Real guests of roots that banger did not build: a container image of Debian packages without an init, one without a Python, and
exports that come back.
"""

import os

import pytest

from banger.host.exec import find_program
from tests.framework import toy_container as toy
from tests.framework.debian_root import debian_root as made_root
from tests.framework.installation import wait_until

PACKAGES = "python3-minimal,openssh-server,iproute2"
ENV = ["PATH=/opt/tool/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GREETING=it's me"]  # fmt: skip
SERVER = """#!/bin/sh
echo "$GREETING, $(id -u), $(pwd)" > /tmp/said
exec sleep 1000000
"""


@pytest.fixture(scope="module")
def debian_root(image):
    """A container's root: minbase with an sshd and a minimal Python, no systemd, as a tar; made once, as the debian image is."""
    return made_root("container", PACKAGES)


@pytest.fixture(scope="module")
def saved(debian_root, tmp_path_factory):
    """It as docker save writes it, with a second layer that changes it."""
    second = toy.tar(
        [
            toy.member("opt/tool/bin/serve", SERVER.encode(), mode=0o755),
            toy.member("srv/app", mode=0o755),
            toy.member("etc/.wh.motd", b""),
            toy.hard_link("opt/shell", "usr/bin/dash"),
        ]
    )
    path = tmp_path_factory.mktemp("container") / "web.tar"
    toy.docker_save(
        path, [debian_root.read_bytes(), second], tag="web:1", Env=ENV, Entrypoint=["serve"], WorkingDir="/srv/app", User="nobody"
    )  # fmt: skip
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def imported(shared, saved):
    """An installation with that image and a VM of it."""
    done = shared.run("image", "import", str(saved), "--start-command", "--replace", timeout=600)
    print(done.stderr)
    shared.create("web", "--image", "web", timeout=400)
    yield shared
    shared.run("vm", "delete", "--all", check=False)
    for item in shared.json("image", "list"):
        if item["name"] != "debian":
            shared.run("image", "delete", item["id"])


def ask(banger, script, *, name="web"):
    return banger.run("vm", "exec", name, "--", "sh", "-c", script).stdout.strip()


@pytest.mark.timeout(1500)
def test_a_container_image_boots_with_an_init_and_the_agent(imported):
    shown = imported.json("image", "show", "web")
    assert [(one["name"], one["port"]) for one in shown["services"]] == [("ssh", 22)]
    assert imported.vm("web")["ready"]
    assert ask(imported, "cat /proc/1/cmdline | tr '\\0' ' '").startswith("/usr/lib/banger/busybox sh")  # fmt: skip
    assert ask(imported, "cat /etc/hostname; hostname") == "web\nweb"
    assert ask(imported, "test -e /etc/motd || echo gone; cmp /opt/shell /bin/dash && echo same") == "gone\nsame"  # fmt: skip
    assert ask(imported, "stat -f -c %T / ; stat -c %a:%U /etc/shadow /tmp") .endswith("640:root\n1777:root")  # fmt: skip
    assert ask(imported, "mount | grep -c ' on /root '; ls -d /lib/modules/$(uname -r)") == f"1\n/lib/modules/{shown['kernel_release']}"  # fmt: skip


def test_ssh_is_by_key_only_with_a_host_key_of_the_vms_own(imported):
    assert imported.run("vm", "ssh", "web", "--", "echo $GREETING").stdout.strip() == "it's me"
    settings = ask(imported, "/usr/sbin/sshd -T")
    assert "permitrootlogin without-password" in settings
    assert "passwordauthentication no" in settings
    assert ask(imported, "ls /etc/ssh/ssh_host_*_key") == "/etc/ssh/ssh_host_ed25519_key"


def test_the_containers_environment_and_command_are_there(imported):
    assert ask(imported, "echo $GREETING; echo $PATH").splitlines()[0] == "it's me"
    assert ask(imported, "cat /tmp/said") == "it's me, 65534, /srv/app"
    assert ask(imported, "sh -lc 'echo $GREETING'") == "it's me"


def test_its_init_reaps_orphans_and_starts_again_what_ended(imported):
    ask(imported, "setsid sh -c 'sleep 0.1 & exit' ; sleep 1")
    wait_until(lambda: ask(imported, "cat /proc/[0-9]*/stat 2> /dev/null | grep -c ') Z ' || true") == "0", 60)  # fmt: skip
    again = "n=60; until [ -s /tmp/said ] || [ $n = 0 ]; do sleep 1; n=$((n - 1)); done"
    before = ask(imported, f"cat /tmp/said; rm -f /tmp/said; kill $(cat /proc/[0-9]*/stat | grep '(sleep)' | cut -d' ' -f1) 2>/dev/null; {again}; cat /tmp/said")  # fmt: skip
    assert len(before.splitlines()) == 2


def test_it_stops_by_its_init_and_starts_again_with_what_was_written(imported):
    ask(imported, "echo kept > /root/kept; echo kept > /var/kept")
    stopped = imported.run("vm", "stop", "web")
    assert "kill" not in stopped.stderr.lower()
    assert "banger: poweroff" in imported.run("vm", "logs", "web").stdout
    imported.run("vm", "start", "web", timeout=300)
    assert ask(imported, "cat /root/kept /var/kept") == "kept\nkept"


@pytest.mark.timeout(900)
def test_a_root_without_python_or_anything_gets_what_the_agent_needs(imported, tmp_path):
    """Nothing but a static busybox, as an OCI layout: also the C library is of banger's bringing."""
    busybox = find_program("busybox", package="busybox-static")
    with open(busybox, "rb") as file:
        layer = toy.tar([toy.member("bin/busybox", file.read(), mode=0o755), toy.symlink("bin/sh", "busybox")])  # fmt: skip
    layout = toy.write_layout(tmp_path / "tiny", toy.layout_files([layer]))
    imported.run("image", "import", str(layout), "--name", "tiny", timeout=600)
    imported.create("tiny", "--image", "tiny", timeout=400)
    assert ask(imported, "busybox id -un; busybox ls /", name="tiny").splitlines()[0] == "root"
    imported.run("vm", "stop", "tiny")


def test_an_export_comes_back_as_the_same_image(shared, image, tmp_path):
    path = tmp_path / "debian.banger"
    shared.run("image", "export", "debian", str(path), timeout=600)
    again = tmp_path / "again.banger"
    shared.run("image", "export", image["id"], str(again), timeout=600)
    assert path.read_bytes() == again.read_bytes()
    refused = shared.run("image", "export", "debian", str(path), check=False)
    assert refused.returncode == 4
    other = {"BANGER_STATE_DIR": str(tmp_path / "other"), "BANGER_RUNTIME_DIR": str(tmp_path / "run")}  # fmt: skip
    try:
        done = shared.run("image", "import", str(path), "--format", "name", env=other, timeout=600)
        assert done.stdout.strip() == "debian"
        assert (tmp_path / "other" / "images" / image["id"] / "rootfs.img").is_file()
        assert os.listdir(tmp_path / "other" / "images" / image["id"]) != []
    finally:
        shared.run("daemon", "stop", env=other, check=False)
