"""OCI layouts and docker save archives: which image is taken, and what is refused."""

import gzip
import json

import pytest

from banger.images.boxes import DirectoryBox, TarBox, quick_kind, spool
from banger.images.flatten import from_box, scan
from banger.images.layers import Budget
from banger.images.oci import BOOT_DIGEST, BOOT_SIZE, pick_docker, pick_oci
from banger.images.root_tree import RootTree
from banger.model.errors import InvalidInputError
from tests.framework import toy_container as toy

ONE = toy.tar([toy.member("a", b"1"), toy.member("b", b"1")])
TWO = toy.tar([toy.member(".wh.a", b""), toy.member("c", b"2")])


def box(tmp_path, files, *, directory=True):
    if directory:
        return DirectoryBox(toy.write_layout(tmp_path / "layout", files))
    return TarBox(toy.write_tar(tmp_path / "layout.tar", files), "layout.tar")


def found(box, picked):
    tree, budget = RootTree(), Budget()
    for number, source in enumerate(from_box(box, picked.layers)):
        scan(source, number, tree, {}, budget)
    return ["/".join(path) for path, _ in tree.entries() if path]


@pytest.mark.parametrize("directory", [True, False])
def test_an_oci_layout_is_read_from_a_directory_and_from_a_tar(tmp_path, directory):
    layout = box(
        tmp_path, toy.layout_files([ONE, TWO], Env=["A=1"], Cmd=["x"]), directory=directory
    )
    picked = pick_oci(layout, None)
    assert found(layout, picked) == ["b", "c"]
    assert (picked.run.env, picked.run.cmd, picked.boot) == (["A=1"], ["x"], None)


def test_docker_saves_archive_is_read_also_compressed_and_with_layers_that_are_links(tmp_path):
    path = toy.docker_save(tmp_path / "saved.tar", [ONE, TWO], User="me")
    saved = TarBox(path, "saved.tar")
    assert saved.kind == "docker"
    assert found(saved, pick_docker(saved, None)) == ["b", "c"]
    packed = tmp_path / "saved.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert quick_kind(packed, "image") == "tar"
    plain = TarBox(spool(packed, tmp_path / "plain.tar", 1 << 30), "saved.tar.gz")
    assert found(plain, pick_docker(plain, "toy:latest")) == ["b", "c"]
    config = toy.config([ONE, ONE])
    listed = [{"Config": f"{toy.digest(config)}.json", "RepoTags": None, "Layers": ["0/layer.tar", "1/layer.tar"]}]  # fmt: skip
    linked = tmp_path / "linked.tar"
    linked.write_bytes(toy.tar([
        toy.member(f"{toy.digest(config)}.json", config), toy.member("0/layer.tar", ONE), toy.symlink("1/layer.tar", "../0/layer.tar"),
        toy.member("manifest.json", json.dumps(listed).encode()),
    ]))  # fmt: skip
    other = TarBox(linked, "linked.tar")
    assert found(other, pick_docker(other, None)) == ["a", "b"]


def spoiled(files, name, change):
    """The files with one of them changed, wherever it is named by its digest."""
    return {key: change(data) if name in key else data for key, data in files.items()}


def largest(files):
    return max((key for key in files if key.startswith("blobs")), key=lambda key: len(files[key]))


def blobs(files, content):
    return next(key for key, data in files.items() if content in data and key.startswith("blobs"))


@pytest.mark.parametrize("what", [b'"layers"', b'"rootfs"'])
def test_a_document_that_is_not_what_its_digest_says_is_refused(tmp_path, what):
    files = toy.layout_files([ONE])
    name = blobs(files, what)
    files[name] = files[name].replace(b"linux", b"linus") + b" "
    with pytest.raises(InvalidInputError, match="not what its digest says"):
        pick_oci(box(tmp_path, files), None)


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_a_layer_that_is_not_what_its_digests_say_is_refused(tmp_path, pack):
    files = toy.layout_files([ONE], pack=pack)
    other = toy.layout_files([TWO], pack=pack)
    mine = next(k for k, d in files.items() if d == pack(ONE) or (k.startswith("blobs") and d[:2] == b"\x1f\x8b"))  # fmt: skip
    theirs = next(d for k, d in other.items() if d == pack(TWO) or (k.startswith("blobs") and d[:2] == b"\x1f\x8b"))  # fmt: skip
    layout = box(tmp_path, {**files, mine: theirs})
    with pytest.raises(InvalidInputError, match="not what its digest says"):
        found(layout, pick_oci(layout, None))


def test_a_layer_whose_content_is_not_the_configurations_is_refused(tmp_path):
    saved = toy.docker_save(
        tmp_path / "s.tar", [ONE], change=lambda files: {k: TWO if k.endswith("layer.tar") else d for k, d in files.items()}
    )  # fmt: skip
    found_box = TarBox(saved, "s.tar")
    with pytest.raises(InvalidInputError, match="not what its digest says"):
        found(found_box, pick_docker(found_box, None))


@pytest.mark.parametrize("name", ["../../etc/shadow", "/etc/shadow"])
def test_a_layer_outside_the_archive_is_refused(tmp_path, name):
    def change(files):
        listed = json.loads(files["manifest.json"])
        listed[0]["Layers"] = [name]
        return {**files, "manifest.json": json.dumps(listed).encode()}

    saved = TarBox(toy.docker_save(tmp_path / "s.tar", [ONE], change=change), "s.tar")
    with pytest.raises(InvalidInputError, match=r"is not in it|lacks"):
        found(saved, pick_docker(saved, None))


def test_another_platform_is_refused_with_what_there_is(tmp_path):
    with pytest.raises(InvalidInputError, match="no image for linux/amd64"):
        pick_oci(box(tmp_path, toy.layout_files([ONE], platform=("linux", "arm64"))), None)


def test_one_of_several_images_is_picked_by_its_tag(tmp_path):
    one, two = toy.layout_files([ONE], tag="one"), toy.layout_files([TWO], tag="two:2")
    both = [
        *json.loads(one["index.json"])["manifests"],
        *json.loads(two["index.json"])["manifests"],
    ]
    layout = box(tmp_path, {**one, **two, "index.json": json.dumps({"manifests": both}).encode()})
    with pytest.raises(InvalidInputError, match="holds 2 images") as raised:
        pick_oci(layout, None)
    assert "--ref one" in raised.value.hint
    assert found(layout, pick_oci(layout, "two:2")) == ["c"]
    with pytest.raises(InvalidInputError, match="no image 'three'"):
        pick_oci(layout, "three")


def test_an_index_in_an_index_is_followed_to_a_depth_and_attestations_are_passed_over(tmp_path):
    files = toy.layout_files([ONE])
    inner = json.loads(files["index.json"])
    inner["manifests"].append({"digest": "sha256:" + "0" * 64, "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}})  # fmt: skip
    for _ in range(6):
        data = json.dumps(inner).encode()
        files[f"blobs/sha256/{toy.digest(data)}"] = data
        inner = {"manifests": [{"digest": f"sha256:{toy.digest(data)}", "size": len(data)}]}
        files["index.json"] = json.dumps(inner).encode()
        layout = box(tmp_path, files)
        if _ < 3:
            assert found(layout, pick_oci(layout, None)) == ["a", "b"]
    with pytest.raises(InvalidInputError, match="too many indexes"):
        pick_oci(layout, None)


@pytest.mark.parametrize(
    "index",
    [b"", b"[]", b"{", b"\xff", b'{"manifests": 3}', b'{"manifests": [{"digest": "md5:0", "size": 1}]}', b"[" * 100_000],
)  # fmt: skip
def test_a_malformed_index_is_refused(tmp_path, index):
    with pytest.raises(InvalidInputError) as raised:
        pick_oci(box(tmp_path, {**toy.layout_files([ONE]), "index.json": index}), None)
    assert raised.value.hint


def test_a_blob_that_is_missing_a_fifo_or_a_directory_is_told(tmp_path):
    files = toy.layout_files([ONE])
    for name in [name for name in files if name.startswith("blobs")]:
        layout = box(tmp_path, files)
        (tmp_path / "layout" / name).unlink()
        with pytest.raises(InvalidInputError, match="lacks"):
            found(layout, pick_oci(layout, None))
        (tmp_path / "layout" / name).mkdir()
        with pytest.raises(InvalidInputError, match=r"no regular file|cannot be read"):
            found(layout, pick_oci(layout, None))
        (tmp_path / "layout" / name).rmdir()


def test_a_cut_archive_is_told(tmp_path):
    path = toy.docker_save(tmp_path / "s.tar", [ONE])
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(InvalidInputError, match=r"damaged|cut off"):
        TarBox(path, "s.tar")


@pytest.mark.parametrize("size", ["", "-1", "1e3", "9" * 30, "\u0663"])
def test_a_boot_stack_of_no_size_is_refused(tmp_path, size):
    files = toy.layout_files([ONE])
    index = json.loads(files["index.json"])
    index["annotations"] = {BOOT_DIGEST: f"sha256:{'a' * 64}", BOOT_SIZE: "7"}
    files["index.json"] = json.dumps(index).encode()
    boot = pick_oci(box(tmp_path / "good", files), None).boot
    assert (boot.digest, boot.size_bytes) == ("a" * 64, 7)
    index["annotations"][BOOT_SIZE] = size
    files["index.json"] = json.dumps(index).encode()
    with pytest.raises(InvalidInputError, match="boot stack of size"):
        pick_oci(box(tmp_path / "bad", files), None)
