"""Can a server be reached? Asked before anything is downloaded: tensorflow-datasets would retry for minutes."""

import socket
import threading
import urllib.parse
import urllib.request

SECONDS = 5.0


def reachable(url: str, seconds: float = SECONDS) -> bool:
    """Whether the host of `url` (or the proxy that requests to it go through) accepts a connection.

    Args:
        url: The address of what shall be downloaded.
        seconds: When to give up. Resolving a name can hang for longer, so it happens in a thread that is left behind.

    Returns:
        True if a connection was made in time.
    """
    scheme = urllib.parse.urlsplit(url).scheme
    bypassed = urllib.request.proxy_bypass(urllib.parse.urlsplit(url).hostname or "")
    server = urllib.parse.urlsplit(url if bypassed else urllib.request.getproxies().get(scheme, url))
    connected = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((server.hostname, server.port or _port(server.scheme)), timeout=seconds).close()
        except OSError:
            return
        connected.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return connected.is_set()


def _port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
