"""Whether the services that the image declares answer."""

import time

from banger_agent import jsontext, threads
from banger_agent.service import Service

SERVICES = "/etc/banger/services.json"
_CHECK_S = 1.0  # for all services of one check together
_HTTP_S = 5.0  # for one that is asked in the background: the first answer of a server that has just started takes longest
_FRESH_S = 1.0  # so long is an answer good for another question: every connection to sshd costs the guest a process
_FIRST_POLL_S, _LAST_POLL_S = 0.02, 0.25


def declared(path):
    """The services in the file ``path``: a list of {"name", "port"}, some with a "path"; without a file none, what is malformed
    is left out.
    """
    try:
        with open(path, "rb") as file:
            found = jsontext.decode(file.read(64 * 1024))
    except (OSError, ValueError):
        return []
    return [item for item in found if _sound(item)][:64] if isinstance(found, list) else []


def _sound(item):
    return (
        isinstance(item, dict)
        and isinstance(item.get("name"), str)
        and isinstance(item.get("port"), int)
        and 0 < item["port"] < 65536
        and isinstance(item.get("path", ""), str)
        and item.get("path", "").isascii()
    )


class Services:
    """The services of this guest. Until all have answered once, a thread asks them; who waits is woken by it."""

    def __init__(self, path=SERVICES):
        self._list = declared(path)
        self._services = [Service(item["port"], item.get("path", "")) for item in self._list]
        self._condition = threads.Condition()
        self._ready = [False] * len(self._list)
        self._checked_at = None
        self._watching = False

    def watch(self):
        """Ask in the background until all answer."""
        with self._condition:
            if self._watching:
                return
            self._watching = True
        threads.start(self._watch)

    def _watch(self):
        poll_s = _FIRST_POLL_S
        try:
            while not self._check(skip_ready=True):
                time.sleep(poll_s)
                poll_s = min(poll_s * 1.1, _LAST_POLL_S)
        finally:
            with self._condition:
                self._watching = False
                self._condition.notify_all()

    def _check(self, skip_ready=False):
        """Ask all (or those that have not answered yet); whether all answer."""
        end = time.monotonic() + _CHECK_S
        ready = list(self._ready) if skip_ready else [False] * len(self._list)
        for number, item in enumerate(self._list):
            path = item.get("path", "")
            left = _HTTP_S if skip_ready and path else end - time.monotonic()
            if not ready[number] and left > 0:
                ready[number] = self._services[number].answers(left)
                if skip_ready and ready[number]:
                    self._note(list(ready))
        with self._condition:
            self._ready, self._checked_at = ready, time.monotonic()
            self._condition.notify_all()
        return all(ready)

    def _note(self, ready):
        """One more answers: who asks now need not wait for the slower ones to be told."""
        with self._condition:
            self._ready = ready
            self._condition.notify_all()

    def _is_fresh(self):
        return self._checked_at is not None and time.monotonic() - self._checked_at < _FRESH_S

    def state(self, wait_s=0.0):
        """A list of {"name", "port", "ready"}, once all are ready or after ``wait_s``."""
        if not self._watching:
            if not self._is_fresh():
                self._check()
            if wait_s and not all(self._ready):
                self.watch()
        end = time.monotonic() + wait_s
        with self._condition:
            while not all(self._ready):
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._condition.wait(left)
            ready = self._ready
        return [
            {"name": item["name"], "port": item["port"], "ready": is_ready}
            for item, is_ready in zip(self._list, ready)  # noqa: B905  strict= is newer than 3.9
        ]
