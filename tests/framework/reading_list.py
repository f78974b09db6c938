"""Which documents a test reads command by command on a real guest (tests/vm/test_documents.py), what of them it leaves out and why,
and why it leaves out the others. Whatever is left out here is still read by click and by a shell (tests/unit/test_documents.py).
"""

READ = {
    "docs/tutorial/first-machine.md": {
        "^make demo": "tests/vm/test_first_machine.py runs it",
        "^export PATH": "the reader has a banger",
    },
    "docs/how-to/seeing.md": {
        r"(events|logs \w+|daemon logs) -f": "goes on until Ctrl-C",
        "--watch": "goes on until Ctrl-C",
        "op why 3f2a": "the id and the times are an example's",
    },
    "docs/how-to/remote-host.md": {
        "^ssh -t": "a shell, which the tutorial has",
        r"^ssh web\.build": "reads ~/.ssh/config; the test runs it with a file of its own",
    },
    "docs/how-to/uninstall.md": {
        "^systemctl --user": "needs a user manager; tests/vm/test_units.py has one",
        "^sudo banger setup storage": "needs root; tests/host/test_setup_storage.py",
        "^sudo banger setup helper": "needs root and systemd; tests/unit/cli/test_setup_helper.py",
        "^sudo (rm|groupdel)": "needs root, and would take it from this host",
        "^uv tool": "the reader's banger is the tests' own",
    },
}
"""A document's commands that are left out: a pattern and a reason each."""

UNREAD = {
    "README.md": "the tutorial and the how-tos, shortened",
    "docs/explanation/helper.md": "needs root",
    "docs/explanation/images.md": "explains; tests/vm/test_promote.py",
    "docs/explanation/storage.md": "needs root",
    "docs/explanation/test-host.md": "an hour in a guest of its own",
    "docs/how-to/agents.md": "an agent and a repository of the reader's; tests/vm/test_lifecycle.py has its copies",
    "docs/how-to/disk-space.md": "would remove the tests' own image; tests/unit/cli/test_disk.py",
    "docs/how-to/editors.md": "ssh reads the home of the account; tests/vm/test_lifecycle.py has the same with a file",
    "docs/how-to/forwards.md": "fixed ports of the host; tests/vm/test_forwards.py has free ones",
    "docs/how-to/import-images.md": "needs container engines; tests/vm/test_imported.py, tests/vm/test_registered.py",
    "docs/how-to/offline-bundle.md": "needs a release of Firecracker; tests/unit/bundle has made ones",
    "docs/how-to/opencode.md": "needs the internet; tests/vm/test_dev_image.py",
    "docs/how-to/own-kernel.md": "needs a kernel; tests/vm/test_registered.py",
    "docs/how-to/production.md": "its output is one host's; tests/unit/doctor",
    "docs/how-to/promote.md": "needs the internet; tests/vm/test_promote.py",
    "docs/how-to/recipes.md": "needs a mirror; tests/host/test_image_recipe_builds.py",
    "docs/how-to/snapshots-without-root.md": "needs root",
    "docs/how-to/systemd.md": "needs a user manager; tests/vm/test_units.py",
    "docs/how-to/void.md": "needs a mirror; tests/vm/test_void.py",
}
"""Documents with commands of which none is run, and why."""
