"""POST /exec: run a command, its streams as frames (type:u8 length:u32be payload; types as in ``banger.api.frames``)."""

import os
import select
import struct
import time
from collections import deque

from banger_agent import process, threads
from banger_agent.http import BadRequest, Gone
from banger_agent.mux import Closed

STDIN, STDOUT, STDERR, STDIN_EOF, RESIZE, SIGNAL, EXIT, FAILED = range(8)
MAX_PAYLOAD = 64 * 1024
MAX_QUEUED = 256 * 1024  # of stdin that the command does not read; later frames wait behind it
_FRAME = struct.Struct(">BI")
_SIGHUP, _SIGKILL = 1, 9
_GRACE_S = 2.0
_QUIET_S, _STRAGGLERS_S = 0.5, 2.0
IMAGE_ENVIRONMENT = "/etc/banger/environment"
_DEFAULTS = {
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


ENVIRONMENT = "/etc/environment"


def session_environment(path=ENVIRONMENT):
    """What sessions of this guest have in their environment, as pam_env(8) reads it: lines of NAME=value, quoted or not."""
    try:
        with open(path, "rb") as file:
            text = file.read(64 * 1024).decode("utf-8", "replace")
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        name, is_pair, value = line.strip().partition("=")
        name = name[7:].strip() if name.startswith("export ") else name
        if is_pair and name.isidentifier():
            quoted = len(value) > 1 and value[0] in "\"'" and value[0] == value[-1]
            found[name] = value[1:-1] if quoted else value
    return found


def _text(value):
    return isinstance(value, str) and "\0" not in value


class Wish:
    """What was asked for, checked."""

    def __init__(self, body):
        argv, env, tty = body.get("argv"), body.get("env") or {}, body.get("tty") or False
        if not isinstance(argv, list) or not argv or not all(map(_text, argv)) or not argv[0]:
            raise BadRequest(400, "argv must be a list of strings, the first not empty")
        if not isinstance(env, dict) or not all(
            _text(k) and _text(v) and k and "=" not in k for k, v in env.items()
        ):
            raise BadRequest(400, "env must map names to strings")
        if not isinstance(tty, bool):
            raise BadRequest(400, "tty must be true or false")
        self.argv = argv
        self.env = {**_DEFAULTS, **image_environment(), **session_environment()}
        if tty:
            self.env["TERM"] = "xterm-256color"
        self.env.update(env)
        home = self.env["HOME"]
        self.cwd = body.get("cwd") or (home if os.access(home, os.X_OK) else "/")
        if not _text(self.cwd):
            raise BadRequest(400, "cwd must be a string")
        size = (_count(body, "rows", 24), _count(body, "cols", 80))
        self.size = size if tty else None


def image_environment(path=IMAGE_ENVIRONMENT):
    """The variables that the image sets for every session: lines NAME=value. Without the file none; what is malformed is left out."""
    try:
        with open(path) as file:
            lines = file.read(64 * 1024).split("\n")
    except (OSError, ValueError):
        return {}
    pairs = [line.partition("=") for line in lines if "\0" not in line]
    return {name: value for name, equals, value in pairs if name and equals}


def _count(body, key, default):
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10000:
        raise BadRequest(400, "%s must be 1 to 10000" % key)
    return value


def serve(request):
    """Answer 101, then run the command; returns when it is over or the host is gone."""
    if request.headers.get("upgrade", "").lower() != "banger-exec":
        raise BadRequest(400, "exec needs Upgrade: banger-exec")
    wish = Wish(request.json())
    request.answer(101, {"Upgrade": "banger-exec", "Connection": "Upgrade"})
    try:
        started = process.spawn(wish.argv, wish.env, wish.cwd, wish.size)
    except (
        OSError,
        ValueError,
        MemoryError,
    ) as error:  # ValueError: text that the guest's file system cannot say
        name = getattr(error, "filename", None) or wish.argv[0]
        why = getattr(error, "strerror", None) or str(error)
        _send(request.stream, FAILED, ("%s: %s" % (name, why)).encode("utf-8", "replace"))
        return
    command = Command(started, request.stream, wish.size is not None)
    try:
        threads.start(command.obey, request)
        status = command.carry()
        _send(request.stream, EXIT, bytes([status]))
    except Closed:
        pass  # nobody listens any more
    finally:
        command.end()


def _send(stream, kind, payload=b""):
    stream.sendall(_FRAME.pack(kind, len(payload)) + payload)


class Command:
    """A process and the stream that it talks to: `carry` sends what it says, `obey` (in another thread) does what the host says."""

    def __init__(self, started, stream, has_terminal):
        self._process = started
        self._stream = stream
        self._has_terminal = has_terminal
        self._over = threads.Flag()
        self._input = (
            threads.Condition()
        )  # guards stdin, the queue and what is done to the descriptors
        self._queue = deque()
        self._queued = 0
        self._eof = False
        self._feeding = False

    # What the process says

    def carry(self):
        """Send output until all of it has come; the status for EXIT. What background children still write is sent for a while."""
        kinds = dict(zip(self._process.outputs, (STDOUT, STDERR)))  # noqa: B905  two, or one
        poll = select.poll()
        for descriptor in (self._process.pidfd, *kinds):
            poll.register(descriptor, select.POLLIN)
        owed = dict.fromkeys(kinds, 0)  # what was written before the end, and is not sent yet
        ended_at = None
        quiet_at = 0.0
        while kinds or ended_at is None:
            events = poll.poll(None if ended_at is None else 100)
            now = time.monotonic()
            for descriptor, _ in events:
                if descriptor == self._process.pidfd:
                    ended_at = quiet_at = now
                    poll.unregister(descriptor)
                    owed = {output: process.pending(output) for output in kinds}
                    continue
                data = _read(descriptor)
                if data is None:
                    continue
                if data:
                    quiet_at = now
                    owed[descriptor] -= len(data)
                    _send(self._stream, kinds[descriptor], data)
                else:
                    poll.unregister(descriptor)
                    del kinds[descriptor], owed[descriptor]
            if ended_at is not None and max(owed.values(), default=0) <= 0:
                now = time.monotonic()
                if now - quiet_at > _QUIET_S or now - ended_at > _STRAGGLERS_S:
                    break
        code = self._process.wait()
        return 128 - code if code < 0 else code

    # What the host says

    def obey(self, request):
        """Carry out frames; when the host is gone, so is the command's reason to run."""
        try:
            while True:
                kind, length = _FRAME.unpack(request.exactly(_FRAME.size))
                if length > MAX_PAYLOAD:
                    raise Gone
                self._do(kind, request.exactly(length))
        except Gone:
            self._hang_up()

    def _do(self, kind, payload):
        if kind == STDIN:
            self._write(payload)
        elif kind == STDIN_EOF:
            self._write(b"", eof=True)
        elif kind == RESIZE and len(payload) == 4 and self._has_terminal:
            with self._input:
                if not self._over:
                    process.resize(self._process.stdin, *struct.unpack(">HH", payload))
        elif kind == SIGNAL and len(payload) == 1:
            self._process.signal(payload[0])

    def _hang_up(self):
        self._process.signal(_SIGHUP)
        if not self._over.wait(_GRACE_S):
            self._process.signal(_SIGKILL)

    def _write(self, data, eof=False):
        """Queue ``data``; waits while too much is queued, unless the host is gone."""
        with self._input:
            while self._queued > MAX_QUEUED and not self._over and not self._stream.closed:
                self._input.wait(0.2)
            if self._over or self._eof:
                return
            if eof and self._has_terminal:
                data = b"\x04"
            if data:
                self._queue.append(data)
                self._queued += len(data)
            self._eof = eof and not self._has_terminal
            self._flush()
            if self._queue and not self._feeding:
                self._feeding = True
                threads.start(self._feed)

    def _flush(self):
        """Write as much of the queue as goes; close stdin at its end. The caller holds the lock."""
        stdin = self._process.stdin
        try:
            while self._queue:
                chunk = self._queue.popleft()
                done = os.write(stdin, chunk)
                self._queued -= done
                if done < len(chunk):
                    self._queue.appendleft(chunk[done:])
        except BlockingIOError:
            self._queue.appendleft(chunk)
        except OSError:  # it has closed its stdin: as with a broken pipe, the rest is of no use
            self._queue.clear()
            self._queued = 0
        if self._eof and not self._queue:
            os.close(stdin)
            self._process.stdin = -1
        self._input.notify_all()

    def _feed(self):
        """Write the queue as the command reads it, until it is empty."""
        poll = select.poll()
        poll.register(self._process.stdin, select.POLLOUT)
        while True:
            poll.poll(200)
            with self._input:
                if self._over:
                    return
                self._flush()
                if not self._queue:
                    self._feeding = False
                    return

    def end(self):
        """End the process if it still runs, and let go of everything."""
        if not self._process.ended(0):
            self._process.signal(_SIGHUP)
            if not self._process.ended(_GRACE_S):
                self._process.signal(_SIGKILL)
        self._process.wait()
        with self._input:
            self._over.set()
            self._process.close()
            self._input.notify_all()


def _read(descriptor):
    """Some bytes; b"" at the end, None if there is nothing yet."""
    try:
        return os.read(descriptor, MAX_PAYLOAD)
    except BlockingIOError:
        return None
    except OSError:  # a terminal whose last user has gone gives EIO
        return b""
