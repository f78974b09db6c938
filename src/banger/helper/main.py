"""``banger-helper``: the narrow root service for TAP, nft, device mapper and loop devices."""

from __future__ import annotations

import sys


def main() -> None:
    """Say that this release has no helper: everything runs without privilege."""
    sys.stderr.write(
        "error: banger-helper is not built yet\n"
        "this release needs no privileged helper\n\n"
        "hint: banger daemon start\n"
    )
    sys.exit(1)


if __name__ == "__main__":
    main()
