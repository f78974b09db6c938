"""A stopped VM becomes an image: what is in it, what is not any more, and that both it and VMs of the image run."""

import pytest

from tests.framework.installation import Installation

NESTED = """set -e
echo of-the-vm > /opt/mine; echo a-note > /root/note; echo secret-command > /root/.bash_history; echo noise > /var/log/noise.log
cd /root; rm .bashrc .profile; mkdir -p root/.config root/.ssh root/deep/er
echo nested > root/.bashrc; echo nested > root/.profile; echo "below" > root/note; echo x > "root/deep/er/a file"; ln -s nowhere root/link
echo kept > .ssh/above; echo below > root/.ssh/below; sync"""
FACTS = "cat /etc/machine-id; cat /etc/ssh/ssh_host_ed25519_key.pub; cat /etc/banger/agent-token; cat /etc/hostname"


@pytest.fixture(scope="module")
def banger(tmp_path_factory, image):
    """An installation for all tests of the module."""
    installation = Installation(tmp_path_factory.mktemp("promote"))
    yield installation
    left = installation.close()
    assert not left, f"left behind: {left}"


def sh(banger, vm, script):
    return banger.run("vm", "exec", vm, "--", "sh", "-c", script).stdout


def of(banger, vm):
    machine_id, key, token, name = sh(banger, vm, FACTS).split("\n")[:4]
    assert name == vm
    return machine_id, key, token


def flattened(banger, vm):
    """The home that lay in root/ is where it belongs, without a file less; what was in the way has another name."""
    listed = sh(
        banger, vm, "cd /root; find . -mindepth 1 -not -path './lost+found*' | sort"
    ).split()
    assert {"./.bashrc", "./.profile", "./.config", "./link", "./note", "./note.from-root"} <= set(
        listed
    )
    assert {"./.ssh/above", "./.ssh.from-root/below"} <= set(listed)
    assert not any(path.startswith(("./root", "./.banger")) for path in listed)
    said = sh(
        banger, vm, 'cd /root; cat note note.from-root "deep/er/a file" .bashrc; readlink link'
    )
    assert said.split() == ["a-note", "below", "x", "nested", "nowhere"]


@pytest.mark.timeout(300)  # four boots
def test_a_vm_and_the_image_that_was_made_of_it_both_go_on(banger, image):
    banger.run("vm", "create", "--name", "src", "--memory", "512M", "--work-size", "3G")
    grown = sh(banger, "src", "df -B1 --output=size /root | tail -n 1")
    assert int(grown) > 2.7 * (1 << 30), "the guest grows its work disk before it is ready"
    sh(banger, "src", NESTED)
    source = of(banger, "src")
    promote = ("image", "promote", "src", "--name", "mine", "--with-work", "--clean-history")
    refused = banger.run(*promote, check=False)
    assert refused.returncode == 4
    assert "banger vm stop src" in refused.stderr
    banger.run("vm", "stop", "src")
    done = banger.run(*promote)
    print(done.stderr)
    taken = banger.run(*promote, check=False)
    assert taken.returncode == 4
    assert "--replace" in taken.stderr

    made = banger.json("image", "show", "mine")
    assert made["parent"] == image["id"]
    assert made["history"][-1]["vm"] == "src"
    assert made["packages"] == image["packages"]
    assert made["kernel_release"] == image["kernel_release"]
    assert made["allocated_bytes"] < 1.2 * image["allocated_bytes"]

    banger.run(
        "vm", "create", "--name", "copy", "--image", "mine", "--memory", "512M", "--work-size", "4G"
    )
    copy = of(banger, "copy")
    assert all(one != other for one, other in zip(source, copy, strict=True))
    assert sh(banger, "copy", "cat /opt/mine") == "of-the-vm\n"
    assert sh(banger, "copy", "cat /var/log/noise.log; ls -A /root | grep history || true") == ""
    assert "secret-command" not in sh(banger, "copy", "cat /root/.bash_history 2> /dev/null; true")
    flattened(banger, "copy")
    assert banger.run("vm", "ssh", "copy", "--", "hostname").stdout == "copy\n"
    size = sh(banger, "copy", "df -B1 --output=size /root | tail -n 1")
    assert int(size) > 3.6 * (1 << 30)
    used = banger.run("image", "delete", "mine", check=False)
    assert used.returncode == 4
    assert "banger vm delete copy" in used.stderr
    banger.run("vm", "delete", "copy")

    banger.run("image", "promote", "src", "--name", "plain")
    banger.run("vm", "create", "--name", "other", "--image", "plain", "--memory", "512M")
    assert (
        sh(banger, "other", "cat /opt/mine; ls -A /root")
        == "of-the-vm\n.bashrc\n.profile\n.ssh\nlost+found\n"
    )
    banger.run("vm", "delete", "other")

    banger.run("vm", "start", "src")
    assert of(banger, "src") == source
    flattened(banger, "src")
    assert (
        "the home in root/ was moved up"
        in (banger.state / "vms" / banger.vm("src")["id"] / "console.log").read_text()
    )
    assert sh(banger, "src", "cat /opt/mine /root/.bash_history") == "of-the-vm\nsecret-command\n"
