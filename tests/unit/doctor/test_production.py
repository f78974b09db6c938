"""What strangers' VMs want of a host: every check on a host of its own, good and bad."""

import os

import pytest

from banger.doctor.production import checks
from banger.doctor.report import as_text, examine, mend
from banger.host.config import load_config

CPU = "sys/devices/system/cpu"
GOOD = {
    f"{CPU}/smt/control": "forceoff",
    f"{CPU}/smt/active": "0",
    f"{CPU}/vulnerabilities/l1tf": "Not affected",
    f"{CPU}/vulnerabilities/spectre_v2": "Mitigation: Enhanced IBRS",
    f"{CPU}/vulnerabilities/itlb_multihit": "Not affected",
    "proc/cmdline": "root=/dev/sda1 quiet",
    "proc/cpuinfo": "processor : 0\nmicrocode : 0xa201016\nflags : fpu svm\n",
    "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 1 0 100\n",
    "proc/sys/kernel/osrelease": "6.1.0-18-amd64",
    "proc/self/mountinfo": "29 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate,favordynmods",
    "proc/77/comm": "kvm-pit/76",
    "proc/77/cgroup": "0::/banger/0123456789ab",
    "sys/kernel/mm/ksm/run": "0",
    "sys/devices/system/edac/mc/mc0/ce_count": "0",
    "sys/module/kvm/parameters/nx_huge_pages": "never",
}
ASKED = {
    "smt", "mitigations", "kernel switches", "microcode", "same-page merging", "swap", "memory", "cgroup moves", "nx_huge_pages", "kvm-pit threads",
}  # fmt: skip


@pytest.fixture
def config(tmp_path):
    return load_config({"HOME": str(tmp_path), "BANGER_STATE_DIR": str(tmp_path / "s"), "BANGER_RUNTIME_DIR": str(tmp_path / "r")})  # fmt: skip


@pytest.fixture
def host(tmp_path):
    """A good host, on which a test writes what is wrong with it."""
    root = tmp_path / "host"

    def write(path, text):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")

    for path, text in GOOD.items():
        write(path, text)
    write.root = root
    return write


def found(host, config):
    return {each.name: each for each in examine(checks(host.root), config)}


def test_a_good_host_is_told_so(host, config):
    assert {name: found(host, config)[name].status for name in ASKED} == dict.fromkeys(ASKED, "ok")


@pytest.mark.parametrize(
    ("name", "path", "text", "said"),
    [
        ("smt", f"{CPU}/smt/active", "1", "share a core"),
        ("mitigations", f"{CPU}/vulnerabilities/mds", "Vulnerable: no microcode", "mds: Vulnerable: no microcode"),
        ("kernel switches", "proc/cmdline", "quiet mitigations=off", "mitigations=off"),
        ("same-page merging", "sys/kernel/mm/ksm/run", "1", "merged"),
        ("swap", "proc/swaps", "Filename Type\n/dev/sda2 partition 1 0 -2", "/dev/sda2"),
        ("cgroup moves", "proc/self/mountinfo", "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate", "waits"),
        ("nx_huge_pages", "sys/module/kvm/parameters/nx_huge_pages", "Y", "does not need"),
        ("kvm-pit threads", "proc/77/cgroup", "0::/", "kvm-pit/76"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_a_next_step_and_its_source(
    host, config, name, path, text, said
):
    host(path, text)
    if name == "smt":
        host(f"{CPU}/smt/control", "on")
    finding = found(host, config)[name]
    assert finding.status == "warn"
    assert said in finding.detail
    assert finding.hint
    assert finding.source
    assert finding.source in as_text([finding])
    others = {
        other: f.status for other, f in found(host, config).items() if other in ASKED - {name}
    }
    assert set(others.values()) == {"ok"}


def test_a_processor_that_multihit_harms_keeps_its_small_pages(host, config):
    host(f"{CPU}/vulnerabilities/itlb_multihit", "KVM: Vulnerable")
    finding = found(host, config)["nx_huge_pages"]
    assert (finding.status, finding.hint) == ("warn", "boot with kvm.nx_huge_pages=auto")
    host("sys/module/kvm/parameters/nx_huge_pages", "Y")
    assert found(host, config)["nx_huge_pages"].status == "ok"


def test_memory_without_correction_is_told(host, config):
    (host.root / "sys/devices/system/edac/mc/mc0/ce_count").unlink()
    (host.root / "sys/devices/system/edac/mc/mc0").rmdir()
    assert found(host, config)["memory"].status == "warn"


def test_a_host_that_is_a_vm_is_not_asked_for_its_hardware(host, config):
    host("proc/cpuinfo", "flags : fpu hypervisor svm")
    assert {found(host, config)[name].status for name in ("microcode", "memory")} == {"skip"}


def test_what_an_older_kernel_does_not_need_is_not_asked(host, config):
    host("proc/sys/kernel/osrelease", "5.15.0")
    host("proc/self/mountinfo", "29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw")
    assert found(host, config)["cgroup moves"].status == "skip"


@pytest.mark.skipif(os.geteuid() != 0, reason="mending this is root's")
def test_merging_of_pages_is_switched_off_when_asked(host, config):
    host("sys/kernel/mm/ksm/run", "1")
    asked = [check for check in checks(host.root) if check.name == "same-page merging"]
    said = mend(asked, examine(asked, config), config)
    assert said == [
        "same-page merging: switched kernel same-page merging off (until the next boot)"
    ]
    assert [finding.status for finding in examine(asked, config)] == ["ok"]


def test_nothing_is_mended_where_nothing_is_wrong_nor_by_who_may_not(host, config, monkeypatch):
    asked = [check for check in checks(host.root) if check.name == "same-page merging"]
    assert mend(asked, examine(asked, config), config) == []
    host("sys/kernel/mm/ksm/run", "1")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert mend(asked, examine(asked, config), config) == [
        "same-page merging: only root can mend that"
    ]
    assert (host.root / "sys/kernel/mm/ksm/run").read_text() == "1\n"
