"""Recipes: what is right, and what a person is told about what is not."""

import re
from pathlib import Path

import pytest

import banger
from banger.images.recipe import load_recipe
from banger.model.errors import InvalidInputError, NotFoundError
from banger.model.units import GIB

GOOD = """name = "mine"
distribution = "debian"
release = "bookworm"
architecture = "amd64"
packages = "list"
"""


@pytest.fixture
def recipe(tmp_path):
    def write(text=GOOD, packages="systemd  # init\n\nbash\n[dev]\ngcc\n[web]\nnginx\n"):
        (tmp_path / "list").write_text(packages)
        (tmp_path / "images").mkdir(exist_ok=True)
        path = tmp_path / "images" / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


def test_the_projects_own_recipe_loads_and_has_what_a_vm_needs():
    loaded = load_recipe("debian-base")
    assert loaded.disk_bytes == 8 * GIB
    assert [(service.name, service.port) for service in loaded.recipe.services] == [("ssh", 22)]
    assert loaded.recipe.tools == []
    assert {"systemd", "udev", "openssh-server", "python3", "linux-image-cloud-amd64"} <= set(
        loaded.packages
    )
    assert "build-essential" not in loaded.packages


def test_the_default_image_has_mise_and_opencode_pinned_and_opencode_as_a_service():
    base, loaded = load_recipe("debian-base"), load_recipe("debian")
    assert set(loaded.packages) - set(base.packages) == {"python3-venv"}
    assert [(s.name, s.port, s.path) for s in loaded.recipe.services] == [
        ("ssh", 22, ""),
        ("opencode", 4096, "/global/health"),
    ]
    tools = {tool.name: tool for tool in loaded.recipe.tools}
    assert set(tools) == {"mise", "opencode"}
    for tool in tools.values():
        assert tool.version
        assert tool.integrity.startswith("sha512-")
    assert tools["opencode"].package.endswith(
        "-baseline"
    )  # else hosts without AVX2 could not run it


def test_the_test_hosts_recipe_has_what_banger_looks_for_on_a_host():
    packages = set(load_recipe("testhost").packages)
    assert packages > set(load_recipe("debian-base").packages)
    sources = "\n".join(path.read_text() for path in Path(banger.__file__).parent.rglob("*.py"))
    asked = set(re.findall(r'find_program\([^)]*package="([a-z0-9-]+)"', sources))
    essential = {
        "tar",
        "coreutils",
        "util-linux",
        "mount",
        "mmdebstrap",
        "lzop",
    }  # every Debian has them; images come from outside
    assert asked - essential - packages == set()


def test_packages_are_sorted_once_each_and_profiles_add_theirs(recipe):
    assert load_recipe(recipe()).packages == ["bash", "systemd"]
    both = recipe(
        GOOD + 'profiles = ["dev", "web"]\n', "bash\nbash\n[dev]\ngcc\nbash\n[web]\nnginx\n"
    )
    assert load_recipe(both).packages == ["bash", "gcc", "nginx"]


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ('disksize = "8G"', "unknown key 'disksize'", "disk_size"),
        ('[[services]]\nname = "x"\nprot = 1', "unknown key 'services[0].prot'", "port"),
        ('[[services]]\nname = "x"\nport = 70000', "services[0].port is malformed", ""),
        ('[[services]]\nname = "x"\nport = 1\n[[services]]\nname = "x"\nport = 2', "two are called 'x'", ""),
        ('disk_size = "1G"', "disk_size '1G' is not possible", "2G"),
        ('disk_size = "big"', "disk_size 'big' is not a size", "2G"),
        ("profiles = 3", "profiles is malformed", ""),
        ('profiles = ["dve"]', "has no profile 'dve'", "dev, web"),
        ('kernel_modules = ["../x"]', "kernel_modules", ""),
        ('cmdline = "a\\nb"', "cmdline is malformed", ""),
        ("=", "not TOML", ""),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_file_and_key(recipe, line, what, hint):
    path = recipe(GOOD + line + "\n")
    with pytest.raises(InvalidInputError) as raised:
        load_recipe(path)
    said = raised.value.what
    assert what in said
    assert hint in raised.value.hint
    assert "images/mine.toml" in said or "/list" in said


def test_only_what_can_be_built_is_accepted(recipe):
    for old, new in (("debian", "plan9"), ("amd64", "arm64")):
        with pytest.raises(InvalidInputError, match="cannot be built yet"):
            load_recipe(recipe(GOOD.replace(old, new)))


@pytest.mark.parametrize(
    ("packages", "what"),
    [("bash\nno such\n", ":2:1: 'no such' is not a package name"), ("[D V]\n", ":1:1: '[D V]' is not a profile"), ("# none\n", "names no package")],
)  # fmt: skip
def test_a_bad_package_list_is_named_with_its_line(recipe, packages, what):
    with pytest.raises(InvalidInputError) as raised:
        load_recipe(recipe(packages=packages))
    assert what in raised.value.what


def test_an_option_of_a_tool_cannot_be_smuggled_in_as_a_package(recipe):
    with pytest.raises(InvalidInputError):
        load_recipe(recipe(packages="--customize-hook=evil\n"))


def test_an_unknown_recipe_lists_the_known_ones(recipe):
    with pytest.raises(NotFoundError) as raised:
        load_recipe("debain")
    assert "debian" in raised.value.hint
    path = recipe()
    with pytest.raises(NotFoundError, match="cannot be read"):
        load_recipe(recipe(GOOD.replace('"list"', '"lost"')))
    with pytest.raises(NotFoundError):
        load_recipe(path + "x.toml")


def test_a_recipe_name_cannot_leave_its_folder():
    with pytest.raises(InvalidInputError):
        load_recipe("..")
