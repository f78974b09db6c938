"""Work that is killed between any two of its steps on files, in a child of the test's own."""

import os
import signal
import sys

# What a program does to files raises these audit events (docs.python.org/3/library/audit_events.html). A child that ends at each of
# them in turn is one that was killed between any two steps.
STEPS = {"open", "os.rename", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}  # fmt: skip


def names(event, arguments):
    """What the step is on; a tree is removed by names in an open directory."""
    if event in {"os.remove", "os.rmdir"} and arguments[1] >= 0:
        return [os.path.join(os.readlink(f"/proc/self/fd/{arguments[1]}"), arguments[0])]
    return [str(argument) for argument in arguments]


def killed_at(number, below, work):
    """Do ``work`` in a child that gets SIGKILL at its ``number``th step on a file below the directory; whether it was killed."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            if event in STEPS and any(str(below) in name for name in names(event, arguments)):
                seen += 1
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = 1
        try:
            sys.addaudithook(hook)
            work()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)
