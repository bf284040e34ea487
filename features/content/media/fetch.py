"""Reads the bytes of a source: bytes, a file, or an untrusted URL.

A URL is fetched only from configured hosts. Its host name is resolved once, every address must be public, and the
connection is made to these addresses. A name that is resolved to another address later has no effect (server-side
request forgery by DNS rebinding). The TLS handshake and the Host header use the host name.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpcore2
import httpx2

from features.content.parts import Limits, Source
from features.errors import ContentError, describe_connection_error, describe_os_error, describe_url
from features.files import not_a_file

REDIRECTS = 3
"""Maximum number of redirects; each target is checked like the first URL."""

PORTS = {"http": 80, "https": 443}

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# RFC 4291; is_global also accepts obsolete prefixes outside of this block, which may be routed internally
_UNICAST = ipaddress.IPv6Network("2000::/3")
# protocol assignments (including Teredo), 6to4 and documentation: the result of is_global for these depends on the
# patch release of Python, and no public server has such an address
_NEVER_PUBLIC = [ipaddress.ip_network(n) for n in ("192.0.0.0/24", "2001::/23", "2002::/16", "3fff::/20")]
_REDIRECT_STATUSES = {301, 302, 303, 307, 308}
_HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "recsys",
}


def resolve(host: str, port: int) -> list[str]:
    """Addresses of a host name, the preferred one first. Raises OSError. Has no timeout of its own."""
    results = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in results))


def is_public(address: str) -> bool:
    """Whether an address is public; for an IPv6 address with an embedded IPv4 address, whether that one is public."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None or ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NEVER_PUBLIC)


@dataclass(frozen=True)
class Network:
    """The resolver, the test for accepted addresses, and the trusted certificates (None: those of the system)."""

    resolve: Callable[[str, int], Sequence[str]] = resolve
    public: Callable[[str], bool] = is_public
    tls: ssl.SSLContext | None = None


INTERNET = Network()


def place(source: Source) -> str:
    """A source as text for messages: without its bytes, and without the credentials and query of a URL."""
    if isinstance(source, bytes):
        return f"{len(source):,} bytes"
    if isinstance(source, Path):
        return str(source)
    return repr(describe_url(source)[:200])


def read(source: Source, limits: Limits, network: Network = INTERNET) -> bytes:
    """The bytes of a source, at most `limits.media_bytes`.

    Raises ContentError with the source when it is too large, when the file does not exist, when the host is not in
    `limits.hosts` or not public, when the status is not 200, or when it takes more than `limits.fetch_seconds`.
    """
    if isinstance(source, bytes):
        if len(source) > limits.media_bytes:
            _too_large(source, len(source), limits)
        return source
    if isinstance(source, Path):
        return _read_file(source, limits)
    try:
        return _fetch(source, limits, network)
    except (httpcore2.TimeoutException, TimeoutError) as error:
        raise ContentError(f"{place(source)}: not fetched within {limits.fetch_seconds:g} s") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise ContentError(f"{place(source)}: cannot be fetched: {describe_connection_error(error)}") from error


def _read_file(path: Path, limits: Limits) -> bytes:
    if wrong := not_a_file(path):
        raise ContentError(f"{path}: {wrong}")
    try:
        status = path.stat()
        if status.st_size > limits.media_bytes:
            _too_large(path, status.st_size, limits)
        with path.open("rb") as file:
            data = file.read(limits.media_bytes + 1)
    except OSError as error:
        raise ContentError(f"{path}: cannot be read: {describe_os_error(error)}") from error
    if len(data) > limits.media_bytes:  # the file has grown since
        _too_large(path, len(data), limits)
    return data


def _too_large(source: Source, size: int, limits: Limits) -> NoReturn:
    raise ContentError(
        f"{place(source)}: {size:,} bytes, at most {limits.media_bytes:,} are accepted (limits.media_bytes)"
    )


def _fetch(source: str, limits: Limits, network: Network) -> bytes:
    deadline = time.monotonic() + limits.fetch_seconds
    try:
        url = httpx2.URL(source)
        for _ in range(REDIRECTS + 1):
            addresses = _allowed(url, limits, network)
            with (
                httpcore2.ConnectionPool(
                    ssl_context=network.tls, network_backend=_Pinned(addresses, deadline)
                ) as pool,
                pool.stream("GET", _target(url), headers=_HEADERS | {"Host": url.netloc.decode()}) as response,
            ):
                headers = {k.lower(): v.decode("latin-1") for k, v in response.headers}
                if response.status not in _REDIRECT_STATUSES or b"location" not in headers:
                    return _body(source, response, headers, limits)
                url = url.join(headers[b"location"])
    except (httpx2.InvalidURL, ValueError):  # its text quotes parts of the URL
        raise ContentError(f"{place(source)}: not a URL; correct it") from None
    raise ContentError(f"{place(source)}: more than {REDIRECTS} redirects")


def _target(url: httpx2.URL) -> httpcore2.URL:
    # from the parts that were checked: a second parser may interpret the text differently
    return httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _allowed(url: httpx2.URL, limits: Limits, network: Network) -> Sequence[str]:
    """Addresses of a URL. Raises ContentError when it may not be fetched."""
    location = place(str(url))
    if not limits.hosts:
        raise ContentError(f"{location}: URLs are not fetched here, since limits.hosts is empty; add the host to it")
    if url.scheme not in PORTS:
        raise ContentError(f"{location}: only http and https are fetched, this is {url.scheme[:20]!r}")
    if url.userinfo:
        raise ContentError(f"{location}: a URL with credentials is not fetched")
    host = url.raw_host.decode("ascii").lower()
    port = url.port or PORTS[url.scheme]
    host_text = f"[{host}]" if ":" in host else host
    listed = {entry.lower() for entry in limits.hosts}
    if f"{host_text}:{port}" not in listed and (host_text not in listed or port != PORTS[url.scheme]):
        raise ContentError(f"{location}: {host_text}:{port} is not in limits.hosts ({', '.join(limits.hosts)})")
    try:
        addresses = network.resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise ContentError(f"{location}: {host_text} has no address; correct the URL") from error
    for address in addresses:
        if not network.public(address):
            raise ContentError(f"{location}: {host_text} is at {address}, which is not a public address")
    return addresses


def _body(source: str, response: httpcore2.Response, headers: dict[bytes, str], limits: Limits) -> bytes:
    if response.status != 200:
        raise ContentError(f"{place(source)}: status {response.status} instead of 200")
    if (coding := headers.get(b"content-encoding", "identity").strip().lower()) != "identity":
        raise ContentError(
            f"{place(source)}: has content encoding {coding[:40]!r}, although only identity was requested"
        )
    declared = headers.get(b"content-length", "")
    if declared.isdecimal() and int(declared[:18]) > limits.media_bytes:
        _too_large(source, int(declared), limits)
    data = bytearray()
    for chunk in response.iter_stream():
        data += chunk
        if len(data) > limits.media_bytes:
            raise ContentError(
                f"{place(source)}: more than the {limits.media_bytes:,} bytes that are accepted (limits.media_bytes)"
            )
    return bytes(data)


class _Pinned(httpcore2.SyncBackend):
    """Connects only to the addresses that were checked; no operation continues past the deadline."""

    def __init__(self, addresses: Sequence[str], deadline: float) -> None:
        self._addresses = addresses
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        last_error: Exception = httpcore2.ConnectError(f"{host} has no address")
        for tried, address in enumerate(self._addresses):
            share = _remaining(self._deadline) / (len(self._addresses) - tried)
            try:
                stream = super().connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last_error = error
            else:
                return _Timed(stream, self._deadline)
        raise last_error


class _Timed(httpcore2.NetworkStream):
    """A stream whose operations share one deadline, so that a server cannot extend it by sending single bytes."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _remaining(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _remaining(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Timed(
            self._stream.start_tls(ssl_context, server_hostname, _remaining(self._deadline)), self._deadline
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _remaining(deadline: float) -> float:
    """Seconds until the deadline. Raises TimeoutError when it has passed."""
    if (seconds := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return seconds
