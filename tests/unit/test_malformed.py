"""Documents that are no UTF-8, or nested without end, are malformed like any other: an error with a next step, never the daemon's own."""

import io
import tarfile

import pytest

from banger.host import tars
from banger.host.config import load_config
from banger.images import manifests
from banger.images.flatten import Source, scan
from banger.images.layers import Budget
from banger.images.oci import LayerFile
from banger.images.recipe import load_recipe
from banger.images.root_facts import parse_services
from banger.images.root_tree import RootTree
from banger.images.void import lock
from banger.model.errors import BangerError, InvalidInputError
from banger.model.manifest import Unusable
from banger.wire.helper import decode_reply
from banger.wire.http1 import Exchange, HttpError
from banger_agent import tars as agent_tars
from banger_agent.http import BadRequest
from fuzz.targets.peers import Filled
from tests.framework import toy_container as toy

NO_TEXT = b'{"name": "\xff"}'
DEEP = b"[" * 60_000
BOTH = pytest.mark.parametrize("data", [NO_TEXT, DEEP], ids=["no-text", "deep"])


@BOTH
async def test_a_guests_answer(data):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data)
    exchange = Exchange(Filled(head + data))
    await exchange.send("GET", "/healthz", {})
    assert await exchange.status() == 200
    with pytest.raises(HttpError, match="not JSON"):
        await exchange.json(1 << 20)


@BOTH
def test_an_images_manifest(data, tmp_path):
    path = tmp_path / "0123456789ab" / "manifest.json"
    path.parent.mkdir()
    path.write_bytes(data)
    found = manifests.read(path)
    assert isinstance(found, Unusable)
    assert "damaged" in found.why


@BOTH
def test_the_services_of_a_root_file_system(data):
    with pytest.raises(InvalidInputError, match="malformed"):
        parse_services(data)


@BOTH
def test_a_lock_file(data, tmp_path):
    path = tmp_path / "void.lock"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match="damaged"):
        lock.read_lock(path, load_recipe("void"), "void")


@BOTH
def test_a_reply_of_the_helpers(data):
    with pytest.raises(BangerError, match="no sense"):
        decode_reply(data)


def test_a_recipe(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_bytes(b"x = " + DEEP)
    with pytest.raises(InvalidInputError, match="nested too deeply"):
        load_recipe(str(path))


def test_a_configuration(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"x = " + DEEP)
    with pytest.raises(InvalidInputError, match="not TOML"):
        load_config({"BANGER_CONFIG": str(path), "HOME": str(tmp_path)})


def pax(**headers):
    """A tar with a file that has these extended headers."""
    return toy.tar([toy.member("file", b"data", pax_headers=headers)])


def one_after_the_other(count):
    """Extended headers that each are about the next one."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 11
    return (info.tobuf() + b"11 a=bcdef\n".ljust(512, b"\0")) * count


TARS = pytest.mark.parametrize(
    "data",
    [
        pax(mtime="inf"),
        pax(mtime="nan"),
        pax(**{"GNU.sparse.map": "1,x", "GNU.sparse.size": "4"}),
        pax(**{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"}),
        one_after_the_other(2000),
    ],
    ids=["inf", "nan", "map", "sparse", "deep"],
)


@TARS
def test_headers_of_a_tar(data):
    with pytest.raises(BangerError, match=r"damaged|no tar"):
        list(tars.members(tars.open_stream(io.BytesIO(data))))
    layer = Source(LayerFile("layer", "layer"), lambda: (io.BytesIO(data), len(data)))
    with pytest.raises(InvalidInputError, match="damaged"):
        scan(layer, 0, RootTree(), {}, Budget())


@TARS
def test_headers_of_a_tree_for_the_agent(data, tmp_path):
    with pytest.raises(BadRequest, match="no tar archive"):
        agent_tars.unpack(iter([data]), str(tmp_path))


def test_a_member_that_says_more_than_the_archive_has_ends_it_at_once():
    """tarfile would read on at the end, ten kilobytes a time, until it had passed over all that the header says."""
    info = tarfile.TarInfo("a")
    info.size = 1 << 60
    with tars.open_stream(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(100))) as archive:
        found = tars.members(archive)
        assert next(found).name == "a"
        with pytest.raises(tars.ArchiveError, match="damaged"):
            next(found)
