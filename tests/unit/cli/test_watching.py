"""``vm stats --watch``: what a line says."""

from banger.cli.output.watching import HEADINGS, WIDTHS, cells

STATS = {
    "vmm_cpu_s": 10.0, "vmm_rss_bytes": 300 << 20, "guest_load_1m": 0.5, "guest_memory_total_bytes": 512 << 20,
    "guest_memory_available_bytes": 384 << 20, "guest_rootfs_used_bytes": 400 << 20, "guest_work_used_bytes": 1 << 20,
    "net_sent_bytes": 5 << 20, "net_received_bytes": 1 << 20,
}  # fmt: skip


def test_the_processor_is_what_was_used_since_the_look_before():
    before = (100.0, {**STATS, "vmm_cpu_s": 7.0, "net_sent_bytes": 1 << 20, "net_received_bytes": 3 << 20})  # fmt: skip
    assert cells(STATS, 102.0, before)[1:] == (
        "150 %",
        "300M",
        "128M of 512M",
        "0.50",
        "400M",
        "1M",
        "2M/s",
        "512K/s",  # the VM was started again
    )


def test_the_first_look_and_a_guest_that_says_nothing_have_dashes():
    silent = {**STATS, **dict.fromkeys([key for key in STATS if key.startswith("guest")])}
    assert cells(silent, 1.0, None)[1:] == ("-", "300M", *["-"] * 6)


def test_a_vmm_that_was_started_again_has_used_nothing_rather_than_less():
    assert cells(STATS, 2.0, (1.0, {**STATS, "vmm_cpu_s": 99.0}))[1] == "0 %"


def test_every_column_has_a_heading():
    assert len(HEADINGS) == len(WIDTHS) == len(cells(STATS, 1.0, None))
