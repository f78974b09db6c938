"""Archives that were pinned and are still wrong: links, devices, names that lead out, bombs, lies about sizes."""

import gzip
import io
import os
import tarfile

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger.bundle import unpack
from banger.host import tars
from banger.host.tars import ArchiveError
from banger.model.errors import BangerError
from tests.framework.bundles import contents_of, everything_below, manifest_for, program, tar

GOOD = contents_of("1.0.0")


def quiet(*_):
    pass


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "outer" / "target"
    path.mkdir(parents=True)
    return path


def put(data, target, manifest=None):
    unpack.from_archive(io.BytesIO(data), manifest or manifest_for(GOOD), target, quiet)


def refused(data, target, match, manifest=None):
    """Refused, and nothing lies outside of the target."""
    outer = target.parent
    with pytest.raises(ArchiveError, match=match) as caught:
        put(data, target, manifest)
    assert [path.name for path in outer.iterdir()] == ["target"]
    return caught.value


def info(name, kind, link="", size=0):
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


@pytest.mark.parametrize("zipped", [True, False])
def test_the_files_come_out_with_their_modes_whatever_the_archive_says(target, zipped):
    member = tarfile.TarInfo("firecracker")
    member.mode, member.uid, member.mtime = 0o4777, 4321, 1e9
    put(tar([(member, GOOD["firecracker"]), ("jailer", GOOD["jailer"])], zipped=zipped), target)
    assert everything_below(target) == GOOD
    status = (target / "firecracker").stat()
    assert (status.st_mode & 0o7777, status.st_uid != 4321) == (0o755, True)


def test_a_leading_dot_and_the_folders_of_files_are_no_strangers(target):
    contents = {**GOOD, "images/debian/rootfs.img": bytes(70000) + b"x" + bytes(300000)}
    members = [
        (info(".", tarfile.DIRTYPE), b""),
        (info("./images", tarfile.DIRTYPE), b""),
        (info("./images/debian/", tarfile.DIRTYPE), b""),
        *((f"./{name}", data) for name, data in contents.items()),
    ]
    put(tar(members), target, manifest_for(contents))
    image = target / "images" / "debian" / "rootfs.img"
    assert image.read_bytes() == contents["images/debian/rootfs.img"]
    assert image.stat().st_blocks * 512 < len(contents["images/debian/rootfs.img"])  # holes


@pytest.mark.parametrize(
    ("member", "match"),
    [
        (info("firecracker", tarfile.SYMTYPE, "/bin/sh"), "a symbolic link"),
        (info("firecracker", tarfile.SYMTYPE, "jailer"), "a symbolic link"),
        (info("firecracker", tarfile.LNKTYPE, "jailer"), "a hard link"),
        (info("firecracker", tarfile.LNKTYPE, "/etc/shadow"), "a hard link"),
        (info("firecracker", tarfile.CHRTYPE), "a device"),
        (info("firecracker", tarfile.BLKTYPE), "a device"),
        (info("firecracker", tarfile.FIFOTYPE), "a pipe"),
        (info("firecracker", tarfile.CONTTYPE), "neither file nor directory"),
        (info("firecracker", b"M"), "neither file nor directory"),
        (info("/etc/passwd", tarfile.REGTYPE), "leads out"),
        (info("../passwd", tarfile.REGTYPE), "leads out"),
        (info("firecracker/../../passwd", tarfile.REGTYPE), "leads out"),
        (info("..", tarfile.DIRTYPE), "leads out"),
        (info("other", tarfile.REGTYPE), "does not name"),
        (info("firecracker/x", tarfile.REGTYPE), "does not name"),
        (info("images", tarfile.DIRTYPE), "does not name"),
        (info("manifest.toml", tarfile.REGTYPE), "does not name"),
        (info("f\x1b[31m", tarfile.REGTYPE), "does not name"),
    ],
)
@pytest.mark.parametrize("skip", [False, True])
def test_what_no_bundle_may_hold_is_refused_before_and_after_good_members(
    target, member, match, skip
):
    manifest = manifest_for(GOOD)
    if skip:
        manifest = msgspec.structs.replace(
            manifest, other_members="skip", unpacked_max_bytes=1 << 20
        )
    good = list(GOOD.items())
    for members in ([(member, b""), *good], [*good, (member, b"")]):
        if skip and match == "does not name":
            put(tar(members), target, manifest)
            assert everything_below(target) == GOOD
        else:
            refused(tar(members), target, match, manifest)
        for name in everything_below(target):
            (target / name).unlink()


def test_members_of_a_release_that_nobody_asked_for_are_skipped_if_the_manifest_says_so(target):
    release = {f"release-v1.0.0-x86_64/{name}-v1.0.0-x86_64": data for name, data in GOOD.items()}
    manifest = manifest_for(GOOD)
    files = tuple(
        msgspec.structs.replace(file, member=name)
        for file, name in zip(manifest.files, release, strict=True)
    )
    manifest = msgspec.structs.replace(
        manifest, files=files, other_members="skip", unpacked_max_bytes=1 << 20
    )
    members = [("release-v1.0.0-x86_64/firecracker.debug", bytes(500_000)), *release.items()]
    put(tar(members), target, manifest)
    assert everything_below(target) == GOOD
    for name in GOOD:
        (target / name).unlink()
    small = msgspec.structs.replace(manifest, unpacked_max_bytes=400_000)
    refused(tar(members), target, "more than the 400000 bytes", small)


def test_a_member_that_comes_twice_is_refused(target):
    refused(tar([*GOOD.items(), ("./firecracker", GOOD["firecracker"])]), target, "twice")


def test_a_member_that_is_missing_is_named(target):
    error = refused(tar([("jailer", GOOD["jailer"])]), target, "lacks")
    assert error.detail == "firecracker"
    refused(tar([]), target, "lacks")


def test_another_size_or_content_is_refused_with_both_digests(target):
    longer = {**GOOD, "jailer": GOOD["jailer"] + b"!"}
    refused(tar(longer.items()), target, "bytes, the manifest says")
    (target / "firecracker").unlink()
    other = {**GOOD, "jailer": GOOD["jailer"][:-1] + b"!"}
    error = refused(tar(other.items()), target, "jailer from the archive is not the file")
    assert manifest_for(other).file("jailer").sha256 in error.detail
    assert manifest_for(GOOD).file("jailer").sha256 in error.detail


def test_a_bomb_is_stopped_after_what_the_manifest_allows(target):
    bomb = info("firecracker", tarfile.REGTYPE, size=1 << 40)
    data = bomb.tobuf(tarfile.GNU_FORMAT)
    refused(gzip.compress(data + bytes(1 << 20)), target, "bytes, the manifest says")
    many = tar([(f"d{n}" * 20, b"") for n in range(5)])
    refused(many, target, "does not name")
    read = []

    class Endless(io.RawIOBase):
        def read(self, size=-1):
            read.append(size)
            return header[: size if size > 0 else None] if len(read) == 1 else bytes(size)

        def seek(self, *_):
            read.clear()
            return 0

    header = info("firecracker", tarfile.DIRTYPE).tobuf()
    manifest = manifest_for(GOOD)
    pad = info("pad", tarfile.REGTYPE, size=1 << 33)
    header = pad.tobuf(tarfile.GNU_FORMAT)
    skipping = msgspec.structs.replace(manifest, other_members="skip", unpacked_max_bytes=3 << 20)
    with pytest.raises(ArchiveError, match="more than the 3145728 bytes"):
        unpack.from_archive(Endless(), skipping, target, quiet)
    assert sum(read) < 8 << 20


def test_a_header_that_would_fill_the_memory_is_refused(target):
    head = info("x", tarfile.XHDTYPE, size=tars.MAX_HEADER_BYTES + 1).tobuf()
    refused(gzip.compress(head + bytes(4096)), target, "a header in the archive")


def test_a_sparse_member_is_refused(target):
    member = tarfile.TarInfo("firecracker")
    member.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "99999999999"}
    members = [(member, GOOD["firecracker"]), ("jailer", GOOD["jailer"])]
    refused(tar(members), target, "neither file nor directory")


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"\xfd7zXZ\0\0\0", "xz"), (b"BZh91AY&", "bzip2"), (b"\x28\xb5\x2f\xfd0000", "zstd"), (b"PK\x03\x040000", "zip")],
)  # fmt: skip
def test_another_format_is_named(target, head, name):
    assert "package" in refused(head + bytes(2000), target, f"is {name};").hint


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b", b"hello", bytes(512), b"x" * 4096])
def test_what_is_no_archive_is_refused(target, data):
    refused(data, target, "no tar archive|damaged|no archive|lacks")


def test_an_archive_without_its_end_is_damaged(target):
    refused(tar(GOOD.items(), end=False), target, "damaged")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_whatever_is_wrong_with_an_archive_is_an_error_of_ours_and_never_another_file(target, data):
    archive = bytearray(tar(GOOD.items(), zipped=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(0, 3))):
        archive[data.draw(st.integers(0, len(archive) - 1))] ^= data.draw(st.integers(1, 255))
    cut = bytes(archive[: data.draw(st.integers(0, len(archive)))])
    for name in everything_below(target):
        (target / name).unlink()
    try:
        put(cut, target)
    except ArchiveError:
        pass
    else:
        assert everything_below(target) == GOOD
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_directory_is_as_good_as_an_archive(tmp_path, target):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "firecracker").write_bytes(GOOD["firecracker"])
    (tree / "jailer-v1.0.0-x86_64").write_bytes(GOOD["jailer"])  # as in an unpacked release
    (tree / "other").write_bytes(b"left alone")
    manifest = msgspec.structs.replace(manifest_for(GOOD), architecture="x86_64")
    unpack.from_directory(tree, manifest, target, quiet)
    assert everything_below(target) == GOOD
    assert (target / "jailer").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("how", ["missing", "link", "directory", "pipe", "changed", "longer", "shorter", "forbidden"])  # fmt: skip
def test_a_directory_with_something_wrong_is_refused_by_name(tmp_path, target, how):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name, data in GOOD.items():
        (tree / name).write_bytes(data)
    jailer = tree / "jailer"
    data = jailer.read_bytes()
    jailer.unlink()
    match how:
        case "link":
            jailer.symlink_to("firecracker")
        case "directory":
            jailer.mkdir()
        case "pipe":
            os.mkfifo(jailer)
        case "changed":
            jailer.write_bytes(program("jailer 6.6.6"))
        case "longer":
            jailer.write_bytes(data + b"!")
        case "shorter":
            jailer.write_bytes(data[:-1])
        case "forbidden":
            jailer.write_bytes(data)
            jailer.chmod(0)
            if os.geteuid() == 0:  # root reads it all the same
                unpack.from_directory(tree, manifest_for(GOOD), target, quiet)
                return
    with pytest.raises(BangerError, match="jailer"):
        unpack.from_directory(tree, manifest_for(GOOD), target, quiet)
