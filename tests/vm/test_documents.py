"""The commands of the tutorial and of how-tos, run as they stand there, on real guests; last of all the one that removes banger."""

import json
import os
import re
import subprocess

import pytest

from tests.framework.documents import blocks
from tests.framework.installation import wait_until
from tests.framework.reader import Reader
from tests.framework.reading_list import READ

TUTORIAL, SEEING, REMOTE, UNINSTALL = READ
OTHER_HOST = """#!/bin/sh
# ssh to a host called build, which is this one, by a shell; a socket that it forwards is a link. All else is ssh's.
real={ssh}
for word; do last=$word; [ "$word" != build ] || to_build=yes; done
[ "$to_build" = yes ] || exec "$real" "$@"
while [ "$1" != build ]; do
    case $1 in -L) ln -s "${{2#*:}}" "${{2%%:*}}" ;; esac
    shift
done
shift
[ $# = 0 ] || exec sh -c "$*"
"""


@pytest.fixture(scope="module")
def home(shared):
    return Reader(shared)


@pytest.fixture
def reader(home, monkeypatch):
    """The reader of the module, who forgets what a document made him export."""
    monkeypatch.setattr(home, "env", dict(home.env))
    return home


@pytest.fixture(scope="module")
def web(shared):
    shared.create("web")
    return shared


@pytest.mark.timeout(400)
def test_the_tutorial_works_and_prints_what_it_says(reader):
    reader.follow(TUTORIAL, left_out=READ[TUTORIAL])


@pytest.mark.timeout(400)
def test_what_is_said_of_seeing_can_be_done(reader, web):
    operation = web.json("op", "list")[0]["id"]
    words = (("NAME", "web"), ("ID", operation), ("FILE", "trace.json"))
    reader.follow(SEEING, left_out=READ[SEEING], words=words)
    assert json.loads((reader.home / "trace.json").read_text())["traceEvents"]


def test_what_a_vm_consists_of_is_its_owners_alone(reader, web):
    """Disks, keys, secrets, logs, database and sockets: closed by their own modes, and again by their directories'."""
    reader.run("echo value | banger secret set KEY")
    directories = [web.state, web.runtime, web.state / "secrets"]
    files = [*web.state.glob("banger.db*"), *web.state.glob("vms/*/*"), *web.state.glob("*.log"), *web.state.glob("secrets/*"), web.state / "ssh" / "id_ed25519", *web.runtime.rglob("*.sock")]  # fmt: skip
    assert len(files) > 10
    found = [*directories, *(path for path in files if not path.is_symlink())]
    assert {
        str(path): oct(path.stat().st_mode) for path in found if path.stat().st_mode & 0o077
    } == {}


@pytest.mark.timeout(400)
def test_another_host_is_used_as_the_how_to_says(reader, web, other_host):
    runtime, own = str(web.runtime), f"{reader.home}/build-host"
    reader.follow(REMOTE, left_out=READ[REMOTE], words=(("/run/user/1000/banger", runtime),))
    assert "/root/src/one\n" in web.run("exec", "web", "--", "find", "/root/src").stdout
    # plain ssh by way of the other host, with the block that goes into ~/.ssh/config
    block = next(b for b in blocks(REMOTE) if any(line.startswith("Host ") for _, line in b))
    lines = [line for _, line in block]
    trust = ["StrictHostKeyChecking no", "UserKnownHostsFile /dev/null", f"IdentityFile {reader.home}/.ssh/id_ed25519"]  # fmt: skip
    (reader.home / "config").write_text("\n".join([*lines, *trust]) + "\n")
    assert reader.run("ssh -q -F config web.build hostname") == "web\n"
    # over the socket that was brought here: what the table says that works, and what does not
    away = {**reader.env, "BANGER_RUNTIME_DIR": own, "BANGER_STATE_DIR": f"{reader.home}/here"}
    for command in ("ls", "vm show web", "vm health web", "vm stats web", "vm logs web", "op list", "events", "df", "image list", "exec web -- true", f"vm cp web:/etc/hostname {reader.home}"):  # fmt: skip
        web.run(*command.split(), env=away)
    refused = web.run("daemon", "stop", env=away, check=False)
    assert (refused.returncode, "is not of this host" in refused.stderr) == (4, True)
    assert web.run("ssh", "web", "--", "true", env=away, check=False).returncode != 0


@pytest.mark.timeout(400)
def test_after_the_removal_nothing_of_banger_is_left(reader, shared):
    """Of its own directories, of what it changed in the home, of processes and sockets."""
    before = set(_files(reader.home))
    images = os.readlink(shared.state / "images")
    config = reader.home / "config.toml"
    config.write_text('memory = "1G"\n')
    reader.env |= {"BANGER_CONFIG": str(config), "XDG_RUNTIME_DIR": str(reader.home)}
    (reader.home / ".ssh").mkdir(exist_ok=True)
    (reader.home / ".ssh" / "config").write_text("Host own\n")
    reader.run("banger setup ssh && banger secret set KEY < config.toml && banger vm list")
    assert "Include" in (reader.home / ".ssh" / "config").read_text()
    assert shared.processes()
    reader.follow(UNINSTALL, left_out=READ[UNINSTALL])
    wait_until(lambda: shared.processes() == {}, 60)
    assert not shared.state.exists()
    assert not shared.runtime.exists()
    assert (reader.home / ".ssh" / "config").read_text() == "Host own\n"
    assert set(_files(reader.home)) - before <= {".ssh/config"}
    assert os.path.isdir(images)  # the tests' own, behind a link


@pytest.fixture
def other_host(reader):
    """A host called build, and the key and directory that the how-to speaks of."""
    real = subprocess.run(["sh", "-c", "command -v ssh"], capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    program = reader.home / "bin" / "ssh"
    program.write_text(OTHER_HOST.format(ssh=real))
    program.chmod(0o755)
    (reader.home / "src").mkdir()
    (reader.home / "src" / "one").touch()
    (reader.home / ".ssh").mkdir(mode=0o700, exist_ok=True)
    reader.run("ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519")
    yield
    program.unlink()


def _files(directory):
    for path in directory.rglob("*"):
        if path.is_file() and not re.search(r"(^|/)(\.cache|__pycache__)/", str(path)):
            yield str(path.relative_to(directory))
