"""Which of the user's values a session in a guest gets: ``--forward-env`` and the configuration's ``forward_env``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from banger.host.config import Config
from banger.model.errors import NotFoundError

_F = TypeVar("_F", bound=Callable[..., Any])


def option(function: _F) -> _F:
    """``--forward-env`` as the parameter ``forward_env``."""
    return click.option(
        "--forward-env",
        "forward_env",
        multiple=True,
        metavar="NAME[=VALUE]",
        help="Pass a variable of yours, or a secret, into the session; repeatable.",
    )(function)


def forwarded(
    config: Config, given: Sequence[str], environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The variables that go into a session, by name.

    A value is that which was given, else the caller's own, else the secret of this name. What the configuration names and
    nobody has is left out; what was asked for and nobody has is NotFoundError.
    """
    if not (given or config.forward_env):
        return {}
    from banger.cli.secret_store import SecretStore, check_name, check_value  # noqa: PLC0415  few sessions

    environ = os.environ if environ is None else environ
    store = SecretStore(config.secrets_dir)
    found: dict[str, str] = {}

    def look_up(name: str) -> str | None:
        value = environ.get(name)
        return value if value is not None else store.get(name)

    for name in config.forward_env:
        value = look_up(check_name(name))
        if value:
            found[name] = check_value(name, value)
    for pair in given:
        name, is_pair, text = pair.partition("=")
        known = text if is_pair else look_up(check_name(name))
        if known is None:
            raise NotFoundError(
                f"there is no variable and no secret {name}",
                hint=f"banger secret set {name}, or export it",
            )
        found[check_name(name)] = check_value(name, known)
    return found
