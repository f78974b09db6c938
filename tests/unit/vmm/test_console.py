"""Logs of VMMs: bounded, and harmless on a terminal."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger.vmm import console
from banger.vmm.console import LINE_CHARACTERS, TAIL_BYTES, cap_log, printable_tail


def numbered(count):
    return b"".join(b"line %06d\n" % n for n in range(count))


def test_a_short_log_is_left_alone(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(numbered(10))
    assert cap_log(log, 1000) is False
    assert log.read_bytes() == numbered(10)


def test_a_missing_log_is_fine(tmp_path):
    assert cap_log(tmp_path / "no", 10) is False


@pytest.mark.parametrize("count", [1000, 50_000])
def test_a_long_log_keeps_whole_lines_of_its_newest_half(tmp_path, count):
    log = tmp_path / "log"
    log.write_bytes(numbered(count))
    assert cap_log(log, 4000) is True
    kept = log.read_bytes()
    assert 1900 < len(kept) <= 2000
    assert numbered(count).endswith(kept)
    assert kept.startswith(b"line ")
    assert cap_log(log, 4000) is False


def test_a_log_without_line_ends_is_capped_too(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 100_000)
    assert cap_log(log, 4000) is True
    assert log.stat().st_size == 2000


def test_who_appends_goes_on_at_the_new_end(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(numbered(1000))
    writer = os.open(log, os.O_WRONLY | os.O_APPEND)
    try:
        cap_log(log, 4000)
        os.write(writer, b"the newest line\n")
    finally:
        os.close(writer)
    data = log.read_bytes()
    assert data.endswith(b"line 000999\nthe newest line\n")
    assert b"\0" not in data


def test_lines_that_come_during_the_cut_are_kept(tmp_path, monkeypatch):
    log = tmp_path / "log"
    log.write_bytes(numbered(1000))
    real, arrived = os.pwrite, []

    def pwrite(descriptor, data, position):
        if not arrived:
            arrived.append(True)
            with log.open("ab") as late:
                late.write(b"came late\n")
        return real(descriptor, data, position)

    monkeypatch.setattr(console.os, "pwrite", pwrite)
    assert cap_log(log, 4000) is True
    assert log.read_bytes().endswith(b"line 000999\ncame late\n")


def test_who_does_not_append_leaves_holes_that_count_for_nothing(tmp_path):
    """Firecracker's own log: each cut would lose all but the newest lines if the hole were counted."""
    log = tmp_path / "log"
    log.write_bytes(b"")
    writer = os.open(log, os.O_WRONLY)
    try:
        os.write(writer, numbered(20_000))
        assert cap_log(log, 100_000) is True
        for number in range(100):
            os.write(writer, b"late %d\n" % number)
            assert cap_log(log, 100_000) is False
        assert os.fstat(writer).st_blocks * 512 < 100_000
        os.write(writer, numbered(10_000))
        assert cap_log(log, 100_000) is True
    finally:
        os.close(writer)
    data = log.read_bytes()
    assert len(data) <= 50_000
    assert numbered(10_000).endswith(data)


def test_lines_on_both_sides_of_a_hole_are_kept_when_both_are_new(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"")
    writer = os.open(log, os.O_WRONLY)
    try:
        os.write(writer, numbered(5_000))
        cap_log(log, 20_000)
        before = log.read_bytes()
        os.write(writer, numbered(1_500))
        assert cap_log(log, 20_000) is True
    finally:
        os.close(writer)
    data = log.read_bytes()
    assert b"\0" not in data
    assert (before + numbered(1_500)).endswith(data)


def test_a_link_in_place_of_the_log_is_not_followed(tmp_path):
    other = tmp_path / "other"
    other.write_bytes(numbered(1000))
    (tmp_path / "log").symlink_to(other)
    with pytest.raises(OSError, match="symbolic"):
        cap_log(tmp_path / "log", 100)
    assert other.read_bytes() == numbered(1000)


def shown(tmp_path, data, lines=10, **options):
    (tmp_path / "log").write_bytes(data)
    return printable_tail(tmp_path / "log", lines, **options)


def test_a_missing_log_shows_nothing(tmp_path):
    assert printable_tail(tmp_path / "no", 5) == ""


def test_the_last_lines_are_shown_without_empty_ones(tmp_path):
    assert shown(tmp_path, b"a\r\n\r\n  \r\nb\r\nc\r\n", 2) == "b\nc"


def test_a_panic_is_quoted_before_the_trace_that_follows_it(tmp_path):
    text = b"booted\nKernel panic - not syncing: eels\n" + b" trace\n" * 30
    assert shown(tmp_path, text, 3) == (
        "Kernel panic - not syncing: eels\n…\n trace\n trace\n trace"
    )


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"[\x1b[0;1;31mFAILED\x1b[0m] ssh", "[FAILED] ssh"),
        (b"\x1b]0;own the title\x07safe", "safe"),
        (b"\x1b]52;c;ZXZpbA==\x1b\\safe", "safe"),
        (b"\x1bP1$r\x1b\\safe", "safe"),
        (b"\x1b(Bsafe\x1b7\x1b8", "safe"),
        (b"a\x00b\x07c\x08d\x7fe", "abcde"),
        ("a\u009b31mb".encode(), "a31mb"),
        ("abc\u202etxt".encode(), "abctxt"),
        (b"caf\xc3\xa9 \xff", "caf\xe9 \ufffd"),
        (b"one\rtwo", "one\ntwo"),
        (b"a\tb", "a\tb"),
    ],
)
def test_control_sequences_are_taken_out(tmp_path, raw, text):
    assert shown(tmp_path, raw) == text


def test_an_open_sequence_cannot_hide_what_follows(tmp_path):
    assert "Kernel panic" in shown(tmp_path, b"\x1b]0;\nKernel panic - not syncing\n")


def test_a_line_and_the_whole_are_bounded(tmp_path):
    text = shown(tmp_path, b"x" * 1_000_000)
    assert len(text) == LINE_CHARACTERS
    assert len(shown(tmp_path, b"y\n" * 1_000_000, 10**9)) <= TAIL_BYTES


def test_nothing_before_the_given_offset_is_shown(tmp_path):
    assert shown(tmp_path, b"old\nnew\n", since_bytes=4) == "new"
    assert shown(tmp_path, b"old\n", since_bytes=4) == ""
    assert shown(tmp_path, b"cut since\n", since_bytes=4000) == "cut since"


@settings(
    max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.binary(max_size=2000))
def test_no_bytes_of_a_guest_reach_the_terminal_raw(tmp_path, data):
    assert all(c.isprintable() or c in "\t\n" for c in shown(tmp_path, data, 50))


def test_a_flood_of_escapes_is_read_in_no_time(tmp_path):
    shown(tmp_path, b"\x1b]" * TAIL_BYTES + b"\x1b[" * TAIL_BYTES)
