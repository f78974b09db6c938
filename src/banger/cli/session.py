"""What the commands of one run share: configuration, and the connection to the daemon."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import click

from banger import __version__
from banger.host.config import Config, load_config

if TYPE_CHECKING:  # imported where they are used: `vm list` needs no msgspec
    from banger.client.sdk import Client
    from banger.client.transport import Transport


class Session:
    """Made once a process; everything in it is made on first use."""

    def __init__(self) -> None:
        self.debug = False

    @cached_property
    def config(self) -> Config:
        """The configuration."""
        return load_config()

    @cached_property
    def transport(self) -> Transport:
        """A connection to the daemon, which is started if need be."""
        from banger.client.autostart import ensure_daemon  # noqa: PLC0415  see above

        transport = ensure_daemon(self.config)
        transport.shows_warnings = True
        return transport

    @cached_property
    def client(self) -> Client:
        """The typed client over `transport`."""
        from banger.client.sdk import Client  # noqa: PLC0415  see above

        return Client(self.config.socket_path, transport=self.transport)

    def close(self) -> None:
        """Let go, and pass on what the daemon's user should know: its warnings, each once, and that it is of another version."""
        transport = self.__dict__.get("transport")
        if transport is not None:
            for warning in transport.warnings:
                click.echo(f"warning: {warning}", err=True)
            transport.warnings.clear()
            warn_of_version(transport.daemon_version)
            transport.close()


def warn_of_version(version: str | None) -> None:
    """One warning if ``version`` of a daemon is known and not ours."""
    if version is not None and version != __version__:
        click.echo(
            f"warning: the daemon is banger {version}, this is {__version__}; "
            "VMs go on over a restart: banger daemon stop",
            err=True,
        )


pass_session = click.make_pass_decorator(Session, ensure=True)
