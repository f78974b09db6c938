# A terminal that this system has no description of is, nowadays, near enough to xterm.
if [ -n "${TERM-}" ] && ! [ -e "/usr/share/terminfo/${TERM%"${TERM#?}"}/$TERM" ] &&
    ! [ -e "/lib/terminfo/${TERM%"${TERM#?}"}/$TERM" ] && ! [ -e "/etc/terminfo/${TERM%"${TERM#?}"}/$TERM" ]; then
    export TERM=xterm-256color
fi
