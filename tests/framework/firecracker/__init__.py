"""A stand-in for Firecracker where there is no KVM: its command line, API, exit statuses and vsock socket, with QEMU (TCG) as the engine.

It refuses what the real one refuses, in its words. `install.make_firecracker` makes the program, `play.Play` says how it misbehaves on
demand, `official` checks any request or answer against Firecracker's own description of its API, and `examples` holds requests on which
tests/contract/test_firecracker_likeness compares it with a real one, where there is one.

What is known of the real one comes from reading Firecracker's sources (v1.13.1 to 1.17-dev), its API description, and from asking it; none
of its code is here. What differs, because QEMU is not Firecracker or because nothing needs it:

- The vsock device is a virtio-serial port with banger's mux: only banger's agent answers, its ports end at 65535, the guest cannot connect
  to the host, and a CONNECT may take 10 s (the real one gives up after 2).
- ``poweroff`` prints ``reboot: Power down`` where the real guest, which has no ACPI S5, halts without it. In both the process stays.
- ``loglevel=5 tsc_early_khz= tsc=reliable`` is added to the kernel's command line (a guest under TCG hangs without, or says that it does),
  ``virtio_mmio.device=`` is not.
- Network and entropy rate limiters, CPU templates, huge pages, dirty page tracking and the I/O engine are checked and have no effect. MMDS
  stores, but no guest can read it. Metrics are one short line. The boot timer and --seccomp-filter are accepted and ignored.
- Refused in so many words: pmem devices, memory hotplug, free page hinting, vhost-user drives, another file for a running drive, Uffd.
- Snapshots are QEMU's: only the stand-in can load its own, a Diff is a full one.
- An array in place of an object is refused, which serde would take for its fields in order; so are unknown fields in token buckets, metrics,
  overrides and the configuration file, which Firecracker ignores. Where the official description is found, what it does not allow is
  refused with ``stand-in: not by the official API``.
- Kernel and drives are opened anew at the start; the real one keeps what it opened when they were configured.
- It is two processes (QEMU is a child that dies with it), and on SIGSTOP only the outer one stops.
"""
