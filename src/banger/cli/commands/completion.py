"""``banger completion``: the script that makes a shell complete commands, options and names of VMs."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, *, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash: eval "$(banger completion bash)" in ~/.bashrc
    zsh:  eval "$(banger completion zsh)" in ~/.zshrc
    fish: banger completion fish > ~/.config/fish/completions/banger.fish
    """  # noqa: D301  \b keeps click from filling the lines
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    script = kind(context.find_root().command, {}, "banger", "_BANGER_COMPLETE")
    click.echo(
        script.source_template % script.source_vars()
    )  # source() would run bash to ask its version
