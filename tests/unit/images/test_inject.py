"""What is added to a foreign root: with systemd and without, with a Python and without, and a container's own settings."""

import io
import os
import pwd
import subprocess
import sys
import tarfile

import pytest

from banger.host.exec import find_program
from banger.images.elf import interpreter, needed_libraries
from banger.images.guest_python import is_new_enough
from banger.images.inject import Foreign, additions, environment, look_at
from banger.images.layers import Member
from banger.images.oci import Run
from banger.images.resources import payload_dir
from banger.images.root_tree import RootTree
from banger.model.errors import InvalidInputError
from banger.model.manifest import Service

PYTHON = ("usr/bin/python3", "usr/lib/python3.11/json/__init__.py", "usr/lib/python3.11/lib-dynload/_json.so")  # fmt: skip
SYSTEMD = (
    "usr/lib/systemd/systemd", "usr/lib/systemd/system/ssh.service", "usr/lib/systemd/system/multi-user.target", "usr/sbin/sshd",
    "etc/ssh/sshd_config", "etc/ssh/ssh_host_rsa_key", "root/.bashrc",
)  # fmt: skip
ROOT = b"root:*:20000:0:99999:7:::\n"


def root(*names, **links):
    made = RootTree()
    members = [Member(n, tuple(name.split("/")), "file") for n, name in enumerate(names)]
    members += [Member(900 + n, tuple(name.split("__")), "symlink", target=target) for n, (name, target) in enumerate(links.items())]  # fmt: skip
    made.apply(0, members, "root")
    return made


def added(tree, contents=None, run=None, *, start=False):
    found = look_at(tree)
    return additions(tree, contents or {}, found, b"busybox", found.services, run or Run(), start=start)  # fmt: skip


@pytest.mark.parametrize("name", ["python3.9", "python3.11", "/usr/bin/python3.13"])
def test_a_whole_python_that_is_new_enough_is_used(name):
    assert is_new_enough(name)
    version = name.rpartition("/")[2]
    files = [path.replace("python3.11", version) for path in PYTHON[1:]]
    tree = root(f"usr/bin/{version}", *files, usr__bin__python3=version)
    assert look_at(tree).python
    assert "exec /usr/bin/python3 -I -S" in added(tree).files["usr/lib/banger/agent"].decode()


@pytest.mark.parametrize(
    "tree",
    [
        root(),
        root("usr/bin/python3.8", "usr/lib/python3.8/json/__init__.py", "usr/lib/python3.8/lib-dynload/_json.so", usr__bin__python3="python3.8"),
        root("usr/bin/python3.11", "usr/lib/python3.11/json/__init__.py", usr__bin__python3="python3.11"),
        root(*PYTHON[1:], usr__bin__python3="python3.11"),
        root(usr__bin__python3="python3"),
    ],
)  # fmt: skip
def test_a_python_that_is_old_minimal_or_nothing_is_replaced_by_one_of_bangers_bringing(tree):
    assert look_at(tree) == Foreign(None, sshd=False, python=False)
    assert "/usr/lib/banger/python/lib/ld.so --library-path" in added(tree).files["usr/lib/banger/agent"].decode()  # fmt: skip


def test_a_root_with_systemd_gets_units_and_masks_and_keeps_its_init():
    layer = added(root(*SYSTEMD, sbin__init="/lib/systemd/systemd", lib="usr/lib"), {"etc/ssh/sshd_config": b"#x\nInclude /etc/ssh/sshd_config.d/*.conf\n"})  # fmt: skip
    units = "etc/systemd/system"
    assert "sbin/init" not in {**layer.files, **layer.links}
    assert layer.links[f"{units}/multi-user.target.wants/ssh.service"] == "/usr/lib/systemd/system/ssh.service"  # fmt: skip
    assert layer.links[f"{units}/sysinit.target.wants/banger-agent.service"]
    assert layer.links[f"{units}/systemd-networkd-wait-online.service"] == "/dev/null"
    assert "ExecStart=/usr/lib/banger/python/lib/ld.so" in layer.files[f"{units}/banger-agent.service"].decode()  # fmt: skip
    assert b"Storage=volatile" in layer.files["etc/systemd/journald.conf.d/50-banger.conf"]
    assert layer.removed == ["etc/ssh/ssh_host_rsa_key"]
    assert "etc/ssh/sshd_config" not in layer.files
    assert b"PasswordAuthentication no" in layer.files["etc/ssh/sshd_config.d/50-banger.conf"]
    assert "root/.bashrc" not in layer.files
    assert layer.files["etc/fstab"].startswith(b"#")


def test_a_root_without_an_init_gets_one_and_nothing_of_systemds():
    layer = added(root("bin/sh", sbin__init="/bin/busybox"))
    assert layer.removed == ["sbin/init"]
    assert layer.modes["sbin/init"] == 0o755
    assert not any("systemd" in path for path in {**layer.files, **layer.links})
    assert {"root", "etc", "proc", "tmp"} <= set(layer.directories)
    assert layer.files["etc/banger/services.json"] == b"[]\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"root::1:0:::::\n", ROOT),
        (b"a:x:\nroot:!$6$x:0::1::1::\nb:y:\n", b"a:x:\n" + ROOT + b"b:y:\n"),
        (b"root:x", ROOT),
        (b"", ROOT),
    ],
)
def test_root_has_no_password_and_none_that_has_expired(before, after):
    layer = added(root(), {"etc/shadow": before} if before else {})
    assert (layer.files["etc/shadow"], layer.modes["etc/shadow"]) == (after, 0o640)


@pytest.mark.parametrize(
    ("files", "shell"), [(["bin/bash", "bin/sh"], b"/bin/bash"), (["bin/sh"], b"/bin/sh"), ([], b"/usr/sbin/nologin")]
)  # fmt: skip
def test_root_gets_a_shell_if_it_has_none_and_there_is_one(files, shell):
    users = b"root:x:0:0:root:/root:%s\na:x:1:1::/:/bin/false\n"
    layer = added(root(*files), {"etc/passwd": users % b"/usr/sbin/nologin"})
    assert layer.files.get("etc/passwd", users % shell) == users % shell
    assert "etc/passwd" not in added(root("bin/bash"), {"etc/passwd": users % b"/bin/zsh"}).files


def test_the_layer_is_a_tar_that_is_the_same_every_time():
    layer = added(root(*SYSTEMD))
    assert layer.tar(7) == added(root(*SYSTEMD)).tar(7)
    with tarfile.open(fileobj=io.BytesIO(layer.tar(7))) as archive:
        names = archive.getnames()
        assert {member.mtime for member in archive} == {7}
    assert "etc/ssh/.wh.ssh_host_rsa_key" in names


@pytest.mark.parametrize(
    "word", ["A", "=x", "A-B=x", "A=x\ny", "A=x\0", "1A=x", "A=" + "x" * 40_000]
)
def test_a_variable_that_cannot_be_is_refused(word):
    with pytest.raises(InvalidInputError, match="cannot be set"):
        environment(Run(env=[word]))


def test_a_container_without_a_command_cannot_be_started():
    with pytest.raises(InvalidInputError, match="no command"):
        added(root(), run=Run(), start=True)


def test_a_containers_command_and_variables_are_quoted():
    run = Run(env=["A=$(rm -rf /)'"], entrypoint=["/a b"], cmd=["$HOME", "'"], working_dir="/x y", user="me:us")  # fmt: skip
    script = added(root(), run=run, start=True).files["usr/lib/banger/entrypoint"].decode()
    shown = subprocess.run(["sh", "-n"], input=script, text=True, check=True, capture_output=True)
    assert shown.stderr == ""
    assert "as_user.py me:us '/a b' '$HOME'" in script
    assert "cd '/x y' ||" in script
    told = subprocess.run(["sh", "-c", script.partition("cd ")[0].partition("\n")[2] + 'printf %s "$A"'], text=True, check=True, capture_output=True)  # fmt: skip
    assert told.stdout == "$(rm -rf /)'"


def test_with_systemd_the_command_is_a_unit():
    layer = added(root(*SYSTEMD), run=Run(cmd=["x"]), start=True)
    assert "banger-container.service" in "".join(layer.links)
    assert layer.files["etc/systemd/system/banger-container.service"]


def test_services_come_from_the_root():
    assert look_at(root(*SYSTEMD)).services == (Service("ssh", 22),)
    assert look_at(root("bin/sh")).services == ()


def as_user(*argv):
    program = payload_dir() / "foreign" / "as_user.py"
    return subprocess.run([sys.executable, "-I", "-S", program, *argv], text=True, capture_output=True, check=False)  # fmt: skip


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_program_becomes_a_user_by_name_or_number():
    nobody = pwd.getpwnam("nobody")
    asked = "import os; print(os.getuid(), os.getgid(), os.environ['HOME'])"
    want = f"{nobody.pw_uid} {nobody.pw_gid} {nobody.pw_dir}\n"
    assert as_user("nobody", sys.executable, "-c", asked).stdout in {want, ""}
    assert as_user("nobody", "sh", "-c", "id -u; id -g; echo $HOME").stdout.split() == want.split()
    assert as_user("12345:54321", "sh", "-c", "id -u; id -g; id -G; echo $HOME").stdout == "12345\n54321\n54321\n/\n"  # fmt: skip
    assert "no 'who'" in as_user("who", "true").stderr
    assert "cannot be started" in as_user("nobody", "/none").stderr


def test_loader_and_libraries_of_a_program_are_those_that_readelf_names():
    with open(find_program("bash"), "rb") as file:
        data = file.read()
    shown = subprocess.run(["readelf", "-dl", find_program("bash")], check=True, capture_output=True, text=True).stdout  # fmt: skip
    assert [f"[{name}]" for name in needed_libraries(data)] == [word for line in shown.splitlines() if "(NEEDED)" in line for word in line.split() if word.startswith("[")]  # fmt: skip
    assert f"interpreter: {interpreter(data)}]" in shown
    assert needed_libraries(b"no ELF") == []
    assert interpreter(data[:100]) == ""
