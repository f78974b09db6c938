"""POST /exec: run a command, its streams as frames (type:u8 length:u32be payload; types as in ``banger.api.frames``)."""

import os
import select
import signal
import struct
import threading
import time

from banger_agent.http import BadRequest, Gone, head
from banger_agent.mux import Closed

STDIN, STDOUT, STDERR, STDIN_EOF, RESIZE, SIGNAL, EXIT, FAILED = range(8)
MAX_PAYLOAD = 64 * 1024
_FRAME = struct.Struct(">BI")
_GRACE_S = 2.0
_STRAGGLERS_S = 0.5
_DEFAULTS = {
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}


def _text(value):
    return isinstance(value, str) and "\0" not in value


class Wish:
    """What was asked for, checked."""

    def __init__(self, body):
        argv, env = body.get("argv"), body.get("env") or {}
        if not isinstance(argv, list) or not argv or not all(map(_text, argv)) or not argv[0]:
            raise BadRequest(400, "argv must be a list of strings, the first not empty")
        if not isinstance(env, dict) or not all(
            _text(k) and _text(v) and k and "=" not in k for k, v in env.items()
        ):
            raise BadRequest(400, "env must map names to strings")
        self.argv, self.tty = argv, bool(body.get("tty"))
        self.env = dict(_DEFAULTS)
        if self.tty:
            self.env["TERM"] = "xterm-256color"
        self.env.update(env)
        self.cwd = body.get("cwd") or (self.env["HOME"] if os.path.isdir(self.env["HOME"]) else "/")
        if not _text(self.cwd):
            raise BadRequest(400, "cwd must be a string")
        self.size = (_count(body.get("rows", 24)), _count(body.get("cols", 80)))


def _count(value):
    if not isinstance(value, int) or not 1 <= value <= 10000:
        raise BadRequest(400, "rows and cols must be 1 to 10000")
    return value


def serve(request):
    """Answer 101, then run the command; returns when it is over or the host is gone."""
    if request.headers.get("upgrade", "").lower() != "banger-exec":
        raise BadRequest(400, "exec needs Upgrade: banger-exec")
    wish = Wish(request.json())
    request.stream.sendall(head(101, {"Upgrade": "banger-exec", "Connection": "Upgrade"}))
    send = _sender(request.stream)
    try:
        command = _Terminal(wish) if wish.tty else _Pipes(wish)
    except OSError as error:
        send(
            FAILED,
            ("%s: %s" % (error.filename or wish.argv[0], error.strerror)).encode(
                "utf-8", "replace"
            ),
        )
        return
    try:
        reader = threading.Thread(target=_read_frames, args=(request, command), daemon=True)
        reader.start()
        status = command.pump(send)
        send(EXIT, bytes([status]))
    except Closed:
        pass  # nobody listens any more
    finally:
        command.end()


def _sender(stream):
    def send(kind, payload=b""):
        stream.sendall(_FRAME.pack(kind, len(payload)) + payload)

    return send


def _read_frames(request, command):
    """Carry out what the host sends; when it is gone, so is the command's reason to run."""
    try:
        while True:
            kind, length = _FRAME.unpack(request.exactly(_FRAME.size))
            if length > MAX_PAYLOAD:
                raise Gone
            payload = request.exactly(length)
            if kind == STDIN:
                command.write(payload)
            elif kind == STDIN_EOF:
                command.close_stdin()
            elif kind == RESIZE and length == 4:
                command.resize(*struct.unpack(">HH", payload))
            elif kind == SIGNAL and length == 1:
                command.signal(payload[0])
    except (Gone, OSError):
        command.hang_up()


def _status(code):
    return 128 - code if code < 0 else code


class _Command:
    """What both kinds share: a process group that can be signalled while it is there."""

    pid = 0

    def signal(self, signo):
        try:
            os.killpg(self.pid, signo)
        except (OSError, ValueError):
            pass  # gone already, or no such signal: there is nobody to tell

    def hang_up(self):
        if not self.over.is_set():
            self.signal(signal.SIGHUP)
            if not self.over.wait(_GRACE_S):
                self.signal(signal.SIGKILL)

    def _carry(self, outputs, send):
        """Send what comes from ``outputs`` ({fd: frame type}) until all have ended, or the process has and nothing came for a while."""
        poll = select.poll()
        for descriptor in outputs:
            poll.register(descriptor, select.POLLIN)
        left, quiet_since = set(outputs), None
        while left:
            events = poll.poll(50 if self.ended() else 500)
            if not events and self.ended():
                quiet_since = quiet_since or time.monotonic()
                if time.monotonic() - quiet_since > _STRAGGLERS_S:
                    return  # a background child keeps the pipe open
            for descriptor, _ in events:
                quiet_since = None
                try:
                    data = os.read(descriptor, MAX_PAYLOAD)
                except OSError:  # a terminal whose last user has gone gives EIO
                    data = b""
                if data:
                    send(outputs[descriptor], data)
                else:
                    poll.unregister(descriptor)
                    left.discard(descriptor)


class _Pipes(_Command):
    """A command with pipes."""

    def __init__(self, wish):
        import subprocess

        self.over = threading.Event()
        self._stdin_lock = threading.Lock()
        self._process = subprocess.Popen(
            wish.argv, env=wish.env, cwd=wish.cwd, start_new_session=True, bufsize=0,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self.pid = self._process.pid

    def write(self, data):
        try:
            self._process.stdin.write(data) if len(data) <= 4096 else self._write_all(data)
        except (OSError, ValueError):
            pass  # it has closed its stdin: as with a broken pipe, the rest is of no use

    def _write_all(self, data):
        view = memoryview(data)
        while view:
            view = view[self._process.stdin.write(view) :]

    def close_stdin(self):
        with self._stdin_lock:
            if not self._process.stdin.closed:
                self._process.stdin.close()

    def resize(self, rows, cols):
        pass  # there is no terminal

    def ended(self):
        return self._process.poll() is not None

    def pump(self, send):
        outputs = {self._process.stdout.fileno(): STDOUT, self._process.stderr.fileno(): STDERR}
        self._carry(outputs, send)
        return _status(self._process.wait())

    def end(self):
        if self._process.poll() is None:
            self.hang_up()
        self._process.wait()
        self.over.set()
        self._process.stdout.close()
        self._process.stderr.close()
        try:
            self.close_stdin()
        except OSError:
            pass  # unsent input of a command that did not want it


class _Terminal(_Command):
    """A command with a terminal of its own."""

    def __init__(self, wish):
        self.over = threading.Event()
        self._code = None
        self._lock = threading.Lock()
        if not os.path.isdir(wish.cwd):
            raise FileNotFoundError(2, "No such file or directory", wish.cwd)
        self.pid, self._master = os.forkpty()
        if self.pid == 0:
            try:
                os.chdir(wish.cwd)
                os.execvpe(wish.argv[0], wish.argv, wish.env)  # noqa: S606  argv, no shell
            except OSError as error:
                os.write(
                    2, ("%s: %s\r\n" % (wish.argv[0], error.strerror)).encode("utf-8", "replace")
                )
            finally:
                os._exit(127)
        self.resize(*wish.size)

    def write(self, data):
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._master, view) :]
        except OSError:
            pass  # the terminal is gone

    def close_stdin(self):
        self.write(b"\x04")

    def resize(self, rows, cols):
        import fcntl
        import termios

        with self._lock:
            if self._master >= 0:
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def ended(self):
        if self._code is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code is not None

    def pump(self, send):
        self._carry({self._master: STDOUT}, send)
        while not self.ended():
            time.sleep(0.005)
        return _status(self._code)

    def end(self):
        if not self.ended():
            self.signal(signal.SIGHUP)
            end = time.monotonic() + _GRACE_S
            while not self.ended() and time.monotonic() < end:
                time.sleep(0.01)
            if not self.ended():
                self.signal(signal.SIGKILL)
                self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.over.set()
        with self._lock:
            os.close(self._master)
            self._master = -1
