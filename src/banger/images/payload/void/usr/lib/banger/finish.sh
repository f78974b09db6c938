#!/bin/sh
# Runs once, inside the new root, at the end of an image build: makes Void one of banger's guests and removes what is
# this machine's alone. What differs between VMs comes with the identity drive.
set -eu
PATH=/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin

# Services: banger's own, none for screens that are not there. A service's state is in /run, as Void has it.
services=/etc/runit/runsvdir/default
mkdir -p "$services"
rm -f "$services"/agetty-tty*
for service in sshd banger-agent getty-ttyS0 opencode; do
    [ -d "/etc/sv/$service" ] || continue # of the tools that a recipe may have
    rm -rf "/etc/sv/$service/supervise"
    ln -s "/run/runit/supervise.$service" "/etc/sv/$service/supervise"
    ln -sfn "/etc/sv/$service" "$services/$service"
done
for name in stopit reboot; do
    [ -L "/etc/runit/$name" ] || ln -sf "/run/runit/$name" "/etc/runit/$name"
done
[ -L /var/service ] || ln -s /run/runit/runsvdir/current /var/service
chmod 0755 /etc/runit/1 /etc/runit/2 /etc/runit/3 /etc/runit/ctrlaltdel

# sshd reads banger's settings before its own: of a setting the first one counts.
sshd=/etc/ssh/sshd_config
include='Include /etc/ssh/sshd_config.d/*.conf'
if ! grep -q -s "^$include" "$sshd"; then
    { echo "$include"; [ ! -f "$sshd" ] || cat "$sshd"; } > "$sshd.new"
    mv "$sshd.new" "$sshd"
fi

# The agent, compiled by this image's own Python: a guest should not compile at every boot.
PYTHONHASHSEED=0 /usr/bin/python3 -S /usr/lib/banger/seal_agent.py /usr/lib/banger/agent.pyz
rm -f /usr/lib/banger/seal_agent.py

# root: no password, which is no locked account (sshd without PAM refuses those), a person's shell and its files.
[ ! -f /etc/shadow ] || sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow
[ ! -x /bin/bash ] || sed -i '/^root:/s|:[^:]*$|:/bin/bash|' /etc/passwd
[ ! -d /etc/skel ] || cp -R /etc/skel/. /root/
chmod 0700 /root
mkdir -p /root/.ssh
chmod 0700 /root/.ssh

# What the recipe's tools need; bash of Void does not read the file that they write into.
if [ -f /usr/lib/banger/tools.sh ]; then
    /bin/sh /usr/lib/banger/tools.sh
    # shellcheck disable=SC2016
    echo '[ ! -f /etc/bash.bashrc ] || . /etc/bash.bashrc' >> /root/.bashrc
    # A command over SSH is no login, and its bash reads no file: sshd itself says where the tools are.
    if [ -f /etc/environment ]; then # of tools.sh, where there is mise
        sed -n 's/^PATH="\(.*\)"$/SetEnv PATH=\1/p' /etc/environment > /etc/ssh/sshd_config.d/60-tools.conf
    fi
fi

# Nothing of this machine, nothing that only takes space.
rm -f /etc/ssh/ssh_host_* /etc/machine-id /var/lib/dbus/machine-id /etc/hostname /etc/hosts /etc/resolv.conf
: > /etc/machine-id
: > /etc/resolv.conf
rm -rf /var/cache/xbps /var/cache/ldconfig /var/tmp/* /tmp/* /run/*
rm -f /boot/initramfs-* /boot/System.map-* /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /usr/lib/banger/finish.sh
