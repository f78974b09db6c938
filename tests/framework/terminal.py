"""A program on a terminal of its own, as a person has it: the test types, reads the screen, changes the window's size."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
import time

LAST_WORDS_S = 10


def _take_terminal():
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """Use as a context manager; ``screen`` is all that was printed so far."""

    def __init__(self, argv, *, env, rows=24, cols=80):
        self._master, self._slave = pty.openpty()
        self.resize(rows, cols)
        self.modes = termios.tcgetattr(self._slave)
        self.process = subprocess.Popen(
            argv, env=env, stdin=self._slave, stdout=self._slave, stderr=self._slave,
            start_new_session=True, preexec_fn=_take_terminal,  # noqa: PLW1509  one ioctl
        )  # fmt: skip
        self._printed = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # the other side is closed
            while data := os.read(self._master, 65536):
                self._printed += data

    @property
    def screen(self):
        return self._printed.decode(errors="replace")

    def type(self, text):
        os.write(self._master, text.encode())

    def resize(self, rows, cols):
        """Change the window; the kernel tells the program with SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, cols, 0, 0))

    def wait_for(self, text, timeout_s=60):
        """Wait until the screen shows it."""
        end = time.monotonic() + timeout_s
        while text not in self.screen:
            assert time.monotonic() < end, f"{text!r} did not appear in:\n{self.screen}"
            if self.process.poll() is not None:  # what it wrote last is not read yet, perhaps
                end = min(end, time.monotonic() + LAST_WORDS_S)
            time.sleep(0.02)

    def whole(self):
        """The screen, once the program has ended and all that it wrote is read. `now` has no answer any more."""
        self._close_slave()  # the reader hears of its end behind the last words
        self._reader.join(LAST_WORDS_S)
        return self.screen

    def _close_slave(self):
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None

    def now(self):
        """The terminal's modes."""
        return termios.tcgetattr(self._slave)

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._close_slave()
        self._reader.join(10)
        os.close(self._master)
