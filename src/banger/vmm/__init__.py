"""Virtual machine monitors: QEMU now, Firecracker next."""
