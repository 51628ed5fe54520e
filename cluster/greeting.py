"""What listens at an address: Ray itself, which speaks gRPC, or a web server such as its dashboard."""

from __future__ import annotations

import socket

TIMEOUT = 5.0
"""Seconds for an answer."""
HTTP2_SETTINGS = b"\x04"
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + HTTP2_SETTINGS + b"\0\0\0\0\0"
"""What opens a gRPC connection: the preface and an empty settings frame, which a Ray answers with its own."""


def speaks_grpc(address: str) -> bool:
    """Whether Ray listens at "host:port"."""
    try:
        return greet(address)[3:] == HTTP2_SETTINGS
    except (OSError, ValueError):
        return False


def speaks_http(address: str) -> bool:
    """Whether a web server listens at "host:port"."""
    try:
        return greet(address).startswith(b"HTTP")
    except (OSError, ValueError):
        return False


def greet(address: str, timeout: float | None = None) -> bytes:
    """The first four bytes with which "host:port" answers what opens a gRPC connection, within :data:`TIMEOUT`.

    Raises:
        OSError: nothing listens there, or says nothing.
        ValueError: this is no address.
    """
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout or TIMEOUT) as connection:
        connection.sendall(HTTP2_HELLO)
        return connection.recv(4)
