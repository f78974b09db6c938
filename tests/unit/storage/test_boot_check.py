"""Kernel, initramfs and modules that do not belong together are refused before a VM boots with them."""

import os
from dataclasses import replace

import pytest

from banger.host import fs
from banger.model.errors import HostLacksError
from banger.model.manifest import FileEntry
from banger.storage.boot_check import check_boot_files
from tests.framework.toy import toy_image


@pytest.fixture
def boot(tmp_path):
    """An image whose kernel came out of a bzImage."""
    made = toy_image(tmp_path / "image")
    bzimage = tmp_path / "image" / "vmlinuz"
    bzimage.write_bytes(b"the kernel as it came")
    entry = FileEntry(bzimage.stat().st_size, fs.sparse_digest(bzimage))
    files = {**made.manifest.files, "vmlinuz": entry}
    manifest = replace(made.manifest, files=files, kernel_digest=entry.digest)
    return replace(made, bzimage=bzimage, manifest=manifest)


def test_a_boot_stack_that_is_as_it_was_made_passes(boot):
    check_boot_files(boot)


@pytest.mark.parametrize("name", ["kernel", "initramfs", "bzimage"])
def test_a_file_that_was_replaced_is_named_with_the_command_that_mends_it(boot, name):
    check_boot_files(boot)
    path = getattr(boot, name)
    other = path.with_name("other")
    other.write_bytes(bytes(path.stat().st_size))
    stamp = path.stat()
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    other.replace(path)
    with pytest.raises(HostLacksError, match=path.name) as raised:
        check_boot_files(boot)
    assert raised.value.hint == "banger image build debian --force"


def test_a_byte_that_was_changed_in_place_is_found(boot):
    check_boot_files(boot)
    stamp = boot.kernel.stat()
    with boot.kernel.open("r+b") as file:
        file.seek(100)
        file.write(b"\xee")
    os.utime(boot.kernel, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(HostLacksError, match=boot.kernel.name):
        check_boot_files(boot)


def test_a_kernel_that_was_replaced_with_its_entry_in_the_manifest_is_found(boot):
    """As by somebody who renewed file and manifest, and left the initramfs with the old kernel's modules."""
    boot.bzimage.write_bytes(b"a newer kernel")
    entry = FileEntry(boot.bzimage.stat().st_size, fs.sparse_digest(boot.bzimage))
    files = {**boot.manifest.files, "vmlinuz": entry}
    with pytest.raises(HostLacksError, match="another kernel than its initramfs"):
        check_boot_files(replace(boot, manifest=replace(boot.manifest, files=files)))


def test_an_image_of_an_older_banger_passes(boot):
    check_boot_files(replace(boot, manifest=replace(boot.manifest, kernel_digest="")))


def test_a_file_is_read_once_while_it_stays_as_it_is(boot, monkeypatch):
    check_boot_files(boot)

    def refuse(*_, **__):
        raise AssertionError("it was read again")

    monkeypatch.setattr(fs, "sparse_digest", refuse)
    check_boot_files(boot)
