"""Which programs VMs are started with, and what is said if there are none that can be trusted to be whole."""

import os
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest

from banger.bundle import check, elf, places, wanted
from banger.bundle.locate import Binaries, find_binaries
from banger.bundle.manifest import to_toml
from banger.host import exec as host_exec
from banger.host import own_files, probe
from banger.host.config import Config
from banger.model.errors import HostLacksError
from tests.framework.bundles import Bundle, a_root, contents_of, manifest_for, program, sha256


class Place:
    """A checkout, a bundle's place and a PATH of the test's own."""

    def __init__(self, directory, root):
        self.directory, self.root = directory, root
        self.said = []
        self.bin = self.put(directory / "bin" / "nothing").parent
        self.checkout = directory / "checkout"
        self.checkout.mkdir()

    def put(self, path, content=None, mode=0o755):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(program(path.name) if content is None else content)
        path.chmod(mode)
        return path

    def config(self, **settings):
        return Config(self.directory, self.directory, bundle_dir=self.root.path, **settings)

    def find(self, **settings):
        return find_binaries(self.config(**settings), warn=self.said.append)

    def fails(self, **settings):
        with pytest.raises(HostLacksError) as caught:
            self.find(**settings)
        assert caught.value.hint
        return caught.value


@pytest.fixture
def place(tmp_path, root, monkeypatch):
    place = Place(tmp_path, root)
    monkeypatch.setenv("PATH", str(place.bin))
    monkeypatch.setattr(host_exec, "_SBIN", ())
    monkeypatch.setattr(own_files, "checkout", lambda: place.checkout)
    return place


def test_the_configured_program_wins_with_the_jailer_beside_it(place, old):
    old.place(place.root)
    place.put(place.bin / "firecracker")
    mine = place.put(place.directory / "mine" / "firecracker")
    assert place.find(firecracker_path=mine) == Binaries(mine, None, f"firecracker_path {mine}")
    beside = place.put(mine.with_name("jailer"))
    assert place.find(firecracker_path=mine).jailer == beside
    other = place.put(place.directory / "other-jailer")
    assert place.find(firecracker_path=mine, jailer_path=other).jailer == other


def test_then_comes_the_bundle_by_the_path_of_its_version(place, old, new):
    place.put(place.bin / "firecracker")
    old.place(place.root)
    found = place.find()
    version = place.root.target(place.root.current)
    assert found == Binaries(
        version / "firecracker", version / "jailer", "bundle firecracker 1.0.0"
    )
    new.place(place.root)
    assert (
        found.firecracker.read_bytes() == old.contents["firecracker"]
    )  # what was found stays one version
    other = place.put(place.directory / "other-jailer")
    assert place.find(jailer_path=other).jailer == other


def test_then_path_with_the_jailer_of_the_same_place_if_there_is_one(place):
    firecracker = place.put(place.bin / "firecracker")
    assert place.find() == Binaries(firecracker, None, f"PATH {firecracker}")
    jailer = place.put(place.bin / "jailer")
    assert place.find().jailer == jailer


def test_none_at_all_names_the_places_and_the_command_that_brings_one(place, new, monkeypatch):
    error = place.fails()
    assert "no firecracker is here" in error.what
    assert str(place.root.path) in error.detail
    assert error.hint == "banger runtime fetch --from FILE --manifest FILE"  # nothing is pinned yet
    new.at("https://example.org/x.tar.gz")
    assert place.fails(bundle_manifest=new.manifest_file).hint == "banger runtime fetch"
    new.at()
    assert place.fails(bundle_manifest=new.manifest_file).hint == "banger runtime fetch --from FILE"
    assert "--manifest" in place.fails(bundle_manifest=place.directory / "none").hint


@pytest.mark.parametrize("spoil", ["unlink", "change", "half"])
def test_a_bundle_that_is_not_whole_is_never_passed_over(place, old, new, spoil):
    place.put(place.bin / "firecracker")
    old.place(place.root)
    jailer = place.root.current / "jailer"
    match spoil:
        case "unlink":
            jailer.unlink()
        case "change":
            jailer.write_bytes(program("jailer 6.6.6"))
        case "half":
            jailer.write_bytes(jailer.read_bytes()[:20])
    error = place.fails()
    assert "bundle firecracker 1.0.0" in error.what
    assert "is damaged" in error.what
    assert error.detail.startswith("jailer: ")
    assert error.hint == "banger runtime fetch --from FILE"  # its own manifest names no URL
    manifest = check.look(place.root).manifest
    text = to_toml(msgspec.structs.replace(manifest, urls=("https://example.org/x",)))
    (place.root.current / "manifest.toml").write_text(text)
    assert place.fails().hint == "banger runtime fetch"


def test_a_damaged_bundle_is_mended_by_rollback_where_nothing_can_be_fetched(place, old, new):
    old.place(place.root)
    new.place(place.root)
    (place.root.current / "firecracker").unlink()
    assert place.fails().hint == "banger runtime rollback"
    (place.root.previous / "firecracker").unlink()
    assert place.fails().hint == "banger runtime fetch --from FILE"


def test_a_lost_version_is_told(place, old):
    old.place(place.root)
    shutil.rmtree(place.root.target(place.root.current))
    assert "leads to no version" in place.fails().detail


def test_wrong_modes_and_owners_have_their_own_remedies(place, old):
    old.place(place.root)
    version = place.root.target(place.root.current)
    (version / "jailer").chmod(0o644)
    error = place.fails()
    assert "has mode 0644, not 0755" in error.detail
    assert error.hint == f"banger runtime fetch --from {version} --manifest {version}/manifest.toml"
    (version / "jailer").chmod(0o775)
    assert place.fails().hint.startswith("sudo chown -R ")
    (version / "jailer").chmod(0o755)
    place.root.path.chmod(0o777)
    assert place.fails().hint.endswith(f"sudo chmod -R go-w {place.root.path}")


def test_only_the_programs_count_before_a_start(place, tmp_path):
    contents = {**contents_of("1"), "images/debian/rootfs.img": b"image"}
    Bundle("1.0.0", tmp_path, contents=contents).place(place.root)
    (place.root.current / "images" / "debian" / "rootfs.img").unlink()
    assert place.find().origin == "bundle firecracker 1.0.0"
    assert check.look(place.root).state == "damaged"


@pytest.mark.parametrize(
    ("content", "mode", "what"),
    [
        (program("x", "x86_64"), 0o644, "is not executable"),
        (program("x", "aarch64"), 0o755, "cannot run here: it is a program for aarch64, this is x86_64"),
        (b"", 0o755, "cannot run here: it is no program (neither ELF nor a script)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("key", ["firecracker_path", "jailer_path"])
def test_a_configured_program_that_cannot_be_started_is_named(
    place, monkeypatch, key, content, mode, what
):
    monkeypatch.setattr(elf, "host_architecture", lambda: "x86_64")
    place.put(place.bin / "firecracker", program("f", "x86_64"))
    path = place.put(place.directory / "mine", content, mode)
    error = place.fails(**{key: path})
    assert ": ".join(filter(None, [error.what, error.detail])) == f"{key}: {path} {what}"


def test_a_script_is_a_program_as_well(place):
    script = place.put(place.directory / "mine", b"#!/bin/sh\nexec firecracker\n")
    assert place.find(firecracker_path=script).firecracker == script


def test_a_configured_program_that_is_not_there_or_no_file_is_named(place):
    missing = place.directory / "missing"
    assert "is not there" in place.fails(firecracker_path=missing).what
    assert "is no file" in place.fails(firecracker_path=place.directory).what
    assert "is not there" in place.fails(firecracker_path=place.bin / "nothing" / "x").what


def test_a_wrong_program_on_path_is_not_started(place):
    place.put(place.bin / "firecracker", program("x", "aarch64" if elf.host_architecture() != "aarch64" else "x86_64"))  # fmt: skip
    assert "cannot run here" in place.fails().what


def test_a_bundle_of_an_older_release_still_works_and_says_so_once(place):
    runtime = place.checkout / "runtime"
    firecracker = place.put(runtime / "firecracker")
    jailer = place.put(runtime / "jailer")
    for _ in range(3):
        assert place.find() == Binaries(firecracker, jailer, f"bundle in {runtime}")
    assert place.said == [
        f"the runtime bundle in {runtime} is of an older release, its place is {place.root.path} now"
    ]


def test_an_older_bundle_with_a_manifest_of_old_names_is_verified(place):
    runtime = place.checkout / "runtime"
    firecracker = place.put(runtime / "bin" / "firecracker")
    digest, size = sha256(firecracker.read_bytes()), firecracker.stat().st_size
    place.put(
        runtime / "runtime-bundle.toml",
        f'name = "firecracker"\nversion = "1.0"\nfirecracker_bin = "bin/firecracker"\narchitecture = "{elf.host_architecture()}"\n'
        f'[[file]]\nname = "bin/firecracker"\nchecksum = "{digest}"\nsize = {size}\n'.encode(),
        0o644,
    )
    assert place.find().firecracker == firecracker
    assert len(place.said) == 1
    firecracker.write_bytes(program("tampered")[:size].ljust(size, b"!"))
    error = place.fails()
    assert str(runtime) in error.what
    assert "its SHA-256 is" in error.detail


def test_the_bundle_in_its_place_comes_before_an_older_one(place, old):
    place.put(place.checkout / "runtime" / "firecracker")
    old.place(place.root)
    assert place.find().origin == "bundle firecracker 1.0.0"
    assert place.said == []


def test_asking_again_reads_no_file_again(place, tmp_path, monkeypatch):
    contents = {"firecracker": program("f", size=3 << 20), "jailer": program("j", size=1 << 20)}
    Bundle("1.0.0", tmp_path, contents=contents).place(place.root)
    monkeypatch.setattr(check, "_SETTLED_S", -1.0)
    place.find()
    monkeypatch.setattr(check.hashlib, "file_digest", None)
    assert place.find().firecracker.exists()


def test_places_follow_from_where_banger_is(tmp_path, monkeypatch):
    monkeypatch.setattr(own_files, "checkout", lambda: tmp_path)
    assert places.default_root(None).path == tmp_path / "build" / "runtime"
    monkeypatch.setattr(own_files, "checkout", lambda: None)
    for package, prefix in {
        "/usr/lib/python3/dist-packages/banger": "/usr",
        "/opt/b/lib/python3.12/site-packages/banger": "/opt/b",
        "/home/me/.local/lib/python3.11/site-packages/banger": "/home/me/.local",
        "/usr/lib64/python3.11/site-packages/banger": "/usr",
    }.items():
        monkeypatch.setattr(own_files, "package_dir", lambda p=package: Path(p))
        assert places.default_root(None).path == Path(prefix) / "lib" / "banger"
    assert places.default_root(tmp_path).path == tmp_path
    monkeypatch.setattr(own_files, "package_dir", lambda: Path("/srv/banger"))
    assert own_files.install_prefix() == Path(own_files.sys.prefix)


def test_this_checkout_is_one_and_its_manifest_is_found():
    top = own_files.checkout()
    assert top == Path(__file__).parents[3]
    assert places.shipped_manifest() == top / "config" / "runtime-bundle.toml"
    assert places.shipped_manifest().is_file()


def test_the_manifest_to_fetch_is_the_given_the_configured_the_pinned_or_the_placed_one(
    place, old, new, monkeypatch
):
    def chosen(given=None, **settings):
        return wanted.manifest_to_fetch(place.config(**settings), place.root, given, print).version

    assert chosen() == ""
    old.place(place.root)
    assert chosen() == "1.0.0"
    pinned = place.directory / "shipped.toml"
    pinned.write_text(to_toml(manifest_for(contents_of("7"), version="7.0")))
    monkeypatch.setattr(places, "shipped_manifest", lambda: pinned)
    assert chosen() == "7.0"
    assert chosen(bundle_manifest=new.manifest_file) == "1.1.0"
    assert chosen(old.manifest_file, bundle_manifest=new.manifest_file) == "1.0.0"


def test_an_ordinary_user_may_use_what_root_installed(place, old):
    if not probe.root():
        pytest.skip(probe.root().why)
    with tempfile.TemporaryDirectory(
        dir="/tmp"
    ) as name:  # pytest's own directories are for root only
        Path(name).chmod(0o755)
        place.root = a_root(Path(name) / "lib" / "banger")
        old.place(place.root)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgid(65534)
                os.setuid(65534)
                status = 0 if place.find().origin == "bundle firecracker 1.0.0" else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_bundle_that_may_not_be_looked_into_is_told(place, old, monkeypatch):
    if not probe.root():
        pytest.skip(probe.root().why)
    monkeypatch.setattr(own_files, "config_dir", lambda: Path("/"))  # ours may be closed to others
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        place.root = a_root(Path(name) / "closed")
        old.place(place.root)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.setgid(65534)
                os.setuid(65534)
                status = 0 if "Permission denied" in place.fails().detail else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
