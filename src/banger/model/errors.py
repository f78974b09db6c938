"""Errors are data: a code, what failed with its object, the detail from below, one next step.

Text is made at the edge (``banger.cli.output.errors``, ``banger.api.errors``); everything in between
raises and catches these classes. Each class has one stable exit status and one HTTP status.
"""

from __future__ import annotations

from typing import ClassVar


class BangerError(Exception):
    """Something failed in a way that banger can explain.

    ``what`` names the failure and its object, ``detail`` quotes the layer below (may be several lines),
    ``hint`` is one command or action that brings the reader further; where a class has a ``next_step`` that is it unless told otherwise.
    """

    code: ClassVar[str] = "failure"
    exit_status: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    next_step: ClassVar[str] = ""

    def __init__(self, what: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.detail = detail
        self.hint = hint or self.next_step

    def told(self) -> str:
        """All of it as a program says it on stderr: what, the detail's lines, and behind an empty line the next step."""
        lines = [f"error: {self.what}", *self.detail.splitlines()]
        return "\n".join([*lines, "", f"hint: {self.hint}"] if self.hint else lines)


class InvalidInputError(BangerError):
    """The request itself is wrong; nothing was done."""

    code = "invalid"
    exit_status = 2
    http_status = 400


class NotFoundError(BangerError):
    """No object answers to this reference."""

    code = "not-found"
    exit_status = 3
    http_status = 404


class RefusedError(BangerError):
    """Not in this state, or the name is taken; nothing was done."""

    code = "refused"
    exit_status = 4
    http_status = 409


class HostLacksError(BangerError):
    """The host lacks something that this needs: a program, a permission, a feature, space."""

    code = "host-lacks"
    exit_status = 5
    http_status = 503


class GuestNotReadyError(BangerError):
    """The guest did not answer in time."""

    code = "guest-not-ready"
    exit_status = 6
    http_status = 504


class VmmDiedError(BangerError):
    """The VMM ended while it was needed; the detail has the end of the guest's console."""

    code = "vmm-died"


class DaemonUnreachableError(BangerError):
    """The daemon cannot be reached or started."""

    code = "daemon-unreachable"
    exit_status = 7
    http_status = 503


class CancelledOperationError(BangerError):
    """Somebody cancelled the operation; what it had made was undone."""

    code = "cancelled"
    next_step = "banger op list"


class CommandFailedError(BangerError):
    """A program that banger started ended badly; says what ran, how it ended and its last words."""

    code = "command-failed"
    next_step = "banger daemon logs"

    def __init__(
        self, argv: tuple[str, ...], how: str, *, stderr_tail: str = "", hint: str = ""
    ) -> None:
        super().__init__(f"{argv[0]} {how}", detail=stderr_tail, hint=hint)
        self.argv = argv
        self.how = how


def _concrete(base: type[BangerError]) -> dict[str, type[BangerError]]:
    """The class of each code: the one that states it, not those below it, which may be made from more than words."""
    found: dict[str, type[BangerError]] = {}
    for sub in base.__subclasses__():
        found |= _concrete(sub)
    if "code" in vars(base) and base is not CommandFailedError:
        found[base.code] = base
    return found


def from_code(code: str, what: str, *, detail: str = "", hint: str = "") -> BangerError:
    """The error that ``code`` names, for a client that got it over the wire; unknown codes are failures."""
    return _concrete(BangerError).get(code, BangerError)(what, detail=detail, hint=hint)
