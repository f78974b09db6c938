"""Single messages: a guest's and the host's questions for names, requests to banger-helper and its replies, netlink, a serial console."""

from __future__ import annotations

import errno
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import cast

from banger.helper import verbs
from banger.host import netlink as host_netlink
from banger.model.errors import BangerError
from banger.network.names import MAX_ANSWER_BYTES, answer
from banger.storage.snapshots import rules
from banger.vmm.console import LINE_CHARACTERS, cap_log, printable_tail
from banger.wire import helper as wire_helper
from fuzz.targets.peers import require

_VMS: dict[str, list[str]] = {"box": ["10.0.0.2"], "stopped": []}


def names(data: bytes) -> None:
    """A question gets a bounded answer to itself, or none."""
    said = answer(data, _VMS.get)
    if said is not None:
        require(12 <= len(said) <= MAX_ANSWER_BYTES, "an answer of no size")
        require(said[:2] == data[:2] and bool(said[2] & 0x80), "an answer to something else")


class _Kernel:
    """A netlink socket whose answers are given."""

    def __init__(self, data: bytes) -> None:
        self._answers = [data]

    def settimeout(self, _seconds: float) -> None:
        """It never waits."""

    def setsockopt(self, *_words: int) -> None:
        """It has all options."""

    def send(self, data: bytes) -> int:
        """It takes everything."""
        return len(data)

    def recv(self, _limit: int) -> bytes:
        """What there is, then the time is over."""
        if self._answers:
            return self._answers.pop()
        raise OSError(errno.EAGAIN, "time is over")


def netlink(data: bytes) -> None:
    """Answers of any shape end: in values, or in an error. The kernel is believed, so what it may say is not bounded further."""
    for ask in ("routes", "local_networks"):
        route = host_netlink.Route(cast("socket.socket", _Kernel(data)))
        route._sequence = 0  # noqa: SLF001  the next request is number one
        with suppress(OSError, OverflowError, host_netlink.struct.error):
            getattr(route, ask)()
    host_netlink.attributes(data)


def console(data: bytes) -> None:
    """What a guest writes to its console is cut to its cap, and shown without anything that moves a terminal's cursor."""
    with tempfile.TemporaryDirectory(prefix="banger-fuzz-") as name:
        path = Path(name) / "console.log"
        path.write_bytes(data)
        shown = printable_tail(path, 20)
        require(all(c in "\t\n" or c.isprintable() for c in shown), "control characters are shown")
        require(all(len(line) <= LINE_CHARACTERS for line in shown.split("\n")), "a line too long")
        require(shown.count("\n") <= 21, "too many lines")
        cap_log(path, 1024)
        require(path.stat().st_size <= max(1024, 0), "the log has outgrown its cap")


def helper(data: bytes) -> None:
    """A request to banger-helper: a verb whose arguments are checked, or an error in three parts that fits into a reply."""
    try:
        request = wire_helper.parse_request(data, ())
        verb = verbs.check(request)
    except wire_helper.BadRequestError:
        return
    except BangerError as error:
        _fits(error)
        return
    require(set(request.arguments) == set(verb.arguments), "arguments that nobody asked for")
    if request.op == "snapshot.attach":
        numbers = [cast("int", request.arguments[key]) for key in verb.arguments]
        try:
            rules.check_numbers(*numbers)
        except BangerError as error:
            _fits(error)


def _fits(error: BangerError) -> None:
    reply = wire_helper.encode_error(error)
    require(len(reply) <= wire_helper.MAX_REPLY_BYTES, "a reply that does not fit")
    require(bool(error.what and error.hint), "an error without what or hint")


def helper_reply(data: bytes) -> None:
    """What a helper answers: a result, or the error that it says, or that it makes no sense."""
    with suppress(BangerError):
        require(isinstance(wire_helper.decode_reply(data), dict), "no result")
