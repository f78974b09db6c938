"""What a stream to port 1024 is answered with; a stream to any other port is a TCP connection inside the guest."""

import os
import socket
import threading
from _operator import _compare_digest  # what hmac.compare_digest is, without hashlib

from banger_agent import facts
from banger_agent.http import BadRequest, Gone, Request, head, send_json
from banger_agent.mux import OPENED, Closed

AGENT_PORT = 1024
TOKEN = "/etc/banger/agent-token"


class Agent:
    """Serves streams. ``token_path`` and ``services_path`` can be moved for tests."""

    def __init__(self, token_path=TOKEN, services_path=facts.SERVICES):
        self._token_path = token_path
        self._services_path = services_path

    def serve(self, stream, port):
        """Serve one stream to its end, whatever comes; runs in a thread of its own."""
        why = ""
        try:
            if port == AGENT_PORT:
                stream._mux.send(stream.number, OPENED)
                self.answer(stream)
            else:
                _proxy(stream, port)
        except (Closed, Gone):
            pass  # the host has gone: nobody is left to be told
        except OSError as error:
            why = error.strerror or str(error)
        finally:
            stream.close(why)

    def answer(self, stream):
        """One HTTP request."""
        try:
            request = Request(stream)
            self._authorise(request)
            self._route(request)
        except BadRequest as error:
            send_json(stream, error.status, error.error)
        except (Closed, Gone):
            raise
        except Exception as error:
            what = "internal error: %s" % type(error).__name__
            send_json(
                stream,
                500,
                {"code": "failure", "what": what, "detail": str(error)[:1000], "hint": ""},
            )

    def _authorise(self, request):
        try:
            with open(self._token_path) as file:
                token = file.read().strip()
        except FileNotFoundError:
            return
        given = request.headers.get("authorization", "")
        if not _compare_digest(given.encode("latin-1"), ("Bearer " + token).encode()):
            raise BadRequest(401, "the agent's token is missing or wrong")

    def _route(self, request):
        method, path = request.method, request.path
        handler = {
            ("GET", "/healthz"): self._healthz,
            ("GET", "/stats"): lambda r: send_json(r.stream, 200, facts.stats()),
            ("GET", "/ports"): lambda r: send_json(r.stream, 200, facts.ports()),
            ("POST", "/exec"): _exec,
            ("GET", "/files"): _get_files,
            ("PUT", "/files"): _put_files,
            ("POST", "/shutdown"): _shutdown,
            ("POST", "/clock"): _clock,
            ("POST", "/identity"): _identity,
        }.get((method, path))
        if handler is None:
            known = path in (
                "/healthz",
                "/stats",
                "/ports",
                "/exec",
                "/files",
                "/shutdown",
                "/clock",
                "/identity",
            )
            raise BadRequest(405 if known else 404, "there is no %s %s" % (method[:16], path[:200]))
        handler(request)

    def _healthz(self, request):
        wait = request.query.get("wait_ms", "0")
        if not wait.isdigit() or int(wait) > 3600000:
            raise BadRequest(400, "wait_ms must be 0 to 3600000")
        send_json(request.stream, 200, facts.health(int(wait), self._services_path))


def _exec(request):
    from banger_agent import execs

    execs.serve(request)


def _get_files(request):
    from banger_agent import files

    files.get(request)


def _put_files(request):
    from banger_agent import files

    files.put(request)
    request.stream.sendall(head(204, {"Connection": "close"}))


def _shutdown(request):
    import subprocess

    reboot = request.json().get("reboot") is True
    verb = "reboot" if reboot else "poweroff"
    systemd = os.path.isdir("/run/systemd/system")
    argv = ["systemctl", "--no-block", verb] if systemd else ["runit-init", "6" if reboot else "0"]
    subprocess.run(argv, check=True, timeout=10, stdin=subprocess.DEVNULL)
    request.stream.sendall(head(204, {"Connection": "close"}))


def _clock(request):
    import time

    epoch_ms = request.json().get("epoch_ms")
    if not isinstance(epoch_ms, int) or not 0 < epoch_ms < 1 << 43:
        raise BadRequest(400, "epoch_ms must be milliseconds since 1970")
    time.clock_settime(time.CLOCK_REALTIME, epoch_ms / 1000)
    request.stream.sendall(head(204, {"Connection": "close"}))


def _identity(_request):
    raise BadRequest(501, "a new identity can only be given at boot yet")


def _proxy(stream, port):
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    except OSError:
        connection = socket.create_connection(("::1", port), timeout=10)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream._mux.send(stream.number, OPENED)

    def inward():
        try:
            while True:
                data = stream.recv()
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

    thread = threading.Thread(target=inward, daemon=True)
    thread.start()
    try:
        while True:
            data = connection.recv(65536)
            if not data:
                return
            stream.sendall(data)
    finally:
        connection.close()
