"""What a stream to port 1024 is answered with; a stream to any other port is a TCP connection inside the guest."""

import os
from _operator import _compare_digest  # what hmac.compare_digest is, without hashlib

from banger_agent import VERSION, facts
from banger_agent.http import BadRequest, Gone, Request, refuse
from banger_agent.mux import Closed

AGENT_PORT = 1024
TOKEN = "/etc/banger/agent-token"
OWN_INIT = "/run/banger/init"  # made by the init that banger puts into a root without one
MAX_WAIT_MS = 3600 * 1000


class Agent:
    """Serves streams: ``services`` is a `health.Services`, ``bulk`` a `bulk.Ports`; ``token_path`` can be moved for tests."""

    def __init__(self, services, bulk, token_path=TOKEN):
        self._services = services
        self._bulk = bulk
        self._token_path = token_path
        self._routes = {
            ("GET", "/healthz"): self._healthz,
            ("GET", "/stats"): lambda request: request.answer_json(200, facts.stats()),
            ("GET", "/ports"): lambda request: request.answer_json(200, facts.ports()),
            ("POST", "/exec"): _exec,
            ("GET", "/files"): self._get_files,
            ("PUT", "/files"): self._put_files,
            ("GET", "/tcp"): _tcp,
            ("POST", "/shutdown"): _shutdown,
            ("POST", "/clock"): _clock,
            ("POST", "/identity"): _identity,
        }

    def serve(self, stream, port=AGENT_PORT):
        """Serve one stream to its end, whatever comes; runs in a thread of its own."""
        why = ""
        try:
            if port == AGENT_PORT:
                stream.accept()
                self._answer(stream)
            else:
                proxy(stream, connect(port), stream.accept)
        except (Closed, Gone):
            pass  # the host has gone: nobody is left to be told
        except Exception as error:
            why = _words(error)
        finally:
            stream.close(why)

    def _answer(self, stream):
        """One HTTP request. An error after the answer has begun is told at its end, or raised, which cuts it short."""
        request = None
        try:
            request = Request(stream)
            self._authorise(request)
            self._route(request)
        except (Closed, Gone):
            raise
        except Exception as error:
            if request is not None and request.body is not None:
                request.body.fail(_words(error))
                return
            if request is not None and request.answered:
                raise
            if not isinstance(error, BadRequest):
                what = "internal error: %s" % type(error).__name__
                error = BadRequest(500, what, _words(error))
            refuse(stream, error)

    def _authorise(self, request):
        try:
            with open(self._token_path) as file:
                token = file.read(4096).strip()
        except FileNotFoundError:
            return
        given = request.headers.get("authorization", "")
        if not _compare_digest(given.encode("latin-1"), ("Bearer " + token).encode()):
            raise BadRequest(401, "the agent's token is missing or wrong")

    def _route(self, request):
        handler = self._routes.get((request.method, request.path))
        if handler is None:
            known = any(path == request.path for _, path in self._routes)
            what = "there is no %s %s" % (request.method[:16], request.path[:200])
            raise BadRequest(405 if known else 404, what)
        handler(request)

    def _healthz(self, request):
        wait_ms = _number(request, "wait_ms", "0", MAX_WAIT_MS)
        answer = {
            "status": "ok",
            "version": VERSION,
            "boot_id": facts.boot_id(),
            "services": self._services.state(wait_ms / 1000),
            "uptime_s": facts.uptime_s(),
        }
        request.answer_json(200, answer)

    def _get_files(self, request):
        from banger_agent import files

        files.get(request, self._bulk)

    def _put_files(self, request):
        from banger_agent import files

        files.put(request, self._bulk)


def _words(error):
    return str(getattr(error, "strerror", None) or error)[:1000]


def _number(request, key, default, most):
    text = request.query.get(key, default)
    if not (text.isascii() and text.isdigit() and len(text) < 12 and int(text) <= most):
        raise BadRequest(400, "%s must be a number up to %d" % (key, most))
    return int(text)


def _exec(request):
    from banger_agent import execs

    execs.serve(request)


def _shutdown(request):
    from banger_agent import tools

    reboot = request.json().get("reboot") is True
    if os.path.exists(OWN_INIT):
        os.kill(1, 15 if reboot else 12)  # SIGTERM, SIGUSR2: as busybox's init takes them
        request.answer_empty()
        return
    verb = "reboot" if reboot else "poweroff"
    systemd = os.path.isdir("/run/systemd/system")
    argv = ["systemctl", "--no-block", verb] if systemd else ["runit-init", "6" if reboot else "0"]
    tools.run(*argv)
    request.answer_empty()


def _clock(request):
    import time

    epoch_ms = request.json().get("epoch_ms")
    if not isinstance(epoch_ms, int) or isinstance(epoch_ms, bool) or not 0 < epoch_ms < 1 << 43:
        raise BadRequest(400, "epoch_ms must be milliseconds since 1970")
    time.clock_settime(time.CLOCK_REALTIME, epoch_ms / 1000)
    request.answer_empty()


def _identity(request):
    from banger_agent import identity

    identity.serve(request)


def _tcp(request):
    """As a stream to another port, for transports without port numbers of their own."""
    if request.headers.get("upgrade", "").lower() != "banger-tcp":
        raise BadRequest(400, "tcp needs Upgrade: banger-tcp")
    port = _number(request, "port", "0", 65535)
    try:
        connection = connect(port)
    except OSError as error:
        what = "port %d of the guest cannot be reached" % port
        raise BadRequest(502, what, _words(error)) from None
    headers = {"Upgrade": "banger-tcp", "Connection": "Upgrade"}
    proxy(request, connection, lambda: request.answer(101, headers))


def connect(port):
    """A TCP connection to ``port`` of this guest, over IPv4 or else IPv6."""
    import socket

    try:
        return socket.create_connection(("127.0.0.1", port), timeout=10)
    except OSError:
        return socket.create_connection(("::1", port), timeout=10)


def proxy(source, connection, accept):
    """Carry bytes both ways between ``source`` (a stream, or a request with what follows it) and ``connection`` until one ends."""
    import socket

    from banger_agent import threads

    stream = getattr(source, "stream", source)

    def inward():
        try:
            while True:
                data = source.recv()
                if not data:
                    break
                connection.sendall(data)
        except OSError:
            pass  # the other thread sees the connection's end and closes the stream
        finally:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # not connected any more

    try:
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accept()
        threads.start(inward)
        while True:
            data = connection.recv(65536)
            if not data:
                return
            stream.sendall(data)
    finally:
        connection.close()
