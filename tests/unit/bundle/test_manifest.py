"""The manifest: what it may say, what is refused and where, and that old names still work."""

import string
import tomllib
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.bundle import places, reading
from banger.bundle.manifest import FileTable, ImageTable, Manifest, to_toml
from banger.model.errors import HostLacksError, InvalidInputError

DIGEST, OTHER = "a" * 64, "b" * 64
WHOLE = f"""\
format = 1
name = "firecracker"
version = "1.14.0"
architecture = "x86_64"
urls = ["https://example.org/bundle.tar.gz"]
sha256 = "{DIGEST}"
size_bytes = 5

[[files]]
path = "firecracker"
mode = "0755"
size_bytes = 3
sha256 = "{OTHER}"

[[files]]
path = "images/debian/rootfs.img"
mode = "0444"
size_bytes = 4
sha256 = "{DIGEST}"

[[images]]
name = "debian"
path = "images/debian"
"""


def parse(text, said=None):
    return reading.parse(text.encode(), "m.toml", [].append if said is None else said.append)


def refused(text):
    with pytest.raises(InvalidInputError) as caught:
        parse(text)
    return caught.value


def test_a_whole_manifest_is_read_and_written_again_word_for_word():
    said = []
    manifest = parse(WHOLE, said)
    assert to_toml(manifest) == WHOLE
    assert manifest.pins_archive
    assert manifest.pins_contents
    assert manifest.programs == ("firecracker",)
    assert manifest.content_bytes == 7
    assert said == []


def test_the_manifest_that_comes_with_banger_pins_everything_or_nothing():
    """A digest in it is a claim that somebody verified it, so a half-filled one must never be released."""
    said = []
    manifest = reading.load(places.shipped_manifest(), said.append)
    assert {file.path for file in manifest.files} >= {"firecracker", "jailer"}
    pinned = bool(manifest.version)
    assert (manifest.pins_contents, manifest.pins_archive, bool(manifest.urls)) == (pinned,) * 3
    assert said == []


def test_without_digests_nothing_is_pinned():
    manifest = parse('name = "firecracker"\n[[files]]\npath = "firecracker"\n')
    assert not manifest.pins_contents
    assert not manifest.pins_archive
    assert manifest.title == "firecracker"
    assert manifest.jailer is None


@pytest.mark.parametrize(
    ("line", "instead", "where", "what"),
    [
        ('name = "firecracker"', 'name = "Fire Cracker"', 2, "lower-case"),
        ('version = "1.14.0"', 'version = "1/14"', 3, "digits"),
        ('version = "1.14.0"', "", None, "missing"),
        ('architecture = "x86_64"', 'architecture = "vax"', 4, "vax"),
        ("format = 1", "format = 2", 1, "2"),
        ("urls = [", "urls = [7, ", 5, "urls[0]"),
        ("https://example.org", "file:///etc", 5, "https://"),
        ("https://example.org", "https://me:secret@example.org", 5, "password"),
        ("https://example.org", "https://exa mple.org", 5, "characters"),
        ("https://example.org", "https://[", 5, "no URL"),
        (f'sha256 = "{DIGEST}"\nsize_bytes = 5', "", 5, "nothing could be verified"),
        (f'sha256 = "{DIGEST}"\nsize_bytes = 5', f'sha256 = "{DIGEST[1:]}"\nsize_bytes = 5', 6, "64"),
        ("size_bytes = 5", "", None, "come together"),
        ("size_bytes = 3", "size_bytes = -3", 12, "0"),
        ("size_bytes = 3", "size_bytes = 0", 12, "come together"),
        ("size_bytes = 3", 'size_bytes = "3"', 12, "int"),
        (f'sha256 = "{OTHER}"', f'sha256 = "{OTHER.upper()}"', 13, "lower-case"),
        (f'size_bytes = 3\nsha256 = "{OTHER}"', "", 9, "other files have one"),
        ('mode = "0755"', 'mode = "0777"', 11, "writable by nobody else"),
        ('mode = "0755"', 'mode = "4755"', 11, "octal"),
        ('mode = "0755"', "mode = 755", 11, "str"),
        ('mode = "0755"', 'mode = "0644"', 11, "executable"),
        ('path = "firecracker"', 'path = "../firecracker"', 10, "relative path"),
        ('path = "firecracker"', 'path = "/firecracker"', 10, "relative path"),
        ('path = "firecracker"', 'path = "fire\\ncracker"', 10, "relative path"),
        ('path = "firecracker"', 'path = "firecracker\\n"', 10, "relative path"),
        ('path = "firecracker"', 'path = ".hidden"', 10, "relative path"),
        ('path = "firecracker"', 'path = "manifest.toml"', 10, "own name"),
        ('path = "firecracker"', 'path = "images"', 10, "directory of another"),
        ('path = "firecracker"', 'path = "images/debian/rootfs.img"', 16, "twice"),
        ('path = "firecracker"', 'path = "other"', None, "not among the files"),
        ('[[files]]\npath = "firecracker"', '[[files]]', 9, "path"),
        ('mode = "0444"', 'member = "firecracker"', 17, "twice"),
        ('mode = "0444"', 'mdoe = "0444"', 17, "unknown key"),
        ('path = "images/debian"\n', 'path = "images/void"\n', 23, "no file lies below"),
        ('name = "debian"\n', 'name = "../x"\n', 22, "lower-case"),
        ("size_bytes = 5", 'size_bytes = 5\nother_members = "skip"', None, "needed"),
        ("size_bytes = 5", 'size_bytes = 5\njailer_path = "jailer"', 8, "not among the files"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line_and_key(line, instead, where, what):
    assert line in WHOLE
    error = refused(WHOLE.replace(line, instead, 1))
    assert error.what.startswith("m.toml:" if where is None else f"m.toml:{where}: ")
    assert what in error.what


def test_an_unknown_key_names_the_nearest_one():
    assert refused(WHOLE.replace("mode", "mdoe", 1)).hint == "did you mean mode?"
    assert refused(WHOLE.replace("version", "vresion", 1)).hint == "did you mean version?"
    assert "known keys: " in refused("zzzzzz = 1\n" + WHOLE).hint


def test_what_is_no_toml_or_too_long_is_refused(tmp_path):
    assert "line 1" in refused("= 1").detail
    with pytest.raises(InvalidInputError, match="is not TOML"):
        reading.parse(b"\xff\xfe", "m.toml", print)
    with pytest.raises(InvalidInputError, match="too long"):
        reading.parse(b"#" * (reading.MAX_TEXT_BYTES + 1), "m.toml", print)
    with pytest.raises(HostLacksError, match="cannot be read"):
        reading.load(tmp_path / "none.toml", print)
    refused("a = " + "[" * 100_000)


def test_keys_of_older_releases_are_read_with_one_warning():
    said = []
    manifest = parse(
        f"""name = "firecracker"
version = "1.14.0"
url = "https://example.org/bundle.tar.gz"
checksum = "{DIGEST}"
size = 5
firecracker_bin = "bin/firecracker"
ping_helper_path = "bin/ping-helper"

[[file]]
name = "bin/firecracker"
checksum = "{OTHER}"
size = 3
""",
        said,
    )
    assert manifest.urls == ("https://example.org/bundle.tar.gz",)
    assert manifest.programs == ("bin/firecracker",)
    assert manifest.file("bin/firecracker").sha256 == OTHER
    assert len(said) == 1
    for sentence in (
        "url is called urls now",
        "firecracker_bin is called firecracker_path now",
        "ping_helper_path is not needed any more",
        "file is called files now",
    ):
        assert sentence in said[0]
    assert parse(to_toml(manifest), said) == manifest
    assert len(said) == 1


def test_the_new_name_wins_and_a_mistake_behind_an_old_name_has_its_line():
    both = WHOLE.replace("urls", f'checksum = "{OTHER}"\nurls', 1)
    assert parse(both).sha256 == DIGEST
    old = WHOLE.replace("sha256", "checksum").replace(OTHER, "x")
    assert refused(old).what.startswith("m.toml:13: files[0].sha256: ")


def test_the_identity_is_of_what_is_placed_and_not_of_where_it_is_from():
    manifest = parse(WHOLE)
    replace = msgspec.structs.replace
    assert replace(manifest, urls=(), sha256="", size_bytes=0).identity() == manifest.identity()
    first, second = manifest.files
    others = [
        replace(manifest, version="1.14.1"),
        replace(manifest, files=(replace(first, sha256=DIGEST), second)),
        replace(manifest, files=(replace(first, mode="0555"), second)),
        replace(manifest, images=()),
    ]
    assert len({m.identity() for m in [manifest, *others]}) == 1 + len(others)


_WORDS = st.text(string.ascii_letters + string.digits + "_", min_size=1, max_size=8)
_PATHS = st.lists(_WORDS, min_size=1, max_size=3).map("/".join)
_DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)


@st.composite
def manifests(draw):
    files = [
        FileTable(
            path=f"f{number}/{draw(_PATHS)}", mode=draw(st.sampled_from(["0755", "0555"])),
            size_bytes=draw(st.integers(1, 1 << 40)), sha256=draw(_DIGESTS),
            member=draw(st.sampled_from(["", f"m{number}/x"])),
        )
        for number in range(draw(st.integers(1, 4)))
    ]  # fmt: skip
    return Manifest(
        name=draw(st.sampled_from(["firecracker", "a", "0-9"])), version=f"1.{draw(_WORDS)}",
        architecture=draw(st.sampled_from(["x86_64", "aarch64"])), sha256=draw(_DIGESTS), size_bytes=draw(st.integers(1, 1 << 40)),
        urls=tuple(draw(st.lists(st.just("https://example.org/%20[x]?a=b&c"), max_size=3))),
        firecracker_path=files[0].path, files=tuple(files),
        images=tuple(draw(st.just([ImageTable(name="i", path="f0")]) | st.just([]))),
    )  # fmt: skip


@given(manifests())
def test_every_manifest_is_read_back_equal(manifest):
    assert parse(to_toml(manifest)) == manifest
    assert reading.checked(manifest, "here") == manifest


def mistake_in(action):
    try:
        action()
    except InvalidInputError as error:
        return error.what
    return None


@given(st.text(max_size=200) | st.text("[]={}\"'\n#.ab1 ", max_size=60))
def test_any_text_is_a_manifest_or_a_named_mistake(text):
    mistake = mistake_in(lambda: parse(text))
    assert mistake is None or mistake.startswith("m.toml")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.sampled_from(["path", "name", "url", "x"]), v), max_leaves=6))  # fmt: skip
def test_any_value_of_a_key_is_refused_with_its_key(value):
    reader = reading._Reader("", "m.toml")
    table = {**tomllib.loads(WHOLE), "files": value}
    mistake = mistake_in(lambda: reading._convert(reader, reader.modern("", table)))
    assert mistake is not None
    assert "files" in mistake


def test_the_reference_names_every_key():
    text = (Path(__file__).parents[3] / "docs" / "reference" / "runtime-bundle.md").read_text()
    for table in (Manifest, FileTable, ImageTable):
        for key in table.__struct_fields__:
            assert f"`{key}`" in text
    for old in [*reading._RENAMED[""], *reading._RENAMED["files"], *reading._DROPPED]:
        assert f"`{old}`" in text
