"""Something done by another user, for tests that are root: in a child of our own that has given up everything."""

import contextlib
import ctypes
import os
import pickle
import stat
import traceback

PR_SET_DUMPABLE = 4
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


class ChildFailedError(AssertionError):
    """What went wrong in the child."""


def as_user(uid, work, *arguments, groups=()):
    """The result of ``work(*arguments)``, called as user ``uid`` in a process of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _let_go(but=writer)
            os.setgroups(list(groups))
            os.setgid(uid)
            os.setuid(uid)
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # else /proc/self is root's
            result = (True, work(*arguments))
        except BaseException:  # noqa: BLE001  whatever it is, the parent is told
            result = (False, traceback.format_exc())
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    good, result = pickle.loads(data)
    if not good:
        raise ChildFailedError(result)
    return result


def _let_go(but):
    """Have no pipe and no socket of the test's process. Another thread of it may be starting a program just now, and waits until nobody
    has the other end any more: for ever, if it is also who is to answer us. The numbers stay taken: their objects may be thrown away yet.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            kind = os.fstat(number).st_mode
            if number > 2 and number != but and (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
                os.dup2(null, number, inheritable=False)


def own_namespace():
    """Be root of new user and network namespaces; a descriptor of the latter."""
    uid = os.getuid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    with open("/proc/self/uid_map", "w") as file:
        file.write(f"0 {uid} 1")
    return os.open("/proc/self/ns/net", os.O_RDONLY)
