"""Which blocks a file has: the sums, and what a real file system says."""

import os

from hypothesis import given
from hypothesis import strategies as st

from banger.host import extents

SPANS = st.lists(
    st.tuples(st.integers(0, 60), st.integers(1, 20)).map(lambda s: (s[0], s[0] + s[1])),
    max_size=12,
)


@given(SPANS)
def test_what_lies_in_several_spans_is_counted_once(spans):
    inside = {at for begin, end in spans for at in range(begin, end)}
    assert extents.covered_bytes(spans) == len(inside)


def test_nothing_is_covered_by_nothing():
    assert extents.covered_bytes([]) == 0


def test_the_extents_of_a_file_are_its_data_or_nobody_knows(tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        for position in (0, 32 << 20):
            file.seek(position)
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        found = extents.of(file.fileno(), lambda: False)
    with path.open("rb") as file:
        assert extents.of(file.fileno(), lambda: True) is None
    if found is not None:  # a file system such as tmpfs does not say
        assert extents.covered_bytes(one.span for one in found) == 2 << 20
        assert not any(one.shared for one in found)
