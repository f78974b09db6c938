#!/bin/sh
# Runs once, inside the new root, at the end of an image build: trims Debian for a disposable VM and removes what is
# this machine's alone. Everything here is a matter of the image; what differs between VMs comes with the identity drive.
set -eu

# Generators and units that cannot apply in a microVM, or cost boot time for nothing a disposable VM needs.
mkdir -p /etc/systemd/system-generators
for name in systemd-cryptsetup-generator systemd-debug-generator systemd-gpt-auto-generator \
    systemd-hibernate-resume-generator systemd-integritysetup-generator systemd-rc-local-generator \
    systemd-run-generator systemd-system-update-generator systemd-sysv-generator systemd-veritysetup-generator; do
    ln -sf /dev/null "/etc/systemd/system-generators/$name"
done
for unit in e2scrub_all.timer e2scrub_reap.service fstrim.timer apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer man-db.timer getty-static.service systemd-pstore.service systemd-binfmt.service \
    proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount modprobe@.service systemd-sysusers.service \
    systemd-firstboot.service systemd-machine-id-commit.service systemd-networkd.service systemd-resolved.service \
    systemd-hwdb-update.service systemd-update-done.service ldconfig.service systemd-journal-catalog-update.service \
    sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount \
    systemd-boot-system-token.service systemd-journal-flush.service systemd-random-seed.service; do
    ln -sf /dev/null "/etc/systemd/system/$unit"
done
ln -sf /dev/null /etc/systemd/system/getty@tty1.service
ln -sf /lib/systemd/system/multi-user.target /etc/systemd/system/default.target
mkdir -p /etc/systemd/system/sysinit.target.wants /etc/systemd/system/getty.target.wants
ln -sf ../banger-agent.service /etc/systemd/system/sysinit.target.wants/banger-agent.service
ln -sf ../ssh.service /etc/systemd/system/sysinit.target.wants/ssh.service 2> /dev/null || true
ln -sf /lib/systemd/system/ssh.service /etc/systemd/system/sysinit.target.wants/ssh.service
ln -sf /lib/systemd/system/serial-getty@.service /etc/systemd/system/getty.target.wants/serial-getty@ttyS0.service

# The agent, compiled by this image's own Python: a guest should not compile at every boot.
/usr/bin/python3 -I /usr/lib/banger/seal_agent.py /usr/lib/banger/agent.pyz
rm -f /usr/lib/banger/seal_agent.py

# A normal root: the shell environment of any Debian user.
cp /etc/skel/.bashrc /etc/skel/.profile /root/
install -d -m 0700 /root/.ssh
passwd -l root > /dev/null

# Nothing of this machine, nothing that only takes space.
rm -f /etc/ssh/ssh_host_* /etc/machine-id /var/lib/dbus/machine-id /etc/hostname /etc/resolv.conf
: > /etc/machine-id
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
    /var/log/*.log /var/log/apt /var/lib/systemd/random-seed /var/lib/dpkg/*-old /root/.bash_history /tmp/* /var/tmp/*
rm -f /boot/initrd.img* /boot/System.map-* /usr/lib/banger/finish.sh /etc/passwd- /etc/group- /etc/shadow- \
    /etc/gshadow- /etc/subuid- /etc/subgid-
find / -xdev -name __pycache__ -type d -prune -exec rm -rf {} +
