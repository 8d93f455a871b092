"""A server whose answers come to no end: a byte now and then, in a head or in the length of a chunk."""

from __future__ import annotations

import contextlib
import threading
from socketserver import StreamRequestHandler, ThreadingTCPServer

HEAD = b"HTTP/1.1 200 OK\r\nX: "
CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;"


class Dripping(ThreadingTCPServer):
    """Begins each answer with these bytes, and drips; a context manager."""

    daemon_threads, block_on_close = True, False

    def __init__(self, beginning: bytes = HEAD) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.beginning, self.ended = beginning, threading.Event()
        self.base_url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def server_close(self) -> None:
        self.ended.set()
        self.shutdown()
        super().server_close()


class _Handler(StreamRequestHandler):
    server: Dripping

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.write(self.server.beginning)
            while not self.server.ended.wait(0.05):
                self.wfile.write(b"a")
