"""Threads and what they wait on, out of ``_thread`` alone: importing ``threading`` costs a starting guest too much."""

from _thread import allocate_lock as Lock  # noqa: N812  it is used as a class
from _thread import start_new_thread

__all__ = ["Condition", "Flag", "Lock", "start"]


def start(function, *arguments):
    """Run ``function`` in a thread of its own; RuntimeError if there can be no more."""
    start_new_thread(function, arguments)


class Condition:
    """As `threading.Condition` over a plain lock, with what is needed of it."""

    def __init__(self):
        self._lock = Lock()
        self._waiters = []

    def __enter__(self):
        self._lock.acquire()

    def __exit__(self, *_error):
        self._lock.release()

    def wait(self, timeout_s=-1):
        """Let go of the lock until `notify_all` or for ``timeout_s`` (-1: for ever), then take it again."""
        waiter = Lock()
        waiter.acquire()
        self._waiters.append(waiter)
        self._lock.release()
        try:
            waiter.acquire(True, timeout_s)
        finally:
            self._lock.acquire()
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def notify_all(self):
        """Wake all who wait; the caller holds the lock."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            waiter.release()


class Flag:
    """Once set, it stays set."""

    def __init__(self):
        self._condition = Condition()
        self._set = False

    def __bool__(self):
        return self._set

    def set(self):
        with self._condition:
            self._set = True
            self._condition.notify_all()

    def wait(self, timeout_s):
        """Whether it was set within ``timeout_s``."""
        from time import monotonic

        end = monotonic() + timeout_s
        with self._condition:
            while not self._set:
                left = end - monotonic()
                if left <= 0:
                    return False
                self._condition.wait(left)
        return True
