"""Errors as people read them: what, detail, and one next step; on stderr, with the exit status of the class."""

from __future__ import annotations

import click

from banger.cli.output.text import clean
from banger.model.errors import BangerError

USAGE = 2


def from_os(error: OSError) -> BangerError:
    """An OSError of the host that no layer below explained."""
    where = f"{error.filename}: " if error.filename is not None else ""
    return BangerError(
        f"{where}{error.strerror or error}",
        hint=f"ls -ld {error.filename}"
        if error.filename is not None
        else "run it again with: banger --debug …",
    )


def show(error: BaseException) -> int:
    """Print ``error``; the exit status."""
    if isinstance(error, BangerError):
        _print(error.what, error.detail, error.hint)
        return error.exit_status
    if isinstance(error, click.UsageError):
        message = error.format_message().rstrip(".")
        _print(message[:1].lower() + message[1:], "", _usage_hint(error))
        return USAGE
    if isinstance(error, click.ClickException):
        _print(error.format_message(), "", "banger --help")
        return error.exit_code
    _print(
        f"internal error: {type(error).__name__}: {error}",
        "",
        "run it again with: banger --debug …",
    )
    return 1


def _usage_hint(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx is not None else "banger"
    return f"{path} --help"


def _print(what: str, detail: str, hint: str) -> None:
    lines = [f"error: {clean(what)}"]
    lines += [clean(line) for line in detail.splitlines()]
    if hint:
        lines += ["", f"hint: {clean(hint)}"]
    click.echo("\n".join(lines), err=True)
