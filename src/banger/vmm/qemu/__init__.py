"""QEMU's microvm machine: pure arguments, QMP, process."""
