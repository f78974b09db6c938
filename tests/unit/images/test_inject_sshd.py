"""An sshd's configuration that somebody wrote for another machine: what counts, what is commented out, what is left."""

import pytest

from banger.images.addition import Addition
from banger.images.inject_sshd import add_sshd, barred
from banger.images.layers import Member
from banger.images.root_tree import RootTree

DEBIAN = b"# see sshd_config(5)\n\nInclude /etc/ssh/sshd_config.d/*.conf\n#Port 22\nUsePAM yes\n"
OURS = "etc/ssh/sshd_config.d/50-banger.conf"


def added(config=DEBIAN, drop_ins=None, *, also=()):
    tree = RootTree()
    contents = {"etc/ssh/sshd_config": config}
    contents |= {f"etc/ssh/sshd_config.d/{name}": data for name, data in (drop_ins or {}).items()}
    tree.apply(0, [Member(n, tuple(name.split("/")), "file") for n, name in enumerate([*contents, *also])], "root")  # fmt: skip
    layer = Addition()
    add_sshd(layer, tree, contents, {})
    return layer


def test_a_configuration_that_reads_bangers_settings_first_is_left_alone():
    layer = added(drop_ins={"60-cloudimg.conf": b"PasswordAuthentication yes\n"})
    assert set(layer.files) == {OURS}
    assert layer.removed == []


@pytest.mark.parametrize(
    ("config", "drop_ins"),
    [
        (b"PermitRootLogin no\n" + DEBIAN, {}),
        (b"Match User x\n  X11Forwarding no\n", {}),
        (DEBIAN.replace(b"Include", b"#Include"), {}),
        (b"", {}),
        (DEBIAN, {"10-hardening.conf": b"PermitRootLogin no\n"}),
    ],
)
def test_else_they_stand_on_top(config, drop_ins):
    text = added(config, drop_ins).files["etc/ssh/sshd_config"]
    assert text.index(b"\nPermitRootLogin prohibit-password\n") < text.index(b"\nUseDNS no\n")
    assert text.endswith(b"\n" + config)


def test_what_would_keep_root_out_is_commented_out_wherever_it_stands():
    kept = b"PermitRootLogin no\n#Port 1\nPortable x\nX Port 2\nHostKeyAlgorithms x\n"
    gone = b"Port 2222\n  allowusers a b\n\tAllowGroups=wheel\nListenAddress ::1\nAuthenticationMethods password\nHostKey /k\n"
    assert barred(kept) == kept
    lines = barred(gone).splitlines()
    assert [line.removeprefix(b"#not with banger# ") for line in lines] == gone.splitlines()
    assert all(line.startswith(b"#not with banger# ") for line in lines)
    layer = added(drop_ins={"60-x.conf": b"DenyUsers root\n"})
    assert layer.files["etc/ssh/sshd_config.d/60-x.conf"] == b"#not with banger# DenyUsers root\n"


def test_what_forbids_sshd_to_run_is_removed():
    layer = added(also=["etc/ssh/sshd_not_to_be_run", "etc/ssh/ssh_host_rsa_key", "run/nologin"])
    assert sorted(layer.removed) == ["etc/ssh/ssh_host_rsa_key", "etc/ssh/sshd_not_to_be_run", "run/nologin"]  # fmt: skip
