"""Reading of sources: files, and untrusted URLs that must not reach private addresses, with a real server."""

import datetime
import os
import socket
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from features.content.media import fetch
from features.content.media.fetch import Network, is_public, place, read, resolve
from features.content.parts import Limits
from features.errors import ContentError

ADDRESSES = {"good.example": ["127.0.0.1"], "inner.example": ["10.0.0.7"], "mixed.example": ["127.0.0.1", "10.0.0.7"]}


def public(address):
    """Loopback represents the internet in these tests."""
    return address == "127.0.0.1" or is_public(address)


NETWORK = Network(lambda host, port: ADDRESSES[host], public)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        path, _, value = self.path[1:].partition("?")
        getattr(self, f"say_{path}", lambda value: self.answer(404))(value)

    def answer(self, status=200, body=b"body", **headers):
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def say_ok(self, value):
        self.answer(body=b"picture")

    def say_move(self, value):
        self.answer(302, Location=value)

    def say_loop(self, value):
        self.answer(307, Location="/loop")

    def say_gzip(self, value):
        self.answer(Content_Encoding="gzip")

    def say_length(self, value):
        self.answer(Content_Length=value)

    def say_partial(self, value):
        self.answer(206)

    def say_endless(self, value):
        self.answer(Content_Length=None, Connection="close")
        self.repeat(b"x" * 65_536, 0)

    def say_short(self, value):
        self.answer(body=b"half", Content_Length="8")
        self.close_connection = True

    def say_dripping(self, value):
        self.answer(Content_Length=None, Connection="close")
        self.repeat(b"x", 0.05)

    def say_header(self, value):
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        self.repeat(b"X: y\r\n", 0.05)

    def say_silent(self, value):
        self.repeat(b"", 0.05)

    def repeat(self, piece, pause):
        self.close_connection = True
        while not self.server.stopping.wait(pause):
            try:
                self.wfile.write(piece)
                self.connection.send(b"", socket.MSG_DONTWAIT)
            except OSError:
                return

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, tls=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.stopping = threading.Event()
        self.port = self.server_address[1]
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *_):
        pass

    def __enter__(self):
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


@pytest.fixture(scope="module")
def running():
    with Server() as server:
        yield server


@pytest.fixture
def server(running):
    running.requests.clear()
    return running


def limits(port, *other_hosts, **settings):
    return Limits(hosts=(f"Good.Example:{port}", *other_hosts), **{"fetch_seconds": 5.0} | settings)


def test_bytes_and_files(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"12345")
    assert read(b"12345", Limits(media_bytes=5)) == b"12345"
    assert read(file, Limits(media_bytes=5)) == b"12345"
    with pytest.raises(ContentError, match=r"^5 bytes: 5 bytes, at most 4 are accepted"):
        read(b"12345", Limits(media_bytes=4))
    with pytest.raises(ContentError, match=r"a\.jpg: 5 bytes, at most 4 are accepted"):
        read(file, Limits(media_bytes=4))


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ContentError, match=r"a folder; give a file|a pipe \(FIFO\)|a device; give"):
            read(path, Limits())
    for path in (tmp_path / "none", Path("nul\0"), Path("/proc/self/mem")):
        with pytest.raises(ContentError, match=r"cannot be read|no such|null character"):
            read(path, Limits())


def test_connects_to_the_address_with_the_host_name_in_the_header(server):
    assert read(f"http://GOOD.example:{server.port}/ok?a=1#part", limits(server.port), NETWORK) == b"picture"
    ((path, headers),) = server.requests
    assert path == "/ok?a=1"
    assert headers["Host"] == f"good.example:{server.port}"
    assert headers["Accept-Encoding"] == "identity"


def test_default_ports_may_be_omitted():
    resolved = []

    def fail(host, port):
        resolved.append((host, port))
        raise OSError("no such name")

    for url in ("http://a.example/x", "http://a.example:80/x", "https://a.example/x", "https://b.example/x"):
        with pytest.raises(ContentError, match=r"\.example has no address; correct the URL$"):
            read(url, Limits(hosts=("a.example", "b.example:443")), Network(fail))
    assert resolved == [("a.example", 80), ("a.example", 80), ("a.example", 443), ("b.example", 443)]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://bad.example/ok", r"bad\.example:80 is not in limits\.hosts"),
        ("http://good.example/ok", r"good\.example:80 is not in"),
        ("http://good.example.:8080/ok", "is not in"),
        ("http://good.example:8080@bad.example/ok", "credentials"),
        ("http://user:secret@good.example:8080/ok", "credentials"),
        ("http://bad.example\\@good.example:8080/", "is not in|not a URL|credentials"),
        ("http://127.0.0.1:8080/", "is not in"),
        ("http://2130706433/", "is not in"),
        ("ftp://good.example:8080/ok", "only http and https are fetched, this is 'ftp'"),
        ("file:///etc/passwd", "only http and https"),
        ("/etc/passwd", "only http and https"),
        ("data:image/png;base64,AAAA", "only http and https"),
        ("", "only http and https"),
        ("http://", "is not in"),
        ("http://good.example:99999/", "is not in"),
        ("http://good.example\r\nHost: x/", "not a URL"),
        ("http://[::1/", "not a URL"),
        ("http://" + "a" * 70_000, "not a URL"),
        ("\ud800", "not a URL|only http"),
    ],
)
def test_urls_that_are_not_fetched(url, message):
    def never(host, port):
        raise AssertionError("looked up")

    with pytest.raises(ContentError, match=message) as caught:
        read(url, Limits(hosts=("good.example:8080",)), Network(never))
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_without_hosts_nothing_is_fetched():
    with pytest.raises(ContentError, match=r"URLs are not fetched here, since limits\.hosts is empty"):
        read("http://good.example/", Limits())


@pytest.mark.parametrize("host", ["inner.example", "mixed.example"])
def test_every_address_must_be_public(server, host):
    with pytest.raises(ContentError, match=r"is at 10\.0\.0\.7, which is not a public address"):
        read(f"http://{host}:{server.port}/ok", limits(server.port, f"{host}:{server.port}"), NETWORK)
    assert server.requests == []


def test_loopback_is_not_public_by_default(server):
    with pytest.raises(ContentError, match=r"127\.0\.0\.1, which is not a public address"):
        read(f"http://127.0.0.1:{server.port}/ok", Limits(hosts=(f"127.0.0.1:{server.port}",)))
    assert server.requests == []


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("192.0.0.9", False),  # from here, the result of is_global depends on the patch release of Python
        ("2002:0808:0808::1", False),
        ("2002:7f00:0001::1", False),
        ("2001:4:112::1", False),
        ("3fff::1", False),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::a00:1", False),
        ("fec0::1", False),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("2001:0:0a00:1::1", False),
        ("ff0e::1", False),
    ],
)
def test_public_addresses(address, expected):
    assert is_public(address) is expected


def test_a_name_is_resolved_once_and_the_connection_uses_its_addresses(server):
    answers = iter([["127.0.0.1"], ["10.0.0.7"]])
    network = Network(lambda host, port: next(answers), public)
    assert read(f"http://good.example:{server.port}/ok", limits(server.port), network) == b"picture"
    assert next(answers) == ["10.0.0.7"]  # the name was not resolved again


def test_the_next_address_is_tried():
    with Server() as server:
        network = Network(lambda host, port: ["127.0.0.2", "127.0.0.1"], lambda address: True)
        assert read(f"http://good.example:{server.port}/ok", limits(server.port), network) == b"picture"
        port = server.port
    with pytest.raises(ContentError, match="cannot be fetched: nothing listens there: start the server"):
        read(f"http://good.example:{port}/ok", limits(port), network)


def test_redirects_are_followed_and_checked(server):
    base = f"http://good.example:{server.port}"
    assert read(f"{base}/move?/move?{base}/ok", limits(server.port), NETWORK) == b"picture"
    assert len(server.requests) == 3
    for target, message in [
        (f"http://inner.example:{server.port}/ok", "not a public address"),
        (f"http://127.0.0.1:{server.port}/ok", "is not in limits.hosts"),
        (f"//other.example:{server.port}/ok", "is not in limits.hosts"),
        ("file:///etc/passwd", "only http and https"),
        ("http://[", "is not in limits.hosts"),
    ]:
        server.requests.clear()
        with pytest.raises(ContentError, match=message):
            read(f"{base}/move?{target}", limits(server.port, f"inner.example:{server.port}"), NETWORK)
        assert len(server.requests) == 1
    server.requests.clear()
    with pytest.raises(ContentError, match="more than 3 redirects"):
        read(f"{base}/loop", limits(server.port), NETWORK)
    assert len(server.requests) == 4


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none", "status 404 instead of 200"),
        ("partial", "status 206 instead of 200"),
        ("gzip", "has content encoding 'gzip', although only identity was requested"),
        ("length?2000000", "2,000,000 bytes, at most 1,000,000 are accepted"),
        ("length?" + "9" * 5000, "accepted|cannot be fetched"),
        ("length?-1", "cannot be fetched"),
        ("short", "cannot be fetched: the connection failed or was cut off"),
        ("endless", "more than the 1,000,000 bytes"),
        ("dripping", "not fetched within 0.5 s"),
        ("header", "not fetched within 0.5 s"),
        ("silent", "not fetched within 0.5 s"),
    ],
)
def test_rejected_responses(server, path, message):
    with pytest.raises(ContentError, match=f"good.example.*: .*{message}"):
        read(
            f"http://good.example:{server.port}/{path}",
            limits(server.port, media_bytes=1_000_000, fetch_seconds=0.5),
            NETWORK,
        )


def test_the_time_limit_covers_all_redirects(server):
    url = f"http://good.example:{server.port}/ok"

    def slow(host, port):
        time.sleep(0.1)
        return ["127.0.0.1"]

    with pytest.raises(ContentError, match=r"not fetched within 0\.05 s"):
        read(url, limits(server.port, fetch_seconds=0.05), Network(slow, public))
    assert server.requests == []


def test_proxies_of_the_environment_are_ignored(server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert read(f"http://good.example:{server.port}/ok", limits(server.port), NETWORK) == b"picture"


def certificate(folder, name):
    """A TLS context of a server for a name, and a client context that trusts its certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    no_encryption = serialization.NoEncryption()
    key_format = serialization.PrivateFormat.PKCS8
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, key_format, no_encryption)
        + signed.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    return context, ssl.create_default_context(cafile=pem)


def test_tls_verifies_the_name_and_not_the_address(tmp_path):
    pytest.importorskip("cryptography")
    server_context, client_context = certificate(tmp_path, "good.example")
    with Server(server_context) as server:
        names = limits(server.port, f"other.example:{server.port}")
        network = Network(lambda host, port: ["127.0.0.1"], public, client_context)
        assert read(f"https://good.example:{server.port}/ok", names, network) == b"picture"
        with pytest.raises(ContentError, match="its certificate is not trusted, or is of another name"):
            read(f"https://other.example:{server.port}/ok", names, network)
        with pytest.raises(ContentError, match="its certificate is not trusted, or is of another name"):
            read(f"https://good.example:{server.port}/ok", names, NETWORK)
        assert len(server.requests) == 1


def test_names_are_resolved():
    assert resolve("127.0.0.1", 80) == ["127.0.0.1"]
    with pytest.raises(OSError):  # noqa: PT011  # the message depends on the system
        resolve("nobody.invalid", 80)


def test_place_omits_secrets():
    assert place(b"abc") == "3 bytes"
    assert place(Path("a/b.jpg")) == "a/b.jpg"
    assert place("https://me:secret@a.example/b.jpg?token=1#x") == "'https://a.example/b.jpg'"
    assert place("line\nbreak") == r"'line\nbreak'"


class Stream:
    """A connection that keeps the seconds of each operation."""

    def __init__(self):
        self.seconds = []

    def read(self, max_bytes, timeout):
        self.seconds.append(timeout)
        return b"x" * max_bytes

    def write(self, buffer, timeout):
        self.seconds.append(timeout)

    def start_tls(self, ssl_context, server_hostname, timeout):
        self.seconds.append(timeout)
        assert server_hostname == "a.example"
        return self

    def close(self):
        self.seconds.append("closed")

    def get_extra_info(self, info):
        return info


def test_every_operation_of_a_connection_has_the_time_that_is_left(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(fetch.time, "monotonic", lambda: clock[0])
    stream, tls = Stream(), ssl.create_default_context()
    timed = fetch._Timed(stream, 110.0)  # type: ignore[arg-type]
    timed.write(b"x", 60.0)
    clock[0] = 103.0
    secure = timed.start_tls(tls, "a.example", None)
    clock[0] = 108.0
    assert secure.read(3) == b"xxx"
    assert stream.seconds == [10.0, 7.0, 2.0]
    clock[0] = 110.0
    for operation in (lambda: secure.read(1), lambda: secure.write(b""), lambda: timed.start_tls(tls, "a.example")):
        with pytest.raises(TimeoutError):
            operation()
    secure.close()
    assert stream.seconds[3:] == ["closed"]
    assert secure.get_extra_info("ssl_object") == "ssl_object"
