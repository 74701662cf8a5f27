"""A network between a program and an S3 server on this machine, with a network's faults."""

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

from support.faults import empty

LATE = 0.3  # seconds by which an answer is late
FAULTS = ("lost", "unanswered", "late", "refused", "hangs", "forgotten")


class Network:
    """An HTTP proxy; `with Network(server, fault) as network`, and `network.url` leads to the
    server through it.

    fault: the number of a request, counted from 1, and its method → what becomes of it; None: it is
    answered.

        lost: it does not arrive, the connection is closed.
        unanswered: it arrives, the connection is closed without an answer.
        late: the answer comes, late.
        refused: the answer is 503.
        hangs: it does not arrive, and the connection stays open.
        forgotten: before it arrives, the server has lost all it held, as one that keeps it in
        memory when it restarts.

    requests: how many there were.
    """

    def __init__(self, server: str, fault: Callable[[int, str], str | None]) -> None:
        self.requests = 0
        self._server, self._fault, self._counting, self._over = (
            server,
            fault,
            threading.Lock(),
            threading.Event(),
        )
        network = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                network._pass_on(self)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any

            def log_message(self, *_words: object) -> None:
                pass

        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._proxy.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._proxy.server_port}"

    def __enter__(self) -> "Network":
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _problem: object, _trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._proxy.shutdown()
        self._proxy.server_close()

    def _pass_on(self, client: BaseHTTPRequestHandler) -> None:
        with self._counting:
            self.requests += 1
            fault = self._fault(self.requests, client.command)
        body = client.rfile.read(int(client.headers.get("Content-Length", 0)))
        if fault == "hangs":
            self._over.wait()
        if fault in ("hangs", "lost"):
            client.close_connection = True
            return
        if fault == "refused":
            client.send_response(503)
            client.send_header("Content-Length", "0")
            client.end_headers()
            return
        if fault == "forgotten":
            empty(self._server)
        server = http.client.HTTPConnection(urlsplit(self._server).netloc)
        server.request(client.command, client.path, body, dict(client.headers))
        answer = server.getresponse()
        data = answer.read()
        server.close()
        if fault == "unanswered":
            client.close_connection = True
            return
        if fault == "late":
            self._over.wait(LATE)
        client.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                client.send_header(name, value)
        client.end_headers()
        client.wfile.write(data)
