"""`requests` over a Unix socket, for schemathesis."""

import socket

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

BASE = "http://banger"


class _Connection(HTTPConnection):
    def __init__(self, path, timeout_s):
        super().__init__("banger", timeout=timeout_s)
        self._path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Pool(HTTPConnectionPool):
    def __init__(self, path, timeout_s):
        super().__init__("banger")
        self._path, self._timeout_s = path, timeout_s

    def _new_conn(self):
        return _Connection(self._path, self._timeout_s)


class _Adapter(HTTPAdapter):
    def __init__(self, path, timeout_s):
        super().__init__()
        self._pool = _Pool(path, timeout_s)

    def get_connection_with_tls_context(self, request, verify, proxies=None, cert=None):
        return self._pool

    def close(self):
        super().close()
        self._pool.close()


def unix_session(path, timeout_s=30):
    """A session whose requests to `BASE` go to the socket ``path``."""
    session = requests.Session()
    session.trust_env = False
    session.mount(BASE, _Adapter(path, timeout_s))
    return session
