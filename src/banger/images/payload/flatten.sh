#!/bin/sh
# Moves a home that landed in root/ of a work disk up to where it belongs: flatten.sh DIRECTORY, where the disk is mounted. Run by the
# initramfs's init, and by banger for work seeds.
#
# The home is in DIRECTORY/root if that has a shell's start-up file and DIRECTORY has none. The directory gets another name first, by
# which a run that was cut short is known and ended by the next. What DIRECTORY has already stays as it is; what came from below is kept
# beside it as NAME.from-root, and with a number if that is taken too.
set -eu
home=$1
nested="$home/.banger-nested-root"
if [ ! -d "$nested" ] || [ -L "$nested" ]; then
    if [ ! -d "$home/root" ] || [ -L "$home/root" ]; then exit 0; fi
    if [ ! -e "$home/root/.bashrc" ] && [ ! -e "$home/root/.profile" ]; then exit 0; fi
    if [ -e "$home/.bashrc" ] || [ -e "$home/.profile" ]; then exit 0; fi
    mv "$home/root" "$nested"
fi
for path in "$nested"/* "$nested"/.[!.]* "$nested"/..?*; do
    [ -e "$path" ] || [ -L "$path" ] || continue
    name=${path##*/}
    target="$home/$name"
    if [ -d "$target" ] && [ ! -L "$target" ]; then rmdir "$target" 2> /dev/null || :; fi
    number=""
    while [ -e "$target" ] || [ -L "$target" ]; do
        target="$home/$name.from-root$number"
        number=$((${number:-1} + 1))
    done
    mv "$path" "$target"
done
rmdir "$nested"
echo "the home in root/ was moved up"
