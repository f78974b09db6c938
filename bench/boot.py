"""Cold boots of the images debian-base and debian, by turns: until sshd listens, by the guest's own clock, and until each stage is over, by the host's.

python bench/boot.py [RUNS]
"""

import sys

from common import discard, installation, report, summary

from tests.framework.installation import built

SSHD = ("systemctl", "show", "ssh", "-p", "ActiveEnterTimestampMonotonic", "--value")
SMALL = ("--memory", "512M", "--work-size", "1G", "--wait", "agent")
RECIPES = {"debian-base": "debian", "debian": "dev"}
"""With the names that the tests give to their images."""
STAGES = ("boot", "agent")


def boot(banger, image):
    """Seconds by part: ``sshd`` since the kernel began, and the guest's stages."""
    banger.run("vm", "create", "--name", "one", "--image", image, *SMALL)
    listens = "until systemctl -q is-active ssh; do sleep 0.2; done; " + " ".join(SSHD)
    sshd_us = int(banger.run("vm", "exec", "one", "--", "sh", "-c", listens).stdout)
    created = next(op for op in banger.json("op", "list") if op["kind"] == "vm.create")
    banger.run("vm", "delete", "one")
    took = {stage["name"]: stage["duration_ms"] / 1000 for stage in created["stages"]}
    return {"sshd": sshd_us / 1e6, **{name: took[name] for name in STAGES}}


def main(runs):
    """The first boot of each, which fills the host's caches, is not counted."""
    for recipe, name in RECIPES.items():
        built(recipe, name)
    banger = installation()
    try:
        found = {recipe: [] for recipe in RECIPES}
        for name in RECIPES.values():
            boot(banger, name)
        for _ in range(runs):
            for recipe, name in RECIPES.items():
                found[recipe].append(boot(banger, name))
        parts = ("sshd", *STAGES)
        report(
            "boot",
            {
                recipe: {f"{part}_s": summary([one[part] for one in boots]) for part in parts}
                for recipe, boots in found.items()
            },
        )
    finally:
        print(discard(banger), file=sys.stderr)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
