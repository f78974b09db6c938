"""What apt and a recipe's script say, told in banger's words. The lines are those of apt 2.6."""

import pytest

from banger.images.complaints import explain
from banger.images.distributions import every
from banger.images.recipe import INITS, PACKAGE_NAMES, LoadedRecipe
from banger.images.recipe_extras import Hook
from banger.images.recipe_keys import Recipe

LOADED = LoadedRecipe(
    Recipe("mine", "debian", "bookworm", "amd64", "list"), 1, 1, ["bash", "old=1.2"],
    hooks=[Hook("hooks[0], set-up.sh", "x", "0", "/r/mine.toml:9:1")], origins={"bash": "/r/list:3", "old=1.2": "/r/list:4"}, ref="/r/mine.toml",
)  # fmt: skip


@pytest.mark.parametrize(
    ("line", "what", "detail", "hint"),
    [
        ("E: Unable to locate package bash", "debian bookworm has no package 'bash'", "/r/list:3: bash", "mend /r/list:3, or name another mirror"),
        ("E: Package 'bash' has no installation candidate", "debian bookworm has no package 'bash'", "/r/list:3: bash", "mend /r/list:3"),
        ("E: Version '1.2' for 'old' was not found", "debian bookworm has no package 'old'", "/r/list:4: old", "mend /r/list:4"),
        ("E: Unable to locate package elsewhere", "has no package 'elsewhere'", "", "mend the package list"),
        ("E: The repository 'http://m.test bookworm Release' is not signed.", "no valid signature", "is not signed", "signed-by="),
        ("E: The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 0E98404D386FA1D9", "no valid signature", "0E98404D386FA1D9", ""),
        ("E: Failed to fetch http://me:secret@m.test/pool/b/bash_5.deb  404  Not Found [IP: 192.0.2.1 80]", "1 file from m.test: could not be fetched", "bash_5.deb: 404  Not Found", "banger image build /r/mine.toml, when"),
        ("E: Failed to fetch http://m.test/dists/x/Packages  File has unexpected size (1 != 2). Mirror sync in progress?\nE: Failed to fetch http://m.test/a.deb  Hash Sum mismatch", "1 file from m.test: is not what its index promises", "a.deb: Hash Sum mismatch", ""),
        ("dpkg: error: failed to write (No space left on device)", "no space to build an image", "No space left", "banger df"),
        ("said\nbanger: hook hooks[0], set-up.sh failed with status 4", "hook hooks[0], set-up.sh of the recipe failed with status 4", "said\nit stands in /r/mine.toml:9:1", "mend /r/mine.toml:9:1"),
        ("useradd: no\nbanger: users[0] (dev) failed with status 9", "users[0] (dev) of the recipe failed with status 9", "useradd: no", "mend the recipe"),
    ],
)  # fmt: skip
def test_a_complaint_is_told_with_its_object_and_a_next_step(line, what, detail, hint):
    error = explain(["I: running apt-get update...", *line.split("\n")], LOADED)
    assert what in error.what
    assert detail in error.detail
    assert error.hint.startswith(hint) or hint in error.hint
    assert "secret" not in error.told()


def test_what_is_not_known_is_left_to_the_log():
    assert explain(["E: mmdebstrap failed to run", "W: who knows"], LOADED) is None


def test_every_distribution_has_its_rules():
    names = {one.name for one in every()}
    assert names == set(PACKAGE_NAMES) == set(INITS)
