"""Positions of keys and values in TOML."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.images.positions import Positions
from banger.images.resources import config_dir

NASTY = '''# a = 1
"a b" = "x = [ # no"  # c
'c.d'.e = 1979-05-27 07:32:00
t = """
[no]
n = 1 \\""" still"""
lit = \'\'\'[[no]]
'n' = '\'\'\'
arr = [ 1, # one
  [ "]", {x = 1, "y" = [2]} ],
]
[s]
k = true
[ s . "q r" ]
z.z = { a.b = 'c' }
[[many]]
n = 1
[many.inner]
m = 2
[[many]]
n = 2
[[many.deep]]
o = 3
[[many.deep]]
o = 4
'''


def leaves(value, path=()):
    """Every path to a value that is no table, and the value."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, (*path, key))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from leaves(below, (*path, number))
    else:
        yield path, value


def check(text):
    """Each value, read again from the place that is told for it, is the value."""
    index = Positions(text)
    for path, value in leaves(tomllib.loads(text)):
        rest = text[index.values[path] :]
        ends = [n for n in range(1, len(rest) + 1) if readable(rest[:n], value)]
        assert ends, (path, rest[:40])
        key = next(p for p in (path[:n] for n in range(len(path), 0, -1)) if p in index.keys)
        assert index.keys[key] <= index.values[path]


def readable(text, value):
    try:
        return tomllib.loads(f"x = {text}") == {"x": value}
    except tomllib.TOMLDecodeError:
        return False


def test_every_value_of_a_nasty_text_is_found():
    check(NASTY)


@pytest.mark.parametrize("path", sorted((config_dir() / "images").glob("*.toml")), ids=str)
def test_every_value_of_the_projects_recipes_is_found(path):
    check(path.read_text())


KEY = st.sampled_from(["a", "b-1", '"q x"', "'l.l'"])
SCALAR = st.sampled_from(["1", "-2.5", "true", '"s"', "'#'", '"""m\n#"""', "'''\n]'''", "07:32:00"])
VALUE = st.recursive(
    SCALAR,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda found: "[\n" + ", # x\n".join(found) + "\n]"),
        st.dictionaries(KEY, inner.filter(lambda v: "\n" not in v), max_size=2).map(
            lambda found: "{" + ", ".join(f"{k} = {v}" for k, v in found.items()) + "}"
        ),
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(st.sampled_from(["", "[t]", "[[m]]"]), st.dictionaries(KEY, VALUE, max_size=3)), max_size=4))  # fmt: skip
def test_every_value_of_any_text_is_found(blocks):
    lines, seen = [], set()
    for header, pairs in blocks:
        if header in seen and header != "[[m]]":
            continue
        if header == "" and seen:
            continue
        seen.add(header)
        lines += [header, *(f"{key}  =  {value} # c" for key, value in pairs.items())]
    check("\n".join(lines))


def test_a_path_that_is_not_there_is_told_by_what_is_around_it():
    index = Positions("a = 1\n[[s]]\nn = 1\n[[s]]\n  n = 2\n")
    assert index.find(("s", 1, "n")) == (5, 7)
    assert index.find(("s", 1, "n"), key=True) == (5, 3)
    assert index.find(("s", 1, "port")) == (4, 1)
    assert index.find(("x",)) == (1, 1)
