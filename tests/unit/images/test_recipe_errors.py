"""What a person is told about a recipe's mistake, word for word: the file, the line and the column, the line itself, a next step."""

import pytest
from inline_snapshot import snapshot

from banger.images.recipe import load_recipe
from banger.model.errors import BangerError

HEAD = """name = "mine"
distribution = "debian"
release = "bookworm"
architecture = "amd64"
packages = "list"
"""


@pytest.fixture
def told(tmp_path):
    """What is said about the recipe HEAD + text, with the test's own directory left out."""

    def tell(text, head=HEAD):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "list").write_text("bash\n[dev]\ngcc\n")
        path = tmp_path / "images" / "mine.toml"
        path.write_bytes(text if isinstance(text, bytes) else (head + text).encode())
        with pytest.raises(BangerError) as raised:
            load_recipe(str(path))
        return raised.value.told().replace(str(tmp_path), "")

    return tell


def test_syntax(told):
    assert told('disk_size = "8G\nx = 1') == snapshot("""\
error: /images/mine.toml:6:16: not TOML: Illegal character '\\n'
   6 | disk_size = "8G
     |                ^

hint: mend /images/mine.toml\
""")
    assert told("services = [") == snapshot("""\
error: /images/mine.toml:6:13: not TOML: Invalid value
   6 | services = [
     |             ^

hint: mend /images/mine.toml\
""")
    assert told(b'name = "a"\nx = "\xff"') == snapshot("""\
error: /images/mine.toml:2:6: not UTF-8
'utf-8' codec can't decode byte 0xff in position 16: invalid start byte

hint: iconv -t UTF-8 /images/mine.toml\
""")


def test_keys(told):
    assert told('\n  disksize = "8G"') == snapshot("""\
error: /images/mine.toml:7:3: unknown key 'disksize'
   7 |   disksize = "8G"
     |   ^

hint: did you mean 'disk_size'?\
""")
    assert told("[[files]]\nsauce = 1") == snapshot("""\
error: /images/mine.toml:7:1: unknown key 'files[0].sauce'
   7 | sauce = 1
     | ^

hint: did you mean 'source'?\
""")
    assert told("", head='name = "x"\n') == snapshot("""\
error: /images/mine.toml:1:1: the recipe has no 'distribution'
   1 | name = "x"
     | ^

hint: write distribution = …\
""")


def test_types_and_values(told):
    assert told("profiles = [ 'a',\n  3 ]") == snapshot("""\
error: /images/mine.toml:7:3: profiles[1] is malformed
Expected `str`, got `int`
   7 |   3 ]
     |   ^

hint: mend /images/mine.toml; compare with a recipe of banger's own\
""")
    assert told('[[services]]\nname = "x"\nport = 70000') == snapshot("""\
error: /images/mine.toml:8:8: services[0].port is malformed
Expected `int` <= 65535
   8 | port = 70000
     |        ^

hint: mend /images/mine.toml; compare with a recipe of banger's own\
""")
    assert told('services = [{ name = "x" }]') == snapshot("""\
error: /images/mine.toml:6:13: services[0] has no 'port'
   6 | services = [{ name = "x" }]
     |             ^

hint: write port = …\
""")
    assert told('disk_size = "1G"') == snapshot("""\
error: /images/mine.toml:6:13: disk_size '1G' is not possible
   6 | disk_size = "1G"
     |             ^

hint: write whole MiB, at least 2G\
""")
    assert told('profiles = ["dev", "dve"]') == snapshot("""\
error: /images/mine.toml:6:20: /list has no profile 'dve'
   6 | profiles = ["dev", "dve"]
     |                    ^

hint: it has: base, dev\
""")
    assert told('add_packages = ["--evil"]') == snapshot("""\
error: /images/mine.toml:6:17: '--evil' is not a package name
   6 | add_packages = ["--evil"]
     |                 ^

hint: mend /images/mine.toml\
""")
    assert told('mirror = ["http://a.test/", "ftp://b"]') == snapshot("""\
error: /images/mine.toml:6:29: mirror 'ftp://b' is not possible
   6 | mirror = ["http://a.test/", "ftp://b"]
     |                             ^

hint: write an address (http:// or https://), or a line of sources.list: deb [signed-by=FILE] ADDRESS SUITE COMPONENT\
""")
    assert told('init = "runit"') == snapshot("""\
error: /images/mine.toml:6:8: debian has no init 'runit'
   6 | init = "runit"
     |        ^

hint: write init = "systemd"\
""")


def test_a_package_list_that_is_not_there(told):
    assert told("", head=HEAD.replace('"list"', '"lost"')) == snapshot("""\
error: /images/mine.toml:5:12: package list /lost cannot be read
No such file or directory
   5 | packages = "lost"
     |            ^

hint: ls -l /lost\
""")


def test_users(told):
    assert told('[[users]]\nname = "Me"') == snapshot("""\
error: /images/mine.toml:7:8: users[0].name is malformed
Expected `str` matching regex '^[a-z_][a-z0-9_-]{0,31}$'
   7 | name = "Me"
     |        ^

hint: mend /images/mine.toml; compare with a recipe of banger's own\
""")
    assert told('[[users]]\nname = "root"') == snapshot("""\
error: /images/mine.toml:7:8: root is there already
   7 | name = "root"
     |        ^

hint: choose another name\
""")
    assert told('[[users]]\nname = "me"\nsudo = true') == snapshot("""\
error: /images/mine.toml:6:1: a user is to have sudo, which no package brings
   6 | [[users]]
     | ^

hint: add_packages = ["sudo"]\
""")
    assert told('[[users]]\nname = "me"\nshell = "bash"') == snapshot("""\
error: /images/mine.toml:8:9: users[0].shell is malformed
Expected `str` matching regex '^(/[A-Za-z0-9._-]+)+$'
   8 | shell = "bash"
     |         ^

hint: mend /images/mine.toml; compare with a recipe of banger's own\
""")


@pytest.mark.parametrize(
    "path", ["etc/x", "/etc/../x", "/a//b", "/a/", "/", "/a\\nb", "/proc/x", "/etc/hosts", "//x"]
)
def test_paths_that_no_file_of_a_recipe_may_have(told, path):
    said = told(f'[[files]]\npath = "{path}"\ncontent = "x"')
    assert said.startswith("error: /images/mine.toml:7:8: path ")


def test_files_and_hooks(told, tmp_path):
    assert told('[[files]]\npath = "/etc/x"') == snapshot("""\
error: /images/mine.toml:6:1: a file has either 'source' or 'content'
   6 | [[files]]
     | ^

hint: write one of them\
""")
    assert told('[[files]]\npath = "/etc/x"\nsource = "none"') == snapshot("""\
error: /images/mine.toml:8:10: source /images/none cannot be read
No such file or directory
   8 | source = "none"
     |          ^

hint: ls -l /images/none\
""")
    assert told('[[files]]\npath = "/etc/x"\nsource = "../images"') == snapshot("""\
error: /images/mine.toml:8:10: source /images/../images is no regular file
   8 | source = "../images"
     |          ^

hint: name a file\
""")
    assert told('[[files]]\npath = "/etc/x"\ncontent = ""\nmode = "9"') == snapshot("""\
error: /images/mine.toml:9:8: files[0].mode is malformed
Expected `str` matching regex '^[0-7]{3,4}$'
   9 | mode = "9"
     |        ^

hint: mend /images/mine.toml; compare with a recipe of banger's own\
""")
    assert told('[[hooks]]\nstage = "setup"\nrun = "x"') == snapshot("""\
error: /images/mine.toml:7:9: hooks[0].stage is malformed
Invalid enum value 'setup'
   7 | stage = "setup"
     |         ^

hint: mend /images/mine.toml; compare with a recipe of banger's own\
""")
    assert told('[[hooks]]\nstage = "customize"\nrun = " "') == snapshot("""\
error: /images/mine.toml:6:1: a hook has no text
   6 | [[hooks]]
     | ^

hint: write a script\
""")


def test_extending(told, tmp_path):
    (tmp_path / "images").mkdir()
    base = tmp_path / "images" / "base.toml"
    mine = 'name = "x"\nextends = "base.toml"\n'
    assert told("", head=mine) == snapshot("""\
error: /images/mine.toml:2:11: no image recipe 'base.toml'
/images/base.toml: No such file or directory
   2 | extends = "base.toml"
     |           ^

hint: known recipes: debian, debian-base, testhost, void\
""")
    base.write_text(HEAD + "disk_size = 3\n")
    assert told("", head=mine) == snapshot("""\
error: /images/base.toml:6:13: disk_size is malformed
Expected `str`, got `int`
   6 | disk_size = 3
     |             ^

hint: mend /images/base.toml; compare with a recipe of banger's own\
""")
    base.write_text(HEAD + 'extends = "./mine.toml"\n')
    assert told("", head=mine) == snapshot("""\
error: /images/base.toml:6:11: './mine.toml' extends this in turn
   6 | extends = "./mine.toml"
     |           ^

hint: end the circle\
""")
    base.write_text(HEAD + '[[users]]\nname = "me"\n')
    assert told('[[users]]\nname = "me"', head=mine) == snapshot("""\
error: /images/mine.toml:3:1: users: two are called 'me'
   3 | [[users]]
     | ^

hint: give each its own name\
""")
    assert told("", head='extends = "base.toml"') == snapshot("""\
error: /images/mine.toml:1:1: the recipe has no 'name'
   1 | extends = "base.toml"
     | ^

hint: write name = …\
""")
