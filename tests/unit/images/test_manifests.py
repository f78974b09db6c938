"""Manifests of other versions: brought up to date, or refused with what mends them."""

import json
from dataclasses import replace

import pytest

from banger.images import manifests
from banger.images.catalog import ImageCatalog
from banger.model.errors import HostLacksError, NotFoundError
from banger.model.manifest import MANIFEST_VERSION, HistoryEntry, ImageManifest
from tests.unit.images.test_register import as_stated
from tests.unit.images.test_seeds import an_image

VERSION_1 = """{
  "id": "4a010f05ce0a", "name": "debian", "distribution": "debian", "release": "bookworm", "architecture": "amd64",
  "created_at": "2026-01-01T00:00:00.000Z",
  "inputs_digest": "0000000000000000000000000000000000000000000000000000000000000000",
  "disk_bytes": 8589934592, "kernel_release": "6.1.0-57-cloud-amd64", "cmdline": "rw",
  "files": {"vmlinux": {"size_bytes": 53243444, "digest": "00"}, "rootfs.img": {"size_bytes": 8589934592, "digest": "11"}},
  "services": [{"name": "ssh", "port": 22}], "packages": {"bash": "5.2"}, "recipe": "debian", "kernel_digest": "00", "pvh": true, "version": 1
}
"""


@pytest.fixture
def catalog(tmp_path):
    return ImageCatalog(tmp_path / "images", tmp_path / "logs")


def stored(catalog, text=VERSION_1, **changes):
    directory = catalog._dir / "4a010f05ce0a"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text(json.dumps({**json.loads(text), **changes}))
    return directory / "manifest.json"


async def test_a_manifest_of_version_1_is_read_and_brought_up_to_date_at_start_up(catalog):
    path = stored(catalog)
    assert catalog.get("debian").version == 1  # usable before
    said = await catalog.keep_up()
    assert said == [f"manifest of image debian brought up to version {MANIFEST_VERSION}"]
    now = json.loads(path.read_text())
    before = json.loads(VERSION_1)
    before["services"] = [{**service, "path": ""} for service in before["services"]]
    assert {key: now[key] for key in before if key != "version"} == {k: v for k, v in before.items() if k != "version"}  # fmt: skip
    assert now["version"] == MANIFEST_VERSION == 2
    assert now["payload"] == 1
    assert now["seed"] == ""
    assert [one["action"] for one in now["history"]] == ["manifest upgraded from version 1"]
    assert catalog.get("debian").version == 2
    assert await catalog.keep_up() == []


async def test_a_version_1_image_gets_its_seed_ready_with_its_first_vm(catalog):
    manifest, _ = an_image(catalog, seed={"note": b"x"}, ssh=False, version=1, payload=1)
    await catalog.keep_up()
    assert not (await catalog.seed(manifest.id)).current
    await catalog.refresh_seed(manifest.id)
    now = catalog.by_id(manifest.id)
    assert (await catalog.seed(manifest.id)).current
    assert [one.action for one in now.history] == ["manifest upgraded from version 1", "work seed renewed"]  # fmt: skip
    as_stated(catalog, now)


@pytest.mark.parametrize(
    ("changes", "why", "hint"),
    [
        ({"version": 3}, "version 3, this banger knows 2", "update banger"),
        ({"version": 0}, "too old", "banger image build debian --force"),
        ({"version": 0, "name": "mine", "recipe": "debian"}, "too old", "banger image build debian --name mine --force"),
        ({"version": 0, "name": "it; rm", "recipe": "/a b/x.toml"}, "too old", "banger image build '/a b/x.toml'"),
        ({"files": 7}, "damaged", "banger image delete 4a010f05ce0a"),
    ],
)  # fmt: skip
async def test_a_manifest_that_cannot_be_used_is_refused_with_what_mends_it(
    catalog, changes, why, hint
):
    path = stored(catalog, **changes)
    before = path.read_text()
    assert catalog.list() == []
    (one,) = catalog.unusable()
    assert why in one.why
    assert one.hint.startswith(hint)
    (said,) = await catalog.keep_up()
    assert "cannot be used" in said
    for ask in (lambda: catalog.get(one.id), lambda: catalog.by_id(one.id), lambda: catalog.boot_stack(one.id)):  # fmt: skip
        with pytest.raises(HostLacksError) as raised:
            ask()
        assert raised.value.hint == one.hint
    assert path.read_text() == before
    await catalog.delete(one.id, unused=lambda: None, progress=lambda *_: None)
    assert catalog.unusable() == []


async def test_one_that_cannot_be_used_does_not_hide_another_of_its_name(catalog):
    stored(catalog, version=3)
    made, _ = an_image(catalog)
    assert catalog.get("debian").id == made.id
    with pytest.raises(NotFoundError):
        catalog.get("nonesuch")


def test_an_image_of_version_2_is_left_as_it_is(tmp_path):
    manifest = ImageManifest("a" * 12, "x", "d", "r", "amd64", "", "", 1, "", "", {})
    assert manifests.upgrade(tmp_path, manifest) is False


def test_what_mends_an_image_depends_on_how_it_came():
    base = ImageManifest("a" * 12, "x", "d", "r", "amd64", "", "0" * 64, 1, "", "", {}, recipe="debian")  # fmt: skip
    assert base.remedy == "banger image build debian --name x --force"
    registered = replace(base, inputs_digest="")
    assert registered.remedy.startswith("banger image register --name x --replace")
    promoted = replace(registered, history=(HistoryEntry("", "promoted", "b" * 12, "box"),))
    assert promoted.remedy == "banger image promote box --name x --replace"
