"""Servers that are not ours, as commands to record: of programs that Debian or the package index has, and a plain one
of Python's with a thread a connection. Each takes (an empty folder of its own, the port to listen on)."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
POSTGRES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=Path("/nowhere"))

_WORK = """
def work():
    return b"%d" % sum(range(20_000))
"""
_WSGI = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [work()]
"""
_THREADED = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(work())

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def needs(there: object, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not there, reason=f"needs {package}")


needs_nginx = needs(NGINX, "Debian's nginx-light")
needs_redis = needs(shutil.which("redis-server"), "Debian's redis-server")
needs_postgres = needs((POSTGRES / "postgres").exists(), "Debian's postgresql")
needs_gunicorn = needs(find_spec("gunicorn"), "gunicorn: .venv/bin/pip install gunicorn")


@contextmanager
def public_folder() -> Iterator[Path]:
    """One that another user may look into, unlike those of pytest."""
    with tempfile.TemporaryDirectory(prefix="socketswarm-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def nginx(folder: Path, port: int) -> list[str]:
    config = folder / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(
        f"daemon off; worker_processes 2; {user} pid {folder}/pid; error_log {folder}/error.log;"
        f"events {{}} http {{ access_log off; server {{ listen 127.0.0.1:{port}; location / {{ return 200; }} }} }}"
    )
    return [str(NGINX), "-e", f"{folder}/error.log", "-c", str(config)]


def redis(folder: Path, port: int) -> list[str]:
    return ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]


def postgres(folder: Path, port: int) -> list[str]:
    as_user = ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"] if os.geteuid() == 0 else []
    data = folder / "data"
    if as_user:
        shutil.chown(folder, "postgres", "postgres")
    initdb = [str(POSTGRES / "initdb"), "--username", "postgres", "-D", str(data)]
    subprocess.run([*as_user, *initdb], check=True, capture_output=True, cwd="/")
    options = ["-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}"]
    return [*as_user, str(POSTGRES / "postgres"), "-D", str(data), *options]


def gunicorn(folder: Path, port: int) -> list[str]:
    (folder / "burning.py").write_text(_WORK + _WSGI)
    options = ["--workers", "3", "--bind", f"127.0.0.1:{port}", "--chdir", str(folder), "--log-level", "critical"]
    return [sys.executable, "-m", "gunicorn", *options, "burning:app"]


def threaded(folder: Path, port: int) -> list[str]:
    return [sys.executable, "-c", _WORK + _THREADED, str(port)]
