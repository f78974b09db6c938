"""Prebuilt images, as a bundle holds them, taken into the catalogue."""

import json

import pytest

from banger.bundle.manifest import ImageTable, to_toml
from banger.bundle.places import Root
from banger.bundle.prebuilt import prebuilt
from banger.images.catalog import ImageCatalog
from banger.model.errors import InvalidInputError, RefusedError
from banger.model.manifest import TAKEN
from tests.framework import toy_register as toy
from tests.framework.bundles import manifest_for
from tests.unit.images.test_register import as_stated, entries


@pytest.fixture
def catalog(tmp_path):
    return ImageCatalog(tmp_path / "images", tmp_path / "logs")


@pytest.fixture
def directory(tmp_path):
    """The files of an image of another host."""
    made = toy.base_image(tmp_path / "elsewhere")
    return tmp_path / "elsewhere" / made.id


def taken(catalog, directory, name="debian"):
    return catalog.adopt(name, directory, progress=lambda *words: None)


async def test_a_prebuilt_image_becomes_one_of_this_host(catalog, directory):
    made = await taken(catalog, directory, "mine")
    as_stated(catalog, made)
    assert catalog.get("mine").history[-1].action == TAKEN
    assert {p.stat().st_nlink for p in directory.iterdir()} == {
        1
    }  # the bundle's own files stay its own
    with pytest.raises(RefusedError, match="taken"):
        await taken(catalog, directory, "mine")


@pytest.mark.parametrize("name", ["rootfs.img", "vmlinux"])
async def test_a_file_that_is_not_what_its_manifest_says_is_refused_and_nothing_is_left(
    catalog, directory, name
):
    (directory / name).chmod(0o644)
    with (directory / name).open("r+b") as file:
        file.write(b"changed")
    with pytest.raises(InvalidInputError, match="not the file") as raised:
        await taken(catalog, directory)
    assert raised.value.hint == "banger runtime status"
    assert entries(catalog) == []


@pytest.mark.parametrize(
    "change",
    [{"version": 0}, {"version": 9}, {"id": "../../x"}, {"files": {}}, {"files": {"../x": {"size_bytes": 1, "digest": ""}}}],
)  # fmt: skip
async def test_what_is_no_image_is_refused(catalog, directory, change):
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(InvalidInputError, match="holds no image"):
        await taken(catalog, directory)
    path.unlink()
    with pytest.raises(InvalidInputError, match="holds no image"):
        await taken(catalog, directory)


def placed(tmp_path, directory, **changes):
    """A bundle with this image, as `runtime fetch` leaves one; ``changes`` of file contents after it."""
    root = Root(tmp_path / "bundle")
    version = root.versions / "1"
    target = version / "images" / "debian"
    target.mkdir(parents=True)
    contents = {"firecracker": b"x"}
    for path in directory.iterdir():
        contents[f"images/debian/{path.name}"] = path.read_bytes()
        (target / path.name).write_bytes(path.read_bytes())
    manifest = manifest_for(contents, images=(ImageTable(name="debian", path="images/debian"),))
    (version / "manifest.toml").write_text(to_toml(manifest))
    root.current.symlink_to("versions/1")
    return root, target


async def test_the_images_of_a_placed_bundle_are_found(tmp_path, directory, catalog):
    root, target = placed(tmp_path, directory)
    warned = []
    (found,) = prebuilt(root, warned.append)
    assert (found.name, found.directory, warned) == ("debian", target, [])
    as_stated(catalog, await taken(catalog, found.directory))


def test_an_image_whose_manifest_was_changed_is_left_alone(tmp_path, directory):
    root, target = placed(tmp_path, directory)
    (target / "manifest.json").write_text("{}")
    warned = []
    assert prebuilt(root, warned.append) == []
    assert warned == [
        "image debian of the bundle is left alone: images/debian/manifest.json was changed"
    ]
    (target / "manifest.json").unlink()
    assert prebuilt(root, warned.append) == []
    (target.parents[1] / "manifest.toml").write_text("no toml")
    assert prebuilt(root, warned.append) == []
    assert prebuilt(Root(tmp_path / "none"), warned.append) == []
