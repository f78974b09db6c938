"""Layers over one another: what the image specification says of them, and that no order of hostile names gets out of the root."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banger.images.layers import Member
from banger.images.root_tree import RootTree
from banger.model.errors import InvalidInputError


def path(name):
    return tuple(name.split("/"))


def file(name, number=0):
    return Member(number, path(name), "file", 0o644)


def directory(name, mode=0o755):
    return Member(0, path(name), "directory", mode)


def symlink(name, target):
    return Member(0, path(name), "symlink", target=target)


def link(name, target):
    return Member(0, path(name), "link", link=path(target))


def tree(*layers, whiteouts=True):
    made = RootTree()
    for number, members in enumerate(layers):
        made.apply(number, members, f"layer {number}", whiteouts=whiteouts)
    return made


def names(made):
    """Every path with the layer that its inode is of; directories end with a slash."""
    return {
        "/".join(where) + ("/" if node.children is not None else ""): node.inode.layer
        for where, node in made.entries()
        if where
    }


def test_a_later_file_replaces_an_earlier_one_and_missing_directories_are_made():
    made = tree([file("a/b"), file("c")], [file("c"), file("c2")])
    assert names(made) == {"a/": 0, "a/b": 0, "c": 1, "c2": 1}


def test_a_directory_over_a_directory_keeps_what_is_in_it_and_takes_its_mode():
    made = tree([directory("d"), file("d/f")], [directory("d", 0o700)])
    assert names(made) == {"d/": 1, "d/f": 0}
    assert made.look("/d").inode.member.mode == 0o700


def test_a_file_over_a_directory_takes_all_below_it_away():
    assert names(tree([file("d/e/f")], [file("d")])) == {"d": 1}


def test_a_directory_over_a_symlink_to_one_is_a_directory_of_its_own():
    made = tree([file("real/f"), symlink("d", "real")], [directory("d"), file("d/g")])
    assert names(made) == {"real/": 0, "real/f": 0, "d/": 1, "d/g": 1}


@pytest.mark.parametrize("order", [1, -1])
def test_a_whiteout_hides_what_is_below_its_layer_wherever_it_stands_in_it(order):
    upper = [file(".wh.d"), directory("d"), file("d/new")]
    made = tree(
        [file("d/old"), file("keep")], upper[::order] if order == 1 else [*upper[1:], upper[0]]
    )
    assert names(made) == {"d/": 1, "d/new": 1, "keep": 0}


def test_an_opaque_directory_hides_all_of_the_layers_below_and_nothing_of_its_own():
    made = tree([file("d/a"), file("d/b/c")], [file("d/new"), file("d/.wh..wh..opq")])
    assert names(made) == {"d/": 0, "d/new": 1}


def test_whiteouts_of_what_is_not_there_and_those_of_aufs_do_nothing():
    made = tree([file("a")], [file(".wh.b"), file("x/.wh.y"), file(".wh..wh.plnk")])
    assert names(made) == {"a": 0}


def test_in_a_plain_tar_a_name_like_a_whiteout_is_a_name():
    assert names(tree([file(".wh.a")], whiteouts=False)) == {".wh.a": 0}


def test_a_hard_link_reaches_across_layers_and_outlives_its_other_name():
    made = tree([file("a")], [link("b", "a")], [file(".wh.a")])
    assert names(made) == {"b": 0}


def test_a_symlinked_parent_of_a_layer_below_is_followed_within_the_root():
    made = tree([directory("usr/lib"), symlink("lib", "usr/lib")], [file("lib/x.so")])
    assert names(made) == {"usr/": 0, "usr/lib/": 0, "usr/lib/x.so": 1, "lib": 0}


@pytest.mark.parametrize("target", ["/etc", "../../../../etc", "/../../etc", "up/../../../etc"])
def test_a_symlinked_parent_never_leads_out(target):
    made = tree([symlink("evil", target), symlink("up", "..")], [file("evil/passwd")])
    assert names(made) == {"evil": 0, "up": 0, "etc/": 1, "etc/passwd": 1}


@pytest.mark.parametrize(
    "members",
    [
        [symlink("a", "b"), symlink("b", "a"), file("a/x")],
        [file("a"), file("a/b")],
        [link("a", "missing")],
        [directory("d"), link("a", "d")],
        [link("a", "a")],
        [symlink("a", "b"), link("x", "a/y")],
    ],
)
def test_what_cannot_be_placed_is_refused_with_its_name(members):
    with pytest.raises(InvalidInputError, match="cannot be placed"):
        tree(members)


_NAMES = st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3).map("/".join)
_TARGETS = st.lists(st.sampled_from(["a", "b", "..", "", "c"]), min_size=1, max_size=4).map(
    "/".join
)
_MEMBERS = st.one_of(
    st.builds(file, _NAMES),
    st.builds(directory, _NAMES),
    st.builds(symlink, _NAMES, _TARGETS.filter(bool)),
    st.builds(link, _NAMES, _NAMES),
    st.builds(lambda name: file("/".join([*path(name)[:-1], ".wh." + path(name)[-1]])), _NAMES),
    st.builds(lambda name: file(name + "/.wh..wh..opq"), _NAMES),
)
_LAYERS = st.lists(st.lists(_MEMBERS, max_size=8), max_size=4)


@given(_LAYERS)
@settings(max_examples=400, deadline=None)
def test_whatever_comes_every_parent_is_a_directory_and_no_whiteout_is_left(layers):
    try:
        made = tree(*layers)
    except InvalidInputError:
        return
    found = dict(made.entries())
    for where in found:
        assert ".." not in where
        assert not any(part.startswith(".wh.") for part in where)
        for depth in range(len(where)):
            assert found[where[:depth]].children is not None
    for node in found.values():
        assert (node.children is not None) == (node.inode.member.kind == "directory")


def flat(layers):
    """The same without symlinks and links, told simply: paths to the layer that set them last."""
    state = {}
    for number, members in enumerate(layers):
        for hidden in [m.path for m in members if m.path[-1].startswith(".wh.")]:
            base, name = hidden[:-1], hidden[-1]
            if not all(state.get(base[:d], ("d",))[0] == "d" for d in range(1, len(base) + 1)) or (base and base not in state):  # fmt: skip
                continue
            gone = base if name == ".wh..wh..opq" else (*base, name[4:])
            state = {p: v for p, v in state.items() if p[: len(gone)] != gone or (name == ".wh..wh..opq" and p == gone)}  # fmt: skip
        for member in members:
            if member.path[-1].startswith(".wh."):
                continue
            for depth in range(1, len(member.path)):
                if state.setdefault(member.path[:depth], ("d", number))[0] != "d":
                    raise InvalidInputError("a file in the way")
            kind = "d" if member.kind == "directory" else "f"
            if kind == "f":
                state = {p: v for p, v in state.items() if p[: len(member.path)] != member.path}
            state[member.path] = (kind, number)
    return state


_PLAIN = st.one_of(
    st.builds(file, _NAMES),
    st.builds(directory, _NAMES),
    st.builds(lambda name: file("/".join([*path(name)[:-1], ".wh." + path(name)[-1]])), _NAMES),
    st.builds(lambda name: file(name + "/.wh..wh..opq"), _NAMES),
)


@given(st.lists(st.lists(_PLAIN, max_size=8), max_size=4))
@settings(max_examples=400, deadline=None)
def test_layers_without_links_come_to_what_a_simple_telling_says(layers):
    try:
        wanted = flat(layers)
    except InvalidInputError:
        with pytest.raises(InvalidInputError):
            tree(*layers)
        return
    found = {
        where: ("d" if node.children is not None else "f", node.inode.layer)
        for where, node in tree(*layers).entries()
        if where
    }
    assert found == wanted
