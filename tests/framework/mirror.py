"""A mirror on this machine's loopback: serves a directory, and may break off at a request or forget a file."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


class Mirror:
    """``asked`` are the paths in order; from the request numbered ``ends_after`` on, connections are closed without an answer."""

    def __init__(self, directory):
        self.asked = []
        self.ends_after = None
        mirror = self

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_GET(self):
                mirror.asked.append(self.path)
                if mirror.ends_after is not None and len(mirror.asked) > mirror.ends_after:
                    self.close_connection = True
                    return
                super().do_GET()

        self._http = ThreadingHTTPServer(
            ("127.0.0.1", 0), partial(Handler, directory=str(directory))
        )
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
            self._http.server_close()
