"""A stand-in for Firecracker where there is no KVM: its command line, API, exit codes and vsock socket, with QEMU (TCG) as the engine.

It refuses what the real one refuses, in its words. `install.make_firecracker` makes the program, `play.Play` says how it misbehaves on
demand, `official` checks any request or answer against Firecracker's own description of its API.

What is known of the real one comes from reading Firecracker's sources (v1.13.1 to 1.17-dev), its API description and kernel documents;
none of its code is here. What differs, because QEMU is not Firecracker:

- The vsock device is a virtio-serial port with banger's mux, so only banger's agent answers, ports end at 65535, and the guest cannot
  connect to the host. A CONNECT may take 10 s (the real one gives up after 2).
- `poweroff` prints ``reboot: Power down`` where the real guest, which has no ACPI S5, says ``System halted``. In both the process stays.
- Devices are found through ACPI; ``virtio_mmio.device=`` is not on the command line, ``tsc_early_khz=`` is (a guest under TCG hangs without).
- Network and entropy rate limiters, CPU templates, huge pages and the I/O engine are checked and have no effect. MMDS stores, but no
  guest can read it. Metrics are one short line. pmem, memory hotplug, hinting and vhost-user drives are refused in so many words.
- Kernel and drives are opened anew at InstanceStart; the real one keeps what it opened when they were configured.
"""
