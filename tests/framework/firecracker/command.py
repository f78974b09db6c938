"""Firecracker's command line and exit statuses (its ``FcExitCode``)."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field

OK, GENERIC_ERROR, UNEXPECTED_ERROR, BAD_CONFIGURATION, ARG_PARSING = 0, 1, 2, 152, 153
SIGNALS = {
    signal.SIGHUP: 156, signal.SIGILL: 157, signal.SIGBUS: 149, signal.SIGSEGV: 150, signal.SIGXFSZ: 151,
    signal.SIGXCPU: 154, signal.SIGSYS: UNEXPECTED_ERROR,
}  # fmt: skip
DEFAULT_SOCKET = "/run/firecracker.socket"
DEFAULT_ID = "anonymous-instance"
PAYLOAD_BYTES = 51200
VALUES = {
    "api-sock": "Path to unix domain socket used by the API.",
    "config-file": "Path to a file that contains the microVM configuration in JSON format.",
    "describe-snapshot": "Print the data format version of the provided snapshot state file.",
    "http-api-max-payload-size": "Http API request payload max size, in bytes.",
    "id": "MicroVM unique identifier.",
    "level": "Set the logger level.",
    "log-path": "Path to a fifo or a file used for configuring the logger on startup.",
    "metadata": "Path to a file that contains metadata in JSON format to add to the mmds.",
    "metrics-path": "Path to a fifo or a file used for configuring the metrics on startup.",
    "mmds-size-limit": "Mmds data store limit, in bytes.",
    "module": "Set the logger module filter.",
    "parent-cpu-time-us": "Parent process CPU time, in microseconds.",
    "seccomp-filter": "Path to a custom seccomp filter.",
    "start-time-cpu-us": "Process start CPU time, in microseconds.",
    "start-time-us": "Process start time, in microseconds.",
}
FLAGS = {
    "boot-timer": "Load the boot timer device.",
    "enable-pci": "Enables PCIe support.",
    "no-api": "Start without an active API socket.",
    "no-seccomp": "Start without seccomp filtering. Not recommended.",
    "show-level": "Output the level in the logs.",
    "show-log-origin": "Include the origin in the logs.",
    "snapshot-version": "Print the supported data format version.",
    "version": "Print the binary version number.",
}
DEFAULTS = {
    "api-sock": DEFAULT_SOCKET,
    "id": DEFAULT_ID,
    "http-api-max-payload-size": str(PAYLOAD_BYTES),
}
NUMBERS = (
    "http-api-max-payload-size", "mmds-size-limit", "start-time-us", "start-time-cpu-us", "parent-cpu-time-us",
)  # fmt: skip


class UsageError(Exception):
    """A command line that Firecracker refuses; ``shown`` is Rust's form of the error, on standard error."""

    def __init__(self, message: str, shown: str) -> None:
        super().__init__(message)
        self.message = message
        self.shown = shown


@dataclass(frozen=True, slots=True)
class Arguments:
    """What was given."""

    values: dict[str, str] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> str | None:
        return self.values.get(name, DEFAULTS.get(name))


def parse(words: list[str]) -> Arguments:
    """The arguments; UsageError. ``--help`` and ``--version`` win over everything else; what follows ``--`` is ignored."""
    words = words[: words.index("--")] if "--" in words else words
    for name, forms in (("help", ("--help", "-h")), ("version", ("--version",))):
        if any(form in words for form in forms):
            return Arguments(flags=frozenset({name}))
    values: dict[str, str] = {}
    flags: set[str] = set()
    rest = iter(words)
    for word in rest:
        name = word.removeprefix("--")
        if not word.startswith("--") or name not in VALUES | FLAGS:
            raise UsageError(f"Found argument '{name}' which wasn't expected, or isn't valid in this context.", f'UnexpectedArgument("{name}")')  # fmt: skip
        if name in values or name in flags:
            raise UsageError(f"The argument '{name}' was provided more than once.", f'DuplicateArgument("{name}")')  # fmt: skip
        if name in FLAGS:
            flags.add(name)
            continue
        value = next(rest, "--")
        if value.startswith("--"):
            raise UsageError(f"The argument '{name}' requires a value, but none was supplied.", f'MissingValue("{name}")')  # fmt: skip
        values[name] = value
    if "no-api" in flags and "config-file" not in values:
        raise UsageError("Argument 'config-file' required, but not found.", 'MissingArgument("config-file")')  # fmt: skip
    if "no-seccomp" in flags and "seccomp-filter" in values:
        raise UsageError("Argument 'seccomp-filter' cannot be used together with argument 'no-seccomp'.", 'ForbiddenArgument("no-seccomp", "seccomp-filter")')  # fmt: skip
    return Arguments(values, frozenset(flags))


def help_text() -> str:
    """What ``--help`` prints below the version."""
    lines = {f"  --{name} <{name}>": text for name, text in VALUES.items()}
    lines |= {f"  --{name}": text for name, text in FLAGS.items()}
    width = max(map(len, lines))
    shown = [f"{name:<{width}}   {text}" for name, text in sorted(lines.items())]
    return "optional arguments:\n" + "\n".join(shown)


def instance_id_error(text: str) -> str:
    """What is wrong with an instance id; empty if nothing."""
    if not 1 <= len(text) <= 64:
        return f"InvalidLen({len(text)}, 1, 64)"
    for place, letter in enumerate(text):
        if letter != "-" and not letter.isalnum():
            return f"InvalidChar({letter!r}, {place})"
    return ""
