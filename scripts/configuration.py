"""Print the reference of the configuration from the code that reads it; ``make reference`` puts it into docs/reference."""

import sys

from banger.host.config import NOT_KEYS, RENAMED
from banger.host.config_help import explain

HEAD = """\
# Configuration

Made by `make reference` from the code that reads it.

Defaults, then the file, then the environment; the last one wins. The file is `$BANGER_CONFIG`, else
`$XDG_CONFIG_HOME/banger/config.toml` (for root `/etc/banger/config.toml`); it need not exist. Every key has an environment form:
`memory` is `BANGER_MEMORY`. An unknown key is an error that names the nearest one. `banger config show` prints every value and where it is
from, `banger config path` the file's path.

    # ~/.config/banger/config.toml
    memory = "4G"
    vcpus = 4
    network = "user"

The daemon has its configuration from the command that started it. After a change: `banger daemon stop` (VMs go on); the next command starts
a new one.

| key | value | default | in the environment | meaning |
|---|---|---|---|---|
"""
STEERING = {
    "BANGER_CONFIG": "the file, see above",
    "BANGER_DEBUG": "an error shows where it was raised",
    "BANGER_NO_AUTOSTART": "a command does not start the daemon",
}


def reference() -> str:
    """The document."""
    rows = [
        f"| `{one.key}` | {one.kind} | {one.default} | `{one.variable}` | {one.meaning} |\n"
        for one in explain()
    ]
    renamed = "".join(
        f"\n`{old}` is the older name of `{new}`, still read with a warning.\n"
        for old, new in RENAMED.items()
    )
    steering = ", ".join(f"`{name}` ({STEERING[name]})" for name in sorted(NOT_KEYS))
    return f"{HEAD}{''.join(rows)}{renamed}\nNot keys, but read from the environment: {steering}.\n"


if __name__ == "__main__":
    sys.stdout.write(reference())
