"""The kernel files of an image: what comes of a bzImage or an ELF kernel, and of one that is known from another image."""

import pytest

from banger.host import fs
from banger.images import boot_files
from banger.images.boot_files import known_kernels, place_kernel
from banger.model.errors import InvalidInputError
from banger.model.manifest import ImageManifest
from tests.framework.toy_root import KERNEL, RELEASE, bz_image, elf_kernel, lz4_legacy

CAME = bz_image(lz4_legacy(KERNEL), len(KERNEL))


@pytest.fixture
def work(tmp_path):
    directory = tmp_path / "work"
    directory.mkdir()
    return directory


def place(directory, came=CAME, known=None):
    directory.mkdir(exist_ok=True)
    (directory / "vmlinuz").write_bytes(came)
    return place_kernel(directory, known or {})


def manifest(kernel, **changes):
    return ImageManifest(
        "d" * 12, "debian", "debian", "bookworm", "amd64", "2026-01-01T00:00:00.000Z", "0" * 64, 1 << 30,
        RELEASE, "rw", kernel.files, **{"kernel_digest": kernel.digest, **changes},
    )  # fmt: skip


@pytest.fixture
def extractions(monkeypatch):
    done = []
    real = boot_files.extract_vmlinux
    monkeypatch.setattr(
        boot_files, "extract_vmlinux", lambda data: done.append(len(data)) or real(data)
    )
    return done


def test_a_bzimage_is_kept_beside_the_kernel_that_it_holds(work):
    kernel = place(work)
    assert (work / "vmlinux").read_bytes() == KERNEL
    assert (work / "vmlinuz").read_bytes() == CAME
    assert set(kernel.files) == {"vmlinux", "vmlinuz"}
    for name, entry in kernel.files.items():
        assert entry.digest == fs.sparse_digest(work / name)
        assert (work / name).stat().st_mode & 0o777 == 0o444
    assert kernel.digest == kernel.files["vmlinuz"].digest
    assert (kernel.facts.release, kernel.facts.pvh, kernel.how) == (RELEASE, True, "extracted")


def test_an_elf_kernel_is_the_whole_boot_stack(work):
    kernel = place(work, KERNEL)
    assert [path.name for path in work.iterdir()] == ["vmlinux"]
    assert set(kernel.files) == {"vmlinux"}
    assert kernel.digest == kernel.files["vmlinux"].digest


def test_a_kernel_without_a_banner_has_the_release_of_its_bzimage(work):
    inner = elf_kernel(release="", notes=())
    kernel = place(work, bz_image(lz4_legacy(inner), len(inner), release="6.9-mine"))
    assert (kernel.facts.release, kernel.facts.pvh) == ("6.9-mine", False)


def test_what_is_no_kernel_is_refused(work):
    with pytest.raises(InvalidInputError, match="damaged"):
        place(work, b"\x7fELF" + bytes(100))


def test_a_kernel_that_another_image_has_is_not_extracted_again(tmp_path, work, extractions):
    known = known_kernels([(manifest(place(tmp_path / "other")), tmp_path / "other")])
    extractions.clear()
    kernel = place(work, known=known)
    assert extractions == []
    assert kernel.how in {"of another image, reflink", "of another image, link"}
    assert (work / "vmlinux").read_bytes() == KERNEL
    assert kernel.facts.release == RELEASE


def test_another_kernel_is_extracted(tmp_path, work, extractions):
    known = known_kernels([(manifest(place(tmp_path / "other")), tmp_path / "other")])
    inner = elf_kernel("7.0")
    extractions.clear()
    assert place(work, bz_image(lz4_legacy(inner), len(inner)), known).facts.release == "7.0"
    assert len(extractions) == 1


@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_a_known_kernel_that_is_gone_or_changed_is_extracted(tmp_path, work, extractions, harm):
    known = known_kernels([(manifest(place(tmp_path / "other")), tmp_path / "other")])
    vmlinux = tmp_path / "other" / "vmlinux"
    vmlinux.unlink()
    if harm == "changed":
        vmlinux.write_bytes(bytes(len(KERNEL)))
    extractions.clear()
    assert place(work, known=known).how == "extracted"
    assert len(extractions) == 1
    assert (work / "vmlinux").read_bytes() == KERNEL


def test_an_image_whose_kernel_files_do_not_belong_together_teaches_nothing(tmp_path):
    kernel = place(tmp_path / "other")
    assert known_kernels([(manifest(kernel, kernel_digest="1" * 64), tmp_path / "other")]) == {}
    elf = place(tmp_path / "elf", KERNEL)
    assert known_kernels([(manifest(elf), tmp_path / "elf")]) == {}
