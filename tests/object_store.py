"""An S3 server on loopback (moto) behind a TCP proxy that can be closed, which is an outage to its clients."""

from __future__ import annotations

import contextlib
import selectors
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


class ObjectStore:
    """moto's server with one bucket, `sweeps`.

    Attributes:
        proxy: What lies between the server and its clients.
        environment: The variables that a client needs to reach the server through the proxy.
    """

    def __init__(self) -> None:
        port = free_port()
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert self._server.poll() is None and time.monotonic() < deadline, "moto's server does not start"
            time.sleep(0.1)
        self.proxy = TcpProxy(port)
        self.environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.proxy.port}"}
        self._create("sweeps")

    def _create(self, bucket: str) -> None:
        from pyarrow.fs import S3FileSystem

        keys = {"access_key": "test", "secret_key": "test", "region": "us-east-1", "scheme": "http"}
        S3FileSystem(
            endpoint_override=f"127.0.0.1:{self.proxy.port}", allow_bucket_creation=True, **keys
        ).create_dir(bucket)

    def close(self) -> None:
        self.proxy.close()
        self._server.kill()
        self._server.wait()


class TcpProxy:
    """A TCP proxy to `port` on loopback. Closed, it drops its connections and refuses new ones."""

    def __init__(self, port: int) -> None:
        self._target, self.port = port, free_port()
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.open()

    def open(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for one in list(self._connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self._target)) as server:
            self._connections |= {client, server}
            try:
                with selectors.DefaultSelector() as waiting:
                    waiting.register(client, selectors.EVENT_READ, server)
                    waiting.register(server, selectors.EVENT_READ, client)
                    while True:
                        for key, _ in waiting.select():
                            assert isinstance(key.fileobj, socket.socket)
                            content = key.fileobj.recv(1 << 16)
                            if not content:
                                return
                            key.data.sendall(content)
            finally:
                self._connections -= {client, server}
