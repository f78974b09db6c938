"""Modules for an initramfs out of what a user has: a directory, a root, a tar of any compression."""

import gzip
import io
import lzma
import subprocess
import sys
import tarfile

import pytest

from banger.images.modules import module_name, plain_module, plain_name, read_modules
from banger.model.errors import InvalidInputError

RELEASE = "6.9.0-mine"
REQUIRED, WISHED = ["virtio_blk", "ext4"], ["virtio_net", "virtio_rng"]


def module(name, release=RELEASE):
    return f"\x7fELF {name}\0license=GPL\0vermagic={release} SMP mod_unload \0".encode()


def tree(release=RELEASE, *, suffix="", pack=lambda data: data, more=""):
    """Files of a release's directory: virtio_blk needs virtio, ext4 is built in, there is no virtio_rng."""
    dep = f"kernel/virtio-blk.ko{suffix}: kernel/virtio.ko{suffix}\nkernel/virtio.ko{suffix}:\n"
    dep += f"kernel/net/virtio_net.ko{suffix}: kernel/virtio.ko{suffix}\n{more}"
    names = ("virtio-blk", "virtio", "net/virtio_net", "unused")
    return {
        "modules.dep": dep.encode(),
        "modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
        **{f"kernel/{name}.ko{suffix}": pack(module(name, release)) for name in names},
    }


def write(directory, files):
    for name, data in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return directory


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(source, release=RELEASE):
    return read_modules(source, release, required=REQUIRED, wished=WISHED)


ORDER = ["kernel/virtio.ko", "kernel/net/virtio_net.ko", "kernel/virtio-blk.ko"]


@pytest.mark.parametrize(
    "below", ["", f"{RELEASE}/", f"lib/modules/{RELEASE}/", f"usr/lib/modules/{RELEASE}/"]
)
def test_a_directory_may_be_the_releases_or_one_above_it(tmp_path, below):
    write(tmp_path, {f"{below}{name}": data for name, data in tree().items()})
    found = read(tmp_path)
    assert list(found.files) == ORDER
    assert found.files["kernel/virtio.ko"] == module("virtio")
    assert found.release == RELEASE


def test_a_root_whose_lib_leads_to_usr_lib_has_its_modules_once(tmp_path):
    write(tmp_path / "usr" / "lib" / "modules" / RELEASE, tree())
    (tmp_path / "lib").symlink_to("usr/lib")
    assert list(read(tmp_path).files) == ORDER


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("prefix", ["./", "", "root/"])
def test_a_tar_may_be_compressed_and_begin_anywhere(tmp_path, mode, prefix):
    files = {f"{prefix}lib/modules/{RELEASE}/{name}": data for name, data in tree().items()}
    assert list(read(write_tar(tmp_path / "modules.tar", files, mode)).files) == ORDER


def test_a_tar_may_be_compressed_by_zstd(tmp_path):
    path = write_tar(tmp_path / "modules.tar", {f"{RELEASE}/{n}": d for n, d in tree().items()})
    subprocess.run(["zstd", "-q", path], check=True)
    assert list(read(tmp_path / "modules.tar.zst").files) == ORDER


def zstd(data):
    return subprocess.run(["zstd", "-c"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstd)]
)
def test_compressed_modules_come_out_plain(tmp_path, suffix, pack):
    write(tmp_path, tree(suffix=suffix, pack=pack))
    files = read(tmp_path).files
    assert files[f"kernel/virtio.ko{suffix}"] == module("virtio")
    assert [plain_name(path) for path in files] == ["virtio.ko", "virtio_net.ko", "virtio-blk.ko"]
    assert [module_name(path) for path in files] == ["virtio", "virtio_net", "virtio_blk"]


def test_a_damaged_module_is_named():
    with pytest.raises(InvalidInputError, match=r"module kernel/a\.ko\.xz"):
        plain_module("kernel/a.ko.xz", lzma.compress(b"x" * 100)[:-20])


def test_of_several_kernels_the_one_that_boots_is_taken(tmp_path):
    for release in ("6.1", RELEASE):
        write(tmp_path / "lib" / "modules" / release, tree(release))
    assert read(tmp_path).files["kernel/virtio.ko"] == module("virtio")
    with pytest.raises(InvalidInputError, match=r"none of 6\.2") as raised:
        read(tmp_path, "6.2")
    assert raised.value.detail == f"6.1, {RELEASE}"
    with pytest.raises(InvalidInputError, match="several"):
        read(tmp_path, "")


def test_a_kernel_whose_release_is_not_known_takes_the_only_modules(tmp_path):
    write(tmp_path / RELEASE, tree())
    assert read(tmp_path, "").release == RELEASE


def test_modules_of_another_kernel_are_refused(tmp_path):
    write(tmp_path, tree("6.1.0-other"))
    with pytest.raises(InvalidInputError, match=r"for kernel 6\.1\.0-other, the kernel is 6\.9"):
        read(tmp_path)


def test_what_a_boot_needs_must_be_there(tmp_path):
    write(tmp_path, {**tree(), "modules.builtin": b""})
    with pytest.raises(InvalidInputError, match="no ext4") as raised:
        read(tmp_path)
    assert "CONFIG_EXT4_FS" in raised.value.hint


def test_a_kernel_with_everything_built_in_needs_no_file(tmp_path):
    write(tmp_path, {"modules.dep": b"", "modules.builtin": b"a/virtio_blk.ko\na/ext4.ko\n"})
    assert read(tmp_path).files == {}


def test_a_module_that_is_listed_and_not_there_is_named(tmp_path):
    write(tmp_path, tree())
    (tmp_path / "kernel" / "virtio.ko").unlink()
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read(tmp_path)
    files = {f"{RELEASE}/{name}": data for name, data in tree().items()}
    del files[f"{RELEASE}/kernel/virtio.ko"]
    with pytest.raises(InvalidInputError, match=r"lack kernel/virtio\.ko"):
        read(write_tar(tmp_path / "m.tar", files))


@pytest.mark.parametrize("kind", ["empty directory", "no tar", "cut tar"])
def test_what_holds_no_modules_is_refused(tmp_path, kind):
    source = tmp_path / "source"
    if kind == "empty directory":
        source.mkdir()
    elif kind == "no tar":
        source.write_bytes(b"hello" * 1000)
    else:
        whole = write_tar(source, {f"x/{name}": data for name, data in tree().items()}, "w:gz")
        whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(InvalidInputError, match=r"modules\.dep|cannot be read"):
        read(source)


def test_a_module_without_end_is_refused(tmp_path, monkeypatch):
    import banger.images.modules as under_test

    monkeypatch.setattr(under_test, "MAX_MODULE_BYTES", 1000)
    bomb = gzip.compress(bytes(1 << 20))
    with pytest.raises(InvalidInputError, match="larger"):
        plain_module("kernel/a.ko.gz", bomb)
    write(tmp_path, {**tree(), "kernel/virtio.ko": bytes(2000)})
    with pytest.raises(InvalidInputError, match="larger"):
        read(tmp_path)


def test_reading_can_be_ended_between_files(tmp_path):
    class EndedError(Exception):
        pass

    def between():
        raise EndedError

    write(tmp_path, tree())
    with pytest.raises(EndedError):
        read_modules(tmp_path, "", required=[], wished=[], between=between)


def test_the_tar_module_is_pythons_own_where_it_can_undo_zstd():
    import banger.images.modules as under_test

    assert (under_test.tarfile is tarfile) == (sys.version_info >= (3, 14))
