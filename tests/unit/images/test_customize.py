"""Users, files and hooks of a recipe: the script, what lies beside it, what the image's inputs are."""

import subprocess
import tarfile

import pytest
from inline_snapshot import snapshot

from banger.images.build import inputs_digest
from banger.images.customize import customize_script, customizing_files, write_payload
from banger.images.recipe import load_recipe
from banger.model.errors import InvalidInputError

RECIPE = """name = "mine"
distribution = "debian"
release = "bookworm"
architecture = "amd64"
packages = "list"
"""
EXTRAS = """add_packages = ["sudo"]
[[users]]
name = "dev"
groups = ["docker", "kvm"]
sudo = true
[[users]]
name = "web"
shell = "/usr/sbin/nologin"
[[files]]
path = "/etc/it's here"
content = "hello\\n"
mode = "0600"
owner = "dev:kvm"
[[files]]
path = "/usr/local/bin/tool"
source = "tool"
mode = "755"
[[hooks]]
stage = "customize"
run = "echo $HOME"
[[hooks]]
stage = "customize"
script = "../hook.py"
"""


@pytest.fixture
def load(tmp_path):
    def write(text=EXTRAS, base=RECIPE, name="mine"):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "list").write_text("bash\n")
        (tmp_path / "hook.py").write_text("#!/usr/bin/python3\nprint(1)\n")
        if not (tmp_path / "images" / "tool").exists():
            (tmp_path / "images" / "tool").write_bytes(b"\x7fELF\0tool")
        path = tmp_path / "images" / f"{name}.toml"
        path.write_text(base + text)
        return load_recipe(str(path))

    return write


def test_the_script_makes_users_then_files_then_runs_hooks(load):
    assert customize_script(load()) == snapshot("""\
#!/bin/sh
set -eu
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DEBIAN_FRONTEND=noninteractive
exec < /dev/null
step='nothing yet'
trap 'status=$?; [ $status = 0 ] || echo "banger: $step failed with status $status" >&2' EXIT
step='users[0] (dev)'
groupadd --force --system docker; groupadd --force --system kvm; useradd --create-home --user-group --groups docker,kvm --shell /bin/bash dev
printf '%s\\n' 'dev ALL=(ALL:ALL) NOPASSWD: ALL' > /etc/sudoers.d/50-banger-dev
chmod 0440 /etc/sudoers.d/50-banger-dev
step='users[1] (web)'
useradd --create-home --user-group --shell /usr/sbin/nologin web
step='files[0] (/etc/it'"'"'s here)'
install -D -m 0600 -o dev -g kvm /usr/lib/banger/build/file-0 '/etc/it'"'"'s here'
step='files[1] (/usr/local/bin/tool)'
install -D -m 0755 -o root -g root /usr/lib/banger/build/file-1 /usr/local/bin/tool
step='hook hooks[0]'
echo "banger: $step" >&2
(cd / && /bin/sh -e /usr/lib/banger/build/hook-0 >&2)
step='hook hooks[1], hook.py'
echo "banger: $step" >&2
(cd / && /usr/lib/banger/build/hook-1 >&2)
step='cleaning up'
rm -rf /usr/lib/banger/build /usr/lib/banger/customize.sh
""")


def test_the_script_is_a_shells(load, tmp_path):
    path = tmp_path / "script"
    path.write_text(customize_script(load()))
    subprocess.run(["sh", "-n", path], check=True)


def test_a_recipe_without_any_has_no_script(load):
    assert customizing_files(load("")) == {}


def test_the_payload_has_hooks_and_files(load, tmp_path):
    loaded = load()
    write_payload(tmp_path / "tar", customizing_files(loaded), loaded, executable=frozenset(), epoch_s=5)  # fmt: skip
    with tarfile.open(tmp_path / "tar") as archive:
        found = {m.name: (oct(m.mode), m.mtime, archive.extractfile(m).read()) for m in archive}
    del found["./usr/lib/banger/customize.sh"]
    assert found == {
        "./usr/lib/banger/build/hook-0": ("0o755", 5, b"echo $HOME"),
        "./usr/lib/banger/build/hook-1": ("0o755", 5, b"#!/usr/bin/python3\nprint(1)\n"),
        "./usr/lib/banger/build/file-0": ("0o600", 5, b"hello\n"),
        "./usr/lib/banger/build/file-1": ("0o600", 5, b"\x7fELF\0tool"),
    }


def test_a_file_that_changes_after_the_recipe_was_read_ends_the_build(load, tmp_path):
    loaded = load()
    tool = tmp_path / "images" / "tool"
    for change in (lambda: tool.write_bytes(b"other"), tool.unlink):
        change()
        with pytest.raises(InvalidInputError, match="has changed"):
            write_payload(tmp_path / "tar", {}, loaded, executable=frozenset(), epoch_s=0)


def test_every_key_is_an_input_and_where_files_lie_is_none(load, tmp_path):
    digests = {inputs_digest(load(), None)}
    for old, new in (
        ('"docker"', '"other"'), ("sudo = true", "sudo = false"), ("nologin", "other"), ("hello", "hallo"), ("0600", "0640"),
        ("dev:kvm", "dev"), ("echo $HOME", "echo"), ("it's", "its"),
    ):  # fmt: skip
        digests.add(inputs_digest(load(EXTRAS.replace(old, new)), None))
    digests.add(inputs_digest(load('mirror = "http://a.test"\ninit = "systemd"\n' + EXTRAS), None))
    (tmp_path / "images" / "tool").write_bytes(b"new")
    digests.add(inputs_digest(load(), None))
    assert len(digests) == 11
    (tmp_path / "images" / "elsewhere").write_bytes(b"new")
    assert inputs_digest(load(EXTRAS.replace('"tool"', '"elsewhere"')), None) in digests


def test_a_recipes_mirror_counts_before_the_configured_one(load):
    one = inputs_digest(load('mirror = "http://a.test"\n'), "http://b.test")
    assert one == inputs_digest(load('mirror = ["http://a.test"]\n'), None)
    assert one != inputs_digest(load(""), "http://b.test")


def test_a_recipe_anywhere_extends_bangers_own_with_its_package_list(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nextends = "debian"\nadd_packages = ["htop"]\n')
    mine, debian = load_recipe(str(path)), load_recipe("debian")
    assert set(mine.packages) == {*debian.packages, "htop"}
    assert mine.recipe.services == debian.recipe.services
    assert mine.recipe.name == "mine"


def test_extending_adds_tables_and_packages_and_replaces_the_rest(load, tmp_path):
    load('disk_size = "4G"\n' + EXTRAS)
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "more.toml"
    path.write_text("""name = "more"
extends = "../images/mine.toml"
disk_size = "3G"
add_packages = ["htop"]
[[users]]
name = "third"
""")
    more = load_recipe(str(path))
    assert (more.recipe.name, more.disk_bytes, more.packages) == ("more", 3 << 30, ["bash", "htop", "sudo"])  # fmt: skip
    assert [user.name for user in more.recipe.users] == ["dev", "web", "third"]
    assert more.files[1].digest == load().files[1].digest
    assert more.origins["htop"] == f"{path}:4"
