"""TLS, unix sockets and tokens from the outside: `upload`, `run` and Locust, against servers of our own and the real
one; and that a token is nowhere to be found afterwards."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from certificates import Authority
from headless import load, measured, serving, summary, together, users
from in_process import called
from loads import LOADTEST, acked, assert_complete, built, events, failures, started
from secure import Certificates, Store, over_tls
from servers import DEADLINE_S, ROOT, Client, eventually, free_port, running
from slow import first_of

from loadtest import link
from loadtest.__main__ import cli
from loadtest.options import DEFAULTS, check_server, validate
from reports import run_folder

TOKEN = "a-token-that-nobody-may-see"
SHORT = ["--uploads-per-connection", "0,1", "--warm-up", "0", "--phase-seconds", "1", "--payloads", "4KiB"]


@pytest.fixture(scope="module")
def issued(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def files(tmp_path):
    """One that is empty, a small one and one of many records."""
    sizes = {"empty": 0, "small": 100, "large": 3 << 20}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(os.urandom(size))
    return [tmp_path / name for name in sizes]


def upload(*arguments):
    return called(cli, ROOT, "upload", *arguments)


def refusal(done, code=1):
    """The one line that says what is wrong."""
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert TOKEN not in done.stderr
    return done.stderr


def secured(context, script):
    return serving(over_tls(context, script))


def tls(host):
    return host.replace("tcp://", "tls://")


# ── the plain client ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("options", "connections"), [([], 1), (["--close"], 3)])
def test_files_over_tls(issued, token_file, files, options, connections):
    store = Store(token=TOKEN)
    _, _, both = issued.client()
    with secured(issued.server(asks=True), store.serve) as host:
        identity = ["--ca", issued.ca, "--cert", both, "--token-file", token_file]
        done = upload("--host", tls(host), *identity, *options, *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"3 files, {100 + (3 << 20):,} bytes stored at {tls(host)}\n"
    assert store.files == {file.name: file.read_bytes() for file in files}
    assert store.connections == connections


@pytest.mark.parametrize(("options", "connections"), [([], 1), (["--close"], 3)])
def test_files_over_a_unix_socket(tmp_path, token_file, files, options, connections):
    store = Store(token=TOKEN)
    with serving(store.serve, tmp_path / "socket") as host:
        done = upload("--host", host, "--token-file", token_file, *options, *files)
    assert (done.returncode, done.stderr) == (0, "")
    assert store.files == {file.name: file.read_bytes() for file in files}
    assert store.connections == connections


def test_a_token_for_the_real_server(tmp_path, token_file, files):
    (tmp_path / "wrong").write_text("another\n")
    with running("--token-file", token_file, store=tmp_path / "store") as server:
        host = ["--host", f"tcp://127.0.0.1:{server.port}"]
        done = upload(*host, "--token-file", token_file, *files)
        assert (done.returncode, done.stderr) == (0, "")
        assert "unauthorized: the token is wrong" in refusal(upload(*host, "--token-file", tmp_path / "wrong", *files))
        assert "unauthorized: the server wants a token" in refusal(upload(*host, *files))
        assert server.files().keys() == {file.name for file in files}
        assert TOKEN not in server.messages()


def test_a_certificate_that_is_not_to_be_trusted(issued, files):
    with secured(issued.server(expired=True), Store().serve) as host:
        said = refusal(upload("--host", tls(host), "--ca", issued.ca, *files))
        assert f"{files[0]}: tls_failed: the server's certificate is not to be trusted: certificate has expired" in said
    with secured(issued.server(), Store().serve) as host:
        said = refusal(upload("--host", tls(host), *files))
        assert "tls_failed: the server's certificate is not to be trusted: " in said
    with secured(issued.server(asks=True), Store().serve) as host:
        said = refusal(upload("--host", tls(host), "--ca", issued.ca, *files))
        assert "tls_failed: the server refused: certificate required" in said


MISTAKES = [
    (["--host", "ssl://127.0.0.1:1"], "'ssl://127.0.0.1:1' is not a host: write tcp://HOST:PORT"),
    (["--host", f"tcp://user:{TOKEN}@127.0.0.1:1"], "what was given is not a host: it has a user or a password"),
    (["--host", f"http://127.0.0.1:1/?{TOKEN}"], "what was given is not a host: it has a query or a fragment"),
    (["--host", "unix://relative"], "'unix://relative' is not a host: write unix:///PATH of a socket"),
    (["--host", "tcp://127.0.0.1:1", "--ca", "ca.pem"], "ca is for hosts of tls://, and this one is of tcp://"),
    (["--host", "tls://127.0.0.1:1", "--ca", "none"], "ca: 'none' cannot be read: No such file or directory"),
    (["--host", "tls://127.0.0.1:1", "--ca", "empty"], "ca: there is no certificate in 'empty' (PEM)"),
    (["--host", "tls://127.0.0.1:1", "--cert", "none"], "cert: 'none' cannot be read: No such file or directory"),
    (["--host", "tls://127.0.0.1:1", "--key", "none"], "key: say which certificate it is the key of: --cert"),
    (["--host", "tcp://127.0.0.1:1", "--token-file", "none"], "token file: 'none' cannot be read: No such file"),
    (["--host", "tcp://127.0.0.1:1", "--token-file", "empty"], "token file: what is in 'empty' is no token: write"),
    (["--host", "http://127.0.0.1:1", "--token-file", "empty"], "token file: only the framed protocol carries a token"),
]


@pytest.mark.parametrize("command", [["upload", "empty"], ["run", "--users", "1"]], ids=["upload", "run"])
@pytest.mark.parametrize(("options", "said"), MISTAKES, ids=[" ".join(options) for options, _ in MISTAKES])
def test_mistakes(tmp_path, command, options, said):
    (tmp_path / "empty").touch()
    done = called(cli, tmp_path, *command, *options)
    assert said in refusal(done, code=2)
    assert not (tmp_path / "reports").exists()


# ── runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("names", first_of([["tls", "unix"], ["open"]]), ids="-".join)
def test_locust(tmp_path, issued, token_file, names):
    """In both models, over TLS and over a unix socket; what the kernel does not tell of one is not in its run."""
    stores = {name: Store(token=TOKEN) for name in ("tls", "unix", "open")}
    short, token = [*SHORT, "--no-report"], ["--token-file", token_file]
    identity = [*token, "--ca", issued.ca, "--cert", issued.client()[2]]
    with (
        secured(issued.server(asks=True), stores["tls"].serve) as secure,
        secured(issued.server(), stores["open"].serve) as opened,
        serving(stores["unix"].serve, tmp_path / "socket") as unix,
    ):
        commands = {
            "tls": load(tls(secure), *short, *identity, *users(3), "--wait", "10ms"),
            "open": load(tls(opened), *short, *token, "--ca", issued.ca, "--arrival-rate", 50),
            "unix": load(unix, *short, *token, *users(3), "--wait", "10ms"),
        }
        jobs = dict(zip(names, together(tmp_path, {name: commands[name] for name in names}), strict=True))
    for name, job in jobs.items():
        assert job.wait() == 0, job.said()
        [folder] = job.runs()
        assert built(folder).exit_code in (0, 4)  # 4 when the machine was too busy
        assert_complete(folder)
        assert failures(folder) == {}
        assert acked(folder)
        long, short = measured(folder)
        assert acked(folder, long.name) and acked(folder, short.name)
        told = stages(folder, short)
        assert {"connect", "send", "wait", "close", "service"} <= told
        assert {"handshake", "read_lag"} & told == (set() if name == "unix" else {"handshake", "read_lag"})
        assert run_folder.read_run(folder).server.pid == os.getpid()
        assert events(folder, "server-unknown") == []
        assert_nowhere(TOKEN, tmp_path / name)
        assert stores[name].files.keys() <= {f"load-4096-{v}-{n}" for v in range(4) for n in range(8)}


def stages(folder, phase):
    """Which durations this phase has."""
    lines = [line for line in run_folder.read_uploads(folder) if isinstance(line, run_folder.HistogramsLine)]
    last = [line for line in lines if line.phase == phase.name][-1]
    return {duration for durations in last.names.values() for duration in durations}


def assert_nowhere(text, folder):
    for path in folder.rglob("*"):
        if path.is_file():
            assert text.encode() not in path.read_bytes(), path


@pytest.mark.slow  # the next has one too
def test_the_main_job(tmp_path, issued, token_file):
    """It hands everything on by name: what others see of its processes has the name of the file only."""
    (tmp_path / "here").mkdir()
    options = ["--token-file", token_file, "--ca", issued.ca, "--users", 2, "--plan", "long", "--drain", "1s"]
    store = Store(token=TOKEN)
    with secured(issued.server(), store.serve) as host:
        command = [*LOADTEST, "run", "--host", tls(host), *SHORT[2:], "--phase-seconds", "3", *map(str, options)]
        with started(tmp_path / "here", *command) as job:
            job.in_phase("long-1")
            seen = job.living()
            assert job.ends_well(), job.said()
    assert any("--token-file" in command for command in seen.values())
    assert not any(TOKEN in command for command in seen.values())
    [folder] = job.runs()
    info = assert_complete(folder)
    assert (info.host, info.load_options["token_file"]) == (tls(host), str(token_file))
    assert summary(folder)["modes"][0]["uploads_per_s"] > 0
    assert_nowhere(TOKEN, tmp_path / "here")


def test_the_main_jobs_own_server_wants_the_token(tmp_path, token_file):
    (tmp_path / "here").mkdir()
    options = ["--token-file", str(token_file), "--users", "2", "--plan", "long", "--workers", "1", "--drain", "1s"]
    with started(tmp_path / "here", *LOADTEST, "run", *SHORT[2:], *options) as job:
        assert job.ends_well(), job.said()
    [folder] = job.runs()
    assert str(token_file) in run_folder.read_run(folder).server.command
    assert failures(folder) == {}
    assert_nowhere(TOKEN, tmp_path / "here")


@pytest.mark.parametrize("mistake", first_of(["token", "tls", "size"]))
def test_a_run_ends_at_its_first_uploads_when_none_can_succeed(tmp_path, token_file, mistake):
    """As for any other wrong option: one line, and nothing is left. Whatever the plan, which would take an hour."""
    (tmp_path / "here").mkdir()
    (tmp_path / "wrong").write_text("another\n")
    wants = {
        "token": ["--token-file", token_file],
        "tls": ["--tls-cert", Authority(tmp_path).server()],
        "size": ["--max-file-size", "1000"],
    }[mistake]
    options = ["--users", "2", "--phase-seconds", "900", "--token-file", str(tmp_path / "wrong")]
    with running(*wants) as server:
        host = f"tcp://127.0.0.1:{server.port}"
        with started(tmp_path / "here", *LOADTEST, "run", "--host", host, *options) as job:
            assert job.wait() == 2, job.said()
        assert server.stored() == 0
    why = {
        "token": "unauthorized: the token is wrong",
        "tls": "the server speaks TLS, which tcp:// does not: write tls://",
        "size": "every file is refused: too_large: file_size is ",
    }
    assert job.said().splitlines()[-1].startswith(f"Error: no upload to {host} can succeed: {why[mistake]}")
    assert job.runs() == []


@pytest.mark.slow
def test_a_server_that_is_busy_at_first_ends_no_run(tmp_path):
    with running("--max-connections", "1") as server:
        host = f"tcp://127.0.0.1:{server.port}"
        with Client(server.port), started(tmp_path, *load(host, *users(2), "--plan", "long", "--no-report")) as job:
            eventually(lambda: server.failures().get("busy", 0) > 5, "all are refused")
            assert job.wait() != 2, job.said()
    assert failures(job.runs()[0]).keys() == {"busy"}


def test_a_run_does_not_begin_with_a_server_that_is_not_to_be_trusted(tmp_path, issued):
    with secured(issued.server(expired=True), Store().serve) as host, serving(Store().serve) as plain:
        for one, said in (
            (host, "the server's certificate is not to be trusted: certificate has expired"),
            (plain, "the server does not speak TLS"),
        ):
            done = called(cli, tmp_path, "run", "--host", tls(one), "--ca", issued.ca, "--users", 1)
            assert refusal(done, code=2) == f"Error: no TLS with {tls(one)}: {said}\n"


@pytest.mark.parametrize("host", ["tls://127.0.0.1:{port}", "unix://{path}"])
def test_no_server(tmp_path, host):
    host = host.format(port=free_port(), path=tmp_path / "socket")
    done = called(cli, tmp_path, "run", "--host", host, "--users", 1)
    assert refusal(done, code=2).startswith(f"Error: no server at {host}: ")


@pytest.mark.slow
def test_a_server_that_is_lost_over_a_unix_socket(tmp_path):
    """The recording of the load goes on."""
    path = tmp_path / "socket"
    command = [sys.executable, "-c", LOST, str(path)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    try:
        assert server.stdout.readline()
        options = ["--users", "2", "--plan", "long", "--phase-seconds", "5", "--warm-up", "0", "--wait", "10ms"]
        with started(tmp_path, *load(f"unix://{path}", *options)) as job:
            job.in_phase("long-1")
            server.kill()
            job.wait()
    finally:
        server.kill()
        server.wait(DEADLINE_S)
        server.stdout.close()
    [folder] = job.runs()
    assert run_folder.read_run(folder).server.pid == server.pid
    assert events(folder, "recorder-failed") == []
    assert len(events(folder, "server-gone")) == 1
    assert failures(folder).keys() <= {"connection_lost", "connect_refused"}
    last = list(run_folder.read_processes(folder))[-1]
    assert "load-master" in {sample.role for sample in last.processes}


LOST = """
import sys, time
from pathlib import Path
sys.path[:0] = [".", ".."]
from headless import serving
from secure import Store
with serving(Store().serve, Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(600)
"""


# ── a question ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("scheme", ["tcp", "unix", "tls"])
def test_who_only_asks_whether_it_is_there_is_let_in_before_a_run_begins(scheme, tmp_path, monkeypatch):
    """Or a busy server would count the question among the run's connections."""
    monkeypatch.setattr(link, "LEFT_WITHIN_S", DEADLINE_S)
    authority = Authority(tmp_path)
    listening = {"tcp": [], "unix": ["--listen", f"unix://{tmp_path}/s"], "tls": ["--tls-cert", authority.server()]}
    with running(*listening[scheme]) as server:
        host = f"unix://{tmp_path}/s" if scheme == "unix" else f"{scheme}://127.0.0.1:{server.port}"
        chosen = validate(host, DEFAULTS | ({"ca": str(authority.file)} if scheme == "tls" else {}))
        [worker] = server.workers()
        os.kill(worker, signal.SIGSTOP)
        goes_on = threading.Timer(0.3, os.kill, (worker, signal.SIGCONT))
        goes_on.start()
        check_server(chosen, host)
        assert server.slots()[0].connections_accepted == 1
        goes_on.join()
