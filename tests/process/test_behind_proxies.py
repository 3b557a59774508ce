"""Behind proxies that are not ours: HAProxy, and nginx with its stream module.

They are started on free ports of 127.0.0.1, and ended by the test that started them.
"""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clients import Client
from paths import ROOT, SERVER
from processes import Process
from waiting import DEADLINE_S, wait_until

HAPROXY = shutil.which("haproxy", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/opt/homebrew/bin")
NGINX = shutil.which("nginx", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/opt/homebrew/bin")

needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed (Debian: apt install haproxy)")
needs_nginx = pytest.mark.skipif(
    NGINX is None, reason="nginx is not installed (Debian: apt install nginx libnginx-mod-stream)"
)

DEFAULTS = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 10s
    timeout server 10s
"""

Run = Callable[..., "Proxy"]


class Proxy:
    """A proxy in a process of its own. Its output goes to a file."""

    def __init__(self, command: list[str], log: Path, **options: Any) -> None:
        self._log = log
        with log.open("wb") as file:
            self.popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, **options)
        self.address = ("", 0)
        self._clients: list[Client] = []

    @property
    def log(self) -> str:
        """All it has said so far."""
        return self._log.read_text()

    def connect(self, host: str = "127.0.0.1") -> Client:
        """A client of the proxy, from that address."""
        client = Client(self.address, source=(host, 0))
        self._clients.append(client)
        return client

    def close(self) -> None:
        """End it, and its clients."""
        for client in self._clients:
            client.close()
        self.popen.terminate()
        self.popen.wait(DEADLINE_S)


@pytest.fixture
def haproxy(tmp_path: Path) -> Iterator[Run]:
    """Starts HAProxy in front of a server: with ``SERVER`` and ``BIND`` in the text of its configuration replaced."""
    running: list[Proxy] = []

    def run(config: str, server: str, family: int = socket.AF_INET) -> Proxy:
        listener = socket.socket(family)
        listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        listener.listen(100)
        with listener:  # it inherits it: no port can be taken meanwhile
            path = tmp_path / "haproxy.cfg"
            path.write_text(config.replace("SERVER", server).replace("BIND", f"fd@{listener.fileno()}"))
            command = [str(HAPROXY), "-db", "-f", str(path)]
            proxy = Proxy(command, tmp_path / "haproxy.log", pass_fds=[listener.fileno()])
            proxy.address = listener.getsockname()[:2]
        running.append(proxy)
        assert proxy.popen.poll() is None, proxy.log
        return proxy

    yield run
    for proxy in running:
        log, ended = proxy.log, proxy.popen.poll()
        proxy.close()
        assert ended is None, log


def start_behind(spawn: Callable[..., Process], *arguments: str) -> tuple[Process, str]:
    """A server that trusts the proxies of 127.0.0.1, and its address."""
    server = spawn("--proxy-from", "127.0.0.1", "--log-level", "debug", *arguments)
    return server, "{}:{}".format(*server.address)


def name_of(client: Client) -> str:
    host, port = client.socket.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def status(server: Process) -> dict[str, str]:
    """What it writes to its log when it is asked."""
    before = server.log.count("slowest_handler")
    server.signal(10)
    server.wait_for_log("slowest_handler", before + 1)
    return dict(re.findall(r"^  (\w+) +(.+)$", server.log.rpartition("status:")[2], re.MULTILINE))


# ---------------------------------------------------------------------- HAProxy


@needs_haproxy
@pytest.mark.parametrize(
    ("options", "family"),
    [
        ("send-proxy", socket.AF_INET),
        ("send-proxy", socket.AF_INET6),
        ("send-proxy-v2", socket.AF_INET6),
        ("send-proxy-v2 proxy-v2-options unique-id,crc32c,authority,ssl", socket.AF_INET),
    ],
    ids=["1-ipv4", "1-ipv6", "2-ipv6", "2-ipv4-with-all"],
)
def test_haproxy_in_both_versions(spawn, haproxy, options, family):
    server, address = start_behind(spawn)
    proxy = haproxy(
        f"""{DEFAULTS}
listen cc
    bind BIND
    unique-id-format id-of-%cp
    server one SERVER {options}
""",
        address,
        family,
    )
    host = "::1" if family == socket.AF_INET6 else "127.0.0.9"
    client = proxy.connect(host)
    assert client.ask(b"one\ntwo\n", 4) == b"3\n3\n"
    client.send("naïve".encode())
    client.half_close()
    assert client.receive_rest() == b"5\n"
    server.wait_for_log("disconnect ")
    name = name_of(client)
    version = 1 if options == "send-proxy" else 2
    (connect,) = re.findall(r"INFO connect (.*)", server.log)
    assert re.match(
        rf"{re.escape(name)} through 127\.0\.0\.1:\d+: PROXY v{version} from {re.escape(name)} to ", connect
    )
    if "unique-id" in options:
        assert connect.endswith(f" id=b'id-of-{client.socket.getsockname()[1]}' tls='no'")
    assert f"disconnect {name} messages=3 errors=0 received=14 sent=6 " in server.log
    assert status(server)["bad_proxy_headers"] == "0"


@needs_haproxy
@pytest.mark.parametrize("check", ["check-send-proxy", "", "ask"])
def test_haproxy_looks_whether_the_server_lives(spawn, haproxy, check):
    """By a connection that says LOCAL or nothing: both are probes. Or by a question, which is answered."""
    server, address = start_behind(spawn, "--max-connections-per-address", "1")
    asks = "    tcp-check connect send-proxy\n    tcp-check send hello\\n\n    tcp-check expect string 5\n"
    proxy = haproxy(
        f"""{DEFAULTS}
listen cc
    bind BIND
    option tcp-check
{asks if check == "ask" else ""}
    server one SERVER send-proxy check inter 20ms fastinter 20ms {"" if check == "ask" else check}
    server two SERVER send-proxy-v2 proxy-v2-options crc32c check inter 20ms {"" if check == "ask" else check}
""",
        address,
    )
    wait_until(lambda: int(status(server)["probes"]) >= 10, "probes")
    seen = status(server)
    assert (seen["failed"], seen["bad_proxy_headers"], seen["limits_hit"]) == ("0", "0", "none")
    assert (int(seen["messages"]) >= 9) == (check == "ask")
    assert " INFO " not in server.log
    assert not re.search("WARNING (?!the loop was blocked)", server.log)
    assert not re.search("is DOWN|ALERT", proxy.log)


@needs_haproxy
def test_haproxy_clients_have_limits_of_their_own(spawn, haproxy):
    server, address = start_behind(spawn, "--max-connections-per-address", "2")
    proxy = haproxy(f"{DEFAULTS}\nlisten cc\n    bind BIND\n    server one SERVER send-proxy-v2\n", address)
    clients = [proxy.connect(f"127.0.0.{host}") for host in (7, 7, 8, 8, 9)]
    for client in clients:
        assert client.ask(b"hello\n", 2) == b"5\n"
    assert proxy.connect("127.0.0.7").receive_rest() == b"ERR too-many-connections-from-address limit 2\n"
    server.wait_for_log("refused: too-many-connections-from-address limit 2")
    assert re.search(r"connection 127\.0\.0\.7:\d+ refused", server.log)


@needs_haproxy
def test_haproxy_over_a_unix_socket(haproxy, tmp_path):
    path = tmp_path / "s"
    options = ("--listen", f"unix:{path}", "--proxy-from", "unix", "--log-level", "debug")
    with Process([str(SERVER), *options]) as server:
        server.wait_for_log("listening on unix:")
        proxy = haproxy(f"{DEFAULTS}\nlisten cc\n    bind BIND\n    server one SERVER send-proxy-v2\n", f"unix@{path}")
        client = proxy.connect("127.0.0.9")
        assert client.ask(b"hello\n", 2) == b"5\n"
        server.wait_for_log("INFO connect ")
        (connect,) = re.findall(r"INFO connect (.*)", server.log)
        name = re.escape(name_of(client))
        assert re.match(rf"{name} through unix:unnamed .*pid=\d+ uid=\d+: PROXY v2 from {name} to ", connect), connect


@needs_haproxy
def test_haproxy_says_what_it_knows_of_its_clients_tls(spawn, haproxy, tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    command = f"{openssl} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=cc.example"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    (tmp_path / "both.pem").write_text(key.read_text() + certificate.read_text())
    server, address = start_behind(spawn)
    options = "proxy-v2-options ssl,cert-cn,ssl-cipher,authority,crc32c"
    proxy = haproxy(
        f"""{DEFAULTS}
listen cc
    bind BIND ssl crt {tmp_path}/both.pem
    server one SERVER send-proxy-v2 {options}
""",
        address,
    )
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection(proxy.address, DEADLINE_S)
    with context.wrap_socket(plain, server_hostname="cc.example") as client:
        client.sendall(b"hello\n")
        assert client.recv(10) == b"5\n"
        version, cipher = client.version(), client.cipher()
    server.wait_for_log("authority=")
    (connect,) = re.findall(r"INFO connect (.*)", server.log)
    assert cipher is not None
    assert connect.endswith(f" authority='cc.example' tls='{version}' cipher='{cipher[0]}'")


@needs_haproxy
def test_haproxy_that_nobody_told_the_server_of(spawn, haproxy):
    """Each reply is the one to the message before it; the log says why."""
    server = spawn()
    config = f"{DEFAULTS}\nlisten cc\n    bind BIND\n    server one SERVER send-proxy\n"
    proxy = haproxy(config, "{}:{}".format(*server.address))
    assert proxy.connect().ask(b"hello\n", 3) != b"5\n"
    server.wait_for_log("begins with what looks like a PROXY header")
    assert "add its address to --proxy-from" in server.log


@needs_haproxy
def test_haproxy_that_sends_no_header_although_it_is_expected(spawn, haproxy):
    server, address = start_behind(spawn)
    proxy = haproxy(f"{DEFAULTS}\nlisten cc\n    bind BIND\n    server one SERVER\n", address)
    client = proxy.connect()
    client.send(b"hello\n")
    client.was_reset()
    server.wait_for_log(r"closed: no PROXY header, but 'hello\n'")
    assert status(server)["bad_proxy_headers"] == "1"


@needs_haproxy
def test_the_configuration_that_is_shipped(spawn, haproxy):
    shipped = ROOT / "deploy" / "haproxy.cfg"
    checked = subprocess.run([str(HAPROXY), "-c", "-f", shipped], capture_output=True, text=True, timeout=DEADLINE_S)
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stdout + checked.stderr
    server, address = start_behind(spawn)
    config = shipped.read_text()
    assert config.count("bind :12346") == config.count("server one 127.0.0.1:12345 ") == 1
    config = config.replace("bind :12346", "bind BIND").replace("server one 127.0.0.1:12345 ", "server one SERVER ")
    proxy = haproxy(config, address)
    server.wait_for_log("LOCAL")
    client = proxy.connect()
    assert client.ask(b"hello\n", 2) == b"5\n"
    name = name_of(client)
    server.wait_for_log(f"connect {name} through ")
    client.close()
    server.wait_for_log(f"disconnect {name} messages=1 ")
    assert not re.search("WARNING (?!the loop was blocked)", server.log)
    assert not re.search("is DOWN|ALERT", proxy.log)


# ---------------------------------------------------------------------- nginx


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Run]:
    """Starts nginx in front of a server, with these directives beside ``proxy_pass``."""
    running: list[Proxy] = []
    about = subprocess.run([str(NGINX), "-V"], capture_output=True, text=True, timeout=DEADLINE_S).stderr
    load = ""
    if "--with-stream=dynamic" in about:
        module = Path(re.findall(r"--modules-path=(\S+)", about)[0]) / "ngx_stream_module.so"
        if not module.exists():
            pytest.skip("nginx has no stream module (Debian: apt install libnginx-mod-stream)")
        load = f"load_module {module};"
    elif "--with-stream" not in about:
        pytest.skip("this nginx is built without its stream module")

    def run(server: str, directives: str = "") -> Proxy:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = free.getsockname()
        config = tmp_path / "nginx.conf"
        config.write_text(
            f"""{load}
daemon off;
master_process off;
pid {tmp_path}/nginx.pid;
error_log stderr info;
events {{ worker_connections 100; }}
stream {{
    server {{ listen {address[0]}:{address[1]}; proxy_pass {server}; proxy_protocol on; {directives} }}
}}
"""
        )
        proxy = Proxy([str(NGINX), "-p", str(tmp_path), "-c", str(config)], tmp_path / "nginx.log")
        running.append(proxy)
        proxy.address = address
        wait_until(lambda: proxy.popen.poll() is not None or listens(address), "nginx")
        assert proxy.popen.poll() is None, proxy.log
        return proxy

    yield run
    for proxy in running:
        proxy.close()


def listens(address: tuple[str, int]) -> bool:
    """Whether somebody listens there, found out without a connection: another one can't bind it."""
    with socket.socket() as sock:
        try:
            sock.bind(address)
        except OSError:
            return True
        return False


@needs_nginx
def test_nginx(spawn, nginx):
    server, address = start_behind(spawn, "--max-connections-per-address", "2")
    proxy = nginx(address)
    client = proxy.connect("127.0.0.9")
    assert client.ask(b"one\ntwo\n", 4) == b"3\n3\n"
    server.wait_for_log("INFO connect ")
    name = name_of(client)
    (connect,) = re.findall(r"INFO connect (.*)", server.log)
    assert re.match(rf"{re.escape(name)} through 127\.0\.0\.1:\d+: PROXY v1 from {re.escape(name)} to 127", connect)
    others = [proxy.connect(f"127.0.0.{host}") for host in (9, 8, 8)]
    for other in others:
        assert other.ask(b"hello\n", 2) == b"5\n"
    assert proxy.connect("127.0.0.9").receive_rest() == b"ERR too-many-connections-from-address limit 2\n"
    client.close()
    server.wait_for_log(f"disconnect {name} messages=2 ")


@needs_nginx
def test_nginx_whose_client_says_nothing(spawn, nginx):
    """It sends the header when the client has connected: that is a probe of that client's."""
    server, address = start_behind(spawn)
    proxy = nginx(address)
    client = proxy.connect("127.0.0.9")
    wait_until(lambda: status(server)["connections"] == "1", "connected")
    name = name_of(client)
    client.close()
    server.wait_for_log(f"DEBUG disconnect {name} messages=0 ")
    assert status(server)["probes"] == "1"
    assert status(server)["failed"] == "0"
