#!/bin/sh
# Runs once, inside the new root, at the end of an image build: trims Debian for a disposable VM and removes what is
# this machine's alone. Everything here is a matter of the image; what differs between VMs comes with the identity drive.
set -eu

# Generators and units that cannot apply in a microVM, or cost boot time for nothing a disposable VM needs.
units=/etc/systemd/system
mkdir -p /etc/systemd/system-generators
for name in systemd-cryptsetup-generator systemd-debug-generator systemd-getty-generator systemd-gpt-auto-generator \
    systemd-hibernate-resume-generator systemd-integritysetup-generator systemd-rc-local-generator \
    systemd-run-generator systemd-system-update-generator systemd-sysv-generator systemd-veritysetup-generator; do
    ln -sf /dev/null "/etc/systemd/system-generators/$name"
done
for unit in e2scrub_all.timer e2scrub_reap.service fstrim.timer apt-daily.timer apt-daily-upgrade.timer \
    dpkg-db-backup.timer man-db.timer getty@tty1.service getty-static.service systemd-pstore.service \
    systemd-binfmt.service proc-sys-fs-binfmt_misc.automount proc-sys-fs-binfmt_misc.mount modprobe@.service \
    systemd-sysusers.service systemd-firstboot.service systemd-machine-id-commit.service systemd-networkd.service \
    systemd-resolved.service systemd-hwdb-update.service systemd-update-done.service ldconfig.service \
    systemd-journal-catalog-update.service sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount \
    dev-mqueue.mount systemd-boot-system-token.service systemd-journal-flush.service systemd-random-seed.service \
    systemd-remount-fs.service systemd-update-utmp.service systemd-update-utmp-runlevel.service; do
    rm -f "$units"/*.wants/"$unit"
    ln -sf /dev/null "$units/$unit"
done
# What loads modules at boot is skipped while there is nothing to load; the first file in here brings it back.
rm -f /etc/modules-load.d/modules.conf

mkdir -p "$units/sysinit.target.wants" "$units/getty.target.wants"
ln -sf /lib/systemd/system/multi-user.target "$units/default.target"
ln -sf ../banger-agent.service "$units/sysinit.target.wants/banger-agent.service"
ln -sf /lib/systemd/system/ssh.service "$units/sysinit.target.wants/ssh.service"
ln -sf /lib/systemd/system/serial-getty@.service "$units/getty.target.wants/serial-getty@ttyS0.service"

# The agent, compiled by this image's own Python: a guest should not compile at every boot. (Debian's modules are
# compiled already, with hashes of their sources instead of times, as SOURCE_DATE_EPOCH was set.)
PYTHONHASHSEED=0 /usr/bin/python3 -S /usr/lib/banger/seal_agent.py /usr/lib/banger/agent.pyz
rm -f /usr/lib/banger/seal_agent.py

# A normal root: the shell environment of any Debian user.
cp /etc/skel/.bashrc /etc/skel/.profile /root/
install -d -m 0700 /root/.ssh
# The host's locale is not let in; what else is stands in 50-banger.conf.
[ ! -f /etc/ssh/sshd_config ] || sed -i 's/^AcceptEnv /#&/' /etc/ssh/sshd_config
[ ! -f /usr/lib/banger/tools.sh ] || /bin/sh /usr/lib/banger/tools.sh
passwd -l root > /dev/null

# Nothing of this machine, nothing that only takes space. (/tmp still has files of mmdebstrap, which empties it.)
rm -f /etc/ssh/ssh_host_* /etc/machine-id /var/lib/dbus/machine-id /etc/hostname /etc/hosts /etc/resolv.conf
: > /etc/machine-id
: > /etc/resolv.conf
find /var/log -type f -exec truncate -s 0 {} +
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/cache/ldconfig/aux-cache \
    /var/log/*.log /var/log/apt /var/lib/systemd/random-seed /var/lib/dpkg/*-old /root/.bash_history /var/tmp/*
rm -f /boot/initrd.img* /boot/System.map-* /usr/lib/banger/finish.sh /etc/passwd- /etc/group- /etc/shadow- \
    /etc/gshadow- /etc/subuid- /etc/subgid-
