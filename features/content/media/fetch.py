"""From a source to bytes: given, in a file, or behind a URL that a stranger may have written.

A URL is fetched only from hosts that are named beforehand. Its name is looked up once, every address has to be
public, and the connection goes to these very addresses: a name that points elsewhere a moment later gains nothing
(server-side request forgery by DNS rebinding). The TLS handshake and the Host header keep the name.
"""

import ipaddress
import re
import socket
import ssl
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import httpcore2
import httpx2

from features.content.parts import Limits, Source
from features.errors import ContentError

REDIRECTS = 3
"""Redirects followed, each checked like the first URL."""

PORTS = {"http": 80, "https": 443}

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
# RFC 4291; old prefixes elsewhere, which lead inside, count as global too
_UNICAST = ipaddress.IPv6Network("2000::/3")
# protocol assignments (Teredo among them), 6to4 and documentation: what is_global says of these depends on the
# patch release of Python, and no host that answers strangers has such an address
_NEVER = [ipaddress.ip_network(n) for n in ("192.0.0.0/24", "2001::/23", "2002::/16", "3fff::/20")]
_MOVED = {301, 302, 303, 307, 308}
_HEADERS: dict[bytes | str, bytes | str] = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "recsys",
}


def resolve(host: str, port: int) -> list[str]:
    """Addresses of a name, the preferred first. Raises OSError. Takes as long as the system's resolver takes."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def is_public(address: str) -> bool:
    """Whether an address belongs to the whole internet, and so does an IPv4 address that it carries inside."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None or ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip not in _UNICAST:
            return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _NEVER)


@dataclass(frozen=True)
class Network:
    """How names are looked up, which addresses may be reached, and whose certificates count (None: the system's)."""

    resolve: Callable[[str, int], Sequence[str]] = resolve
    public: Callable[[str], bool] = is_public
    tls: ssl.SSLContext | None = None


INTERNET = Network()


def place(source: Source) -> str:
    """A source in a message: never its bytes, and of a URL neither credentials nor the query, which may be secret."""
    if isinstance(source, bytes):
        return f"{len(source):,} bytes"
    if isinstance(source, Path):
        return str(source)
    return repr(re.sub(r"//[^/]*@", "//", re.split(r"[?#]", source, maxsplit=1)[0])[:200])


def read(source: Source, limits: Limits, network: Network = INTERNET) -> bytes:
    """The bytes of a source, at most `limits.media_bytes`.

    Raises ContentError naming the source: too large, no such file, a host that is not in `limits.hosts` or not
    public, an answer other than 200, more than `limits.fetch_seconds`.
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
        raise ContentError(f"{place(source)}: cannot be fetched: {str(error)[:200]}") from error


def _read_file(path: Path, limits: Limits) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ContentError(f"{path}: not a regular file")
        if found.st_size > limits.media_bytes:
            _too_large(path, found.st_size, limits)
        with path.open("rb") as file:
            data = file.read(limits.media_bytes + 1)
    except (OSError, ValueError) as error:
        raise ContentError(f"{path}: cannot be read: {error}") from error
    if len(data) > limits.media_bytes:  # it has grown since
        _too_large(path, len(data), limits)
    return data


def _too_large(source: Source, size: int, limits: Limits) -> NoReturn:
    raise ContentError(f"{place(source)}: {size:,} bytes, {limits.media_bytes:,} are accepted (limits.media_bytes)")


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
                pool.stream("GET", _target(url), headers=_HEADERS | {"Host": url.netloc.decode()}) as answer,
            ):
                headers = {k.lower(): v.decode("latin-1") for k, v in answer.headers}
                if answer.status not in _MOVED or b"location" not in headers:
                    return _body(source, answer, headers, limits)
                url = url.join(headers[b"location"])
    except (httpx2.InvalidURL, ValueError) as error:
        raise ContentError(f"{place(source)}: not a URL: {error}") from error
    raise ContentError(f"{place(source)}: more than {REDIRECTS} redirects")


def _target(url: httpx2.URL) -> httpcore2.URL:
    # from the parts that were checked: a second parser might read the text in another way
    return httpcore2.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _allowed(url: httpx2.URL, limits: Limits, network: Network) -> Sequence[str]:
    """Addresses of a URL that may be fetched."""
    told = place(str(url))
    if not limits.hosts:
        raise ContentError(f"{told}: URLs are not fetched here: name the host in limits.hosts")
    if url.scheme not in PORTS:
        raise ContentError(f"{told}: only http and https are fetched, this is {url.scheme[:20]!r}")
    if url.userinfo:
        raise ContentError(f"{told}: a URL with credentials is not fetched")
    host = url.raw_host.decode("ascii").lower()
    port = url.port or PORTS[url.scheme]
    named = f"[{host}]" if ":" in host else host
    listed = {entry.lower() for entry in limits.hosts}
    if f"{named}:{port}" not in listed and (named not in listed or port != PORTS[url.scheme]):
        raise ContentError(f"{told}: {named}:{port} is not in limits.hosts, which names {', '.join(limits.hosts)}")
    try:
        addresses = network.resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise ContentError(f"{told}: {named} has no address: {error}") from error
    for address in addresses:
        if not network.public(address):
            raise ContentError(f"{told}: {named} is at {address}, which is not a public address")
    return addresses


def _body(source: str, answer: httpcore2.Response, headers: dict[bytes, str], limits: Limits) -> bytes:
    if answer.status != 200:
        raise ContentError(f"{place(source)}: answered {answer.status} instead of 200")
    if (coding := headers.get(b"content-encoding", "identity").strip().lower()) != "identity":
        raise ContentError(f"{place(source)}: sent as {coding[:40]!r} although only identity was asked for")
    declared = headers.get(b"content-length", "")
    if declared.isdecimal() and int(declared[:18]) > limits.media_bytes:
        _too_large(source, int(declared), limits)
    data = bytearray()
    for chunk in answer.iter_stream():
        data += chunk
        if len(data) > limits.media_bytes:
            raise ContentError(
                f"{place(source)}: more than {limits.media_bytes:,} bytes, which are accepted (limits.media_bytes)"
            )
    return bytes(data)


class _Pinned(httpcore2.SyncBackend):
    """Connects to addresses that were checked, whatever the name means by now; no wait goes past the deadline."""

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
        failed: Exception = httpcore2.ConnectError(f"{host} has no address")
        for done, address in enumerate(self._addresses):
            share = _left(self._deadline) / (len(self._addresses) - done)
            try:
                stream = super().connect_tcp(address, port, share, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failed = error
            else:
                return _Timed(stream, self._deadline)
        raise failed


class _Timed(httpcore2.NetworkStream):
    """A stream whose every wait ends at one deadline: a server that drips bytes starts no new patience."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline)), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    """Seconds until the deadline. Raises TimeoutError when there are none."""
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left
