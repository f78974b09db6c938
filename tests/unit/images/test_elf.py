"""What is read of ELF files, also of broken ones."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.images.elf import Elf, linux_release, read_elf
from tests.framework.toy import toy_kernel
from tests.framework.toy_root import KERNEL, elf_kernel


@pytest.mark.parametrize("bits", [32, 64])
def test_architecture_pvh_and_loader_are_read(bits):
    assert read_elf(elf_kernel(bits=bits)) == Elf(62, pvh=True, static=True)
    assert read_elf(elf_kernel(bits=bits, notes=(), interpreter=True)) == Elf(62, False, False)


def test_a_note_is_found_behind_others_of_any_length():
    notes = ((b"GNU\0", 3), (b"Linux\0", 257), (b"Xen\0", 6), (b"Xen\0", 18))
    assert read_elf(elf_kernel(notes=notes)).pvh
    assert not read_elf(elf_kernel(notes=notes[:3])).pvh


def test_a_toy_kernel_that_qemu_boots_has_a_pvh_entry():
    assert read_elf(toy_kernel("idle")).pvh


def test_a_machine_without_a_name_has_its_number():
    assert Elf(9999, pvh=False, static=True).architecture == "machine 9999"


@pytest.mark.parametrize(
    "data",
    [b"", b"\x7fEL", b"\x7fELF", b"\x7fELF\2\2\1" + bytes(100), b"\x7fELF\7\1\1" + bytes(100), KERNEL[:70]],
)  # fmt: skip
def test_what_is_no_elf_file_or_damaged_is_none(data):
    assert read_elf(data) is None


@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_damage_is_worse_than_none(noise, at):
    damaged = KERNEL[:at] + noise + KERNEL[at + len(noise) :]
    assert read_elf(damaged) is None or isinstance(read_elf(damaged), Elf)


def test_a_note_that_states_more_than_there_is_ends_the_search():
    data = bytearray(elf_kernel(notes=((b"GNU\0", 3), (b"Xen\0", 18))))
    struct.pack_into("<I", data, 512 + 4, 0xFFFFFFF0)
    assert read_elf(bytes(data)).pvh is False


def test_the_release_is_that_of_linuxs_banner():
    assert linux_release(elf_kernel("6.12.1_1")) == "6.12.1_1"
    assert linux_release(b"Linux version %s (%s@%s)" + elf_kernel("6.2-x")) == "6.2-x"
    assert linux_release(elf_kernel(release="")) == ""
