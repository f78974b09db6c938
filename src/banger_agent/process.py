"""Starting programs: fork and exec by hand. ``subprocess`` takes long to import in a guest, and knows no controlling terminal."""

import errno
import fcntl
import os
import select
import struct
import termios

from banger_agent import threads

_RESET_SIGNALS = (
    13,
    25,
)  # SIGPIPE, SIGXFSZ: the interpreter ignores them, programs expect their default


class Process:
    """A program that runs, leader of its own session and process group.

    ``pidfd`` is readable once it has ended. ``stdin`` is a non-blocking descriptor; ``outputs`` are those to read from, one if
    there is a terminal (then ``stdin`` is the same), else stdout and stderr.
    """

    def __init__(self, pid, stdin, outputs):
        self.pid = pid
        self.stdin = stdin
        self.outputs = outputs
        self._lock = threads.Lock()
        self._code = None
        self.pidfd = os.pidfd_open(pid)

    def signal(self, signo):
        """Send ``signo`` to the process group, if its leader is still there (else the number may be another's)."""
        with self._lock:
            if self._code is None:
                try:
                    os.killpg(self.pid, signo)
                except OSError:
                    pass  # it ends just now, or there is no such signal: nobody is to be told

    def ended(self, timeout_s):
        """Whether it ends within ``timeout_s`` (-1: wait for it)."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(-1 if timeout_s < 0 else timeout_s * 1000))

    def wait(self):
        """Wait until it has ended; its exit code, negative if a signal ended it."""
        self.ended(-1)
        with self._lock:
            if self._code is None:
                self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._code

    def close(self):
        """Close all descriptors."""
        for descriptor in {self.pidfd, self.stdin, *self.outputs} - {-1}:
            os.close(descriptor)


def candidates(program, env):
    """The paths at which ``program`` is looked for."""
    if "/" in program:
        return [program]
    return [os.path.join(part or ".", program) for part in env.get("PATH", os.defpath).split(":")]


def resize(terminal, rows, cols):
    """Tell a terminal and who uses it about its size."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))


def pending(descriptor):
    """How many bytes can be read from a pipe or terminal now."""
    return struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)))[0]


def spawn(argv, env, cwd, size=None):
    """Start ``argv``, with a terminal if its ``size`` (rows, cols) is given.

    OSError with the file's name if it cannot be started, ValueError if something cannot be said in the file system's encoding.
    """
    paths = [os.fsencode(path) for path in candidates(argv[0], env)]
    argv = [os.fsencode(word) for word in argv]
    env = {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
    cwd = os.fsencode(cwd)
    if size is None:
        pairs = [os.pipe() for _ in range(3)]
        (theirs_in, stdin), (stdout, theirs_out), (stderr, theirs_err) = pairs
        ours, theirs = {stdin, stdout, stderr}, (theirs_in, theirs_out, theirs_err)
        outputs = [stdout, stderr]
    else:
        stdin, slave = os.openpty()
        ours, theirs, outputs = {stdin}, (slave, slave, slave), [stdin]
    try:
        if size is not None:
            resize(stdin, *size)
        pid = _fork_exec(lambda: _become(paths, argv, env, cwd), theirs, size is not None)
        os.set_blocking(stdin, False)
        return Process(pid, stdin, outputs)
    except BaseException:
        for descriptor in ours:
            os.close(descriptor)
        raise
    finally:
        for descriptor in set(theirs):
            os.close(descriptor)


def _fork_exec(become, stdio, has_terminal):
    """The pid of a child that has become what ``become()`` makes of it."""
    said, saying = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _child(become, stdio, has_terminal, saying)
    finally:
        os.close(saying)
    with open(
        said, "rb"
    ) as report:  # ends when the program was started, as the other end closes itself then
        number, _, name = report.read().partition(b":")
    if number:
        os.waitpid(pid, 0)
        raise OSError(int(number), os.strerror(int(number)), os.fsdecode(name))
    return pid


def _child(become, stdio, has_terminal, saying):
    """Other threads are gone here, and whatever locks they held stay locked: as little as possible is done."""
    try:
        os.setsid()
        if has_terminal:
            fcntl.ioctl(stdio[0], termios.TIOCSCTTY, 0)
        for number, descriptor in enumerate(stdio):
            os.dup2(descriptor, number)
        _be_ordinary()
        become()
    except OSError as error:
        os.write(saying, b"%d:%b" % (error.errno, error.filename or b""))
    finally:
        os._exit(127)


def _become(paths, argv, env, cwd):
    os.chdir(cwd)
    refusal = errno.ENOENT
    for path in paths:
        try:
            os.execve(path, argv, env)  # noqa: S606  argv, no shell
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                refusal = error.errno
    raise OSError(refusal, "", argv[0])


def _be_ordinary():
    """Give up what the agent has and a user's program should not: ignored signals, priority, protection from the OOM killer."""
    from _signal import SIG_DFL, signal

    for number in _RESET_SIGNALS:
        signal(number, SIG_DFL)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, 0)
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        os.write(descriptor, b"0")
        os.close(descriptor)
    except OSError:
        pass  # not ours to change, as in tests
