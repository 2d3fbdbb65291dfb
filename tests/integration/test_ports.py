"""The port helper against real processes: what it ends, and above all what it leaves alone.

Servers here are small scripts that each show one way of holding a port, or the real server. Every one of them runs in
a session of its own, so that a fixture can end all of it whatever state a test left it in.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from mainless import MAINLESS
from servers import DEADLINE_S, command, eventually, free_port, running, session

from server import scoreboard
from server.ports import holders, sockets
from server.ports import release as releasing
from server.ports.release import FREE, HELD, REFUSED, Orders, release

ROOT = Path(__file__).parents[2]
ESTABLISHED = 1  # include/net/tcp_states.h

# Pieces of the scripts. Each script prints one line when it is ready, and ends when its standard input does.
LISTEN = """
import os, signal, socket, sys, time
def listen(address="127.0.0.1", port=0, **options):
    listener = socket.create_server((address, int(port)), backlog=128, **options)
    return listener, listener.getsockname()[1]
def ready(*words):
    print(*words, flush=True)
def wait():
    while True:
        signal.pause()
"""

PREFORK = (
    LISTEN
    + """
listener, port = listen(port=(sys.argv[1:] or [0])[0])
workers = []
def fork():
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        wait()
    workers.append(pid)
def end(*_):
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    os._exit(0)
signal.signal(signal.SIGTERM, end)
for _ in range(4):
    fork()
ready(port, *workers)
while True:  # replace whoever dies, as pre-fork servers do
    pid, _ = os.wait()
    workers.remove(pid)
    fork()
"""
)

CLIENTS = """
import os, signal, socket, sys
port, count = map(int, sys.argv[1:])
for _ in range(count):
    with socket.create_connection(("127.0.0.1", port)):
        if os.fork() == 0:
            while True:
                signal.pause()
print("connected", flush=True)
while True:
    signal.pause()
"""


class Program:
    """A running script: its process, and the words of its first line."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.pid = self.process.pid
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        self.words = self.line.split()

    @property
    def port(self) -> int:
        return int(self.words[0])

    def everybody(self) -> set[int]:
        """Pids of all living processes of this program's session."""
        return session(self.pid)

    def end(self) -> None:
        """KILL the whole session, and wait until all of it is gone."""

        def gone() -> bool:
            living = self.everybody()
            for pid in living:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGKILL)
            return not living

        eventually(gone, "all of it is gone")
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def state_of(pid: int) -> str:
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2]


Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def start(code: str, *arguments: object) -> Program:
            program = Program(sys.executable, "-c", code, *map(str, arguments))
            stack.callback(program.end)
            return program

        yield start


@pytest.fixture
def real_server() -> Iterator[Program]:
    program = Program(sys.executable, "-m", "server", "--port", "0", "--workers", "4", "--discard")
    try:
        assert program.line.startswith("listening on "), program.line
        program.words = [program.words[2].rpartition(":")[2]]
        yield program
    finally:
        program.end()
    scoreboard.remove_runtime_folder(scoreboard.runtime_root(os.geteuid()) / str(program.pid))  # KILL leaves it behind


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return command("-m", "server.ports", *arguments)


def bindable(port: int, address: str = "127.0.0.1") -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


def roles(port: int) -> dict[int, str]:
    [shown] = json.loads(run("show", port, "--json").stdout)
    return {process["pid"]: process["role"] for process in shown["processes"]}


# --- Our own server ---


def test_a_server_with_clients_is_ended_and_every_client_lives(real_server: Program, start: Start) -> None:
    clients = start(CLIENTS, real_server.port, 20)
    before = clients.everybody()
    done = run("release", real_server.port, "--grace", "50s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert bindable(real_server.port)
    assert len(before) == 21
    assert clients.everybody() == before
    assert "let go after TERM" in done.stdout


def test_a_wedged_server_is_killed_after_the_grace(real_server: Program, start: Start) -> None:
    clients = start(CLIENTS, real_server.port, 3)
    before = clients.everybody()
    for pid in real_server.everybody():
        os.kill(pid, signal.SIGSTOP)
    shown = run("show", real_server.port)
    assert shown.returncode == 1
    assert "stopped (Ctrl-Z or SIGSTOP)" in shown.stdout
    done = run("release", real_server.port, "--grace", "3200ms")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "killed, 3.2 s after TERM" in done.stdout
    assert re.search(rf"waiting, [123] s of 3\.2 s \(pid {real_server.pid} is stopped\)", done.stderr)
    assert bindable(real_server.port)
    eventually(lambda: not real_server.everybody(), "all of it is gone")
    assert clients.everybody() == before


def test_a_supervisor_killed_first_leaves_no_orphan_on_the_port(real_server: Program) -> None:
    os.kill(real_server.pid, signal.SIGKILL)
    eventually(lambda: bindable(real_server.port), "the port is free")
    assert run("release", real_server.port).returncode == 0
    eventually(lambda: not real_server.everybody(), "all of it is gone")


def test_orphans_that_stay_are_each_ended(start: Start) -> None:
    server = start(PREFORK)
    workers = {int(word) for word in server.words[1:]}
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()
    assert {pid for pid, role in roles(server.port).items() if role == "listener"} == workers
    assert run("release", server.port, "--force").returncode == 0
    assert bindable(server.port)


def test_make_killport_frees_the_port_and_may_be_repeated(real_server: Program) -> None:
    make = ["make", "killport", f"PORT={real_server.port}"]
    for _ in range(2):
        done = subprocess.run(make, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "free" in done.stdout
    assert bindable(real_server.port)


def test_a_server_that_cannot_bind_names_the_holder(real_server: Program) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "server", "--port", str(real_server.port), "--discard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 1
    assert f"port {real_server.port} is held by pid {real_server.pid} (" in second.stderr
    assert f"free it with: make killport PORT={real_server.port}" in second.stderr


def test_the_root_of_a_server_is_its_supervisor_even_after_it_was_replaced(start: Start) -> None:
    first = start(PREFORK, free_port())
    assert holders.listening_root(first.port) == first.pid
    assert holders.listening_root(first.port) == first.pid
    first.end()
    assert holders.listening_root(first.port) is None
    listener = LISTEN + "listener, port = listen(port=sys.argv[1]); ready(port); wait()"
    second = start(listener, first.port)
    assert holders.listening_root(first.port) == second.pid


# --- Other programs ---


def test_a_pre_fork_server_that_is_not_ours_needs_force(start: Start) -> None:
    server = start(PREFORK)
    before = server.everybody()
    refused = run("release", server.port)
    assert refused.returncode == 3
    assert "--force" in refused.stdout
    assert server.everybody() == before
    assert run("release", server.port, "--force").returncode == 0
    assert bindable(server.port)
    eventually(lambda: not server.everybody(), "all of it is gone")


def test_a_dry_run_changes_nothing(start: Start) -> None:
    server = start(PREFORK)
    before = server.everybody()
    done = run("release", server.port, "--force", "--dry-run")
    assert done.returncode == 1
    assert f"would send TERM to pid {server.pid}" in done.stdout
    assert "4 more below" in done.stdout
    assert server.everybody() == before


def test_a_respawner_is_named_after_three_rounds(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releasing, "_WATCH_OTHERS_S", DEADLINE_S)  # it may have to wait for a core
    respawner = start(
        LISTEN
        + """
with listen()[0] as reserved:
    port = reserved.getsockname()[1]
first = True
while True:
    if os.fork() == 0:
        listener, port = listen(port=port)
        if first:
            ready(port)
        wait()
    os.wait()
    first = False
"""
    )
    [result] = release([respawner.port], Orders(force=True), say=lambda _: None)
    said = "\n".join(result.lines)
    assert result.code == HELD
    assert said.count("let go after TERM") == 3
    assert f"started by pid {respawner.pid}" in said
    assert respawner.process.poll() is None


def test_a_holder_without_listener_is_ended_only_when_told(start: Start) -> None:
    holder = start(
        LISTEN + "listener, port = listen(); ready(port); c, _ = listener.accept(); listener.close(); wait()"
    )
    clients = start(CLIENTS, holder.port, 1)
    eventually(lambda: roles(holder.port).get(holder.pid) == "accepted-only", "its part is seen")
    clients_before = clients.everybody()
    assert run("release", holder.port).returncode == 0  # it does not listen, so the port can be bound
    assert holder.process.poll() is None
    assert run("release", holder.port, "--include-accepted").returncode == 3
    assert holder.process.poll() is None
    assert run("release", holder.port, "--include-accepted", "--force").returncode == 0
    eventually(lambda: not holder.everybody(), "all of it is gone")
    assert clients.everybody() == clients_before


def test_a_holder_that_blocks_the_port_without_listening_is_named(start: Start) -> None:
    # Without SO_REUSEADDR on the old socket even a binder that sets it is refused.
    holder = start(
        LISTEN
        + """
listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen()
ready(listener.getsockname()[1]); c, _ = listener.accept(); listener.close(); wait()
"""
    )
    start(CLIENTS, holder.port, 1)
    eventually(lambda: roles(holder.port).get(holder.pid) == "accepted-only", "its part is seen")
    done = run("release", holder.port)
    assert done.returncode == 1
    assert f"pid {holder.pid}" in done.stdout
    assert "--include-accepted" in done.stdout
    done = run("release", holder.port, "--include-accepted", "--force")
    eventually(lambda: not holder.everybody(), "all of it is gone")
    # The kernel still finishes the closed connection, which its client keeps half open: nothing is left to end.
    assert (done.returncode, bindable(holder.port)) == (1, False)
    assert "nobody listens" in done.stdout


@pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (6, 8), reason="Linux lists such sockets since 6.8"
)
def test_a_holder_that_only_binds_is_named_and_ended_when_told(start: Start) -> None:
    holder = start(LISTEN + "s = socket.socket(); s.bind(('127.0.0.1', 0)); ready(s.getsockname()[1]); wait()")
    assert roles(holder.port) == {holder.pid: "bound"}
    assert run("release", holder.port, "--force").returncode == 1
    assert holder.process.poll() is None
    assert run("release", holder.port, "--force", "--include-accepted").returncode == 0
    assert bindable(holder.port)


def test_time_wait_alone_is_free_and_explained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listener.accept()
            accepted.close()  # closes first, so it is this end that waits
            assert client.recv(1) == b""
    done = run("release", port)
    assert done.returncode == 0, done.stdout
    # At least ours: the kernel may give out a port that other connections have not finished waiting on.
    assert re.search(r"\b[1-9]\d* connections? in TIME_WAIT", done.stdout)
    assert run("release", port, "--strict").returncode == 4


def test_nothing_there_is_free_and_with_strict_an_exit_code_of_its_own() -> None:
    port = free_port()
    assert run("show", port).returncode == 0
    assert run("release", port).returncode == 0
    assert run("release", port, "--strict").returncode == 4


def test_ipv6_only(start: Start) -> None:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no ::1 on this machine")
    server = start(
        LISTEN + "listener, port = listen('::1', family=socket.AF_INET6, reuse_port=True); ready(port); wait()"
    )
    shown = run("show", server.port)
    assert f"[::1]:{server.port}" in shown.stdout
    assert run("release", server.port, "--force").returncode == 0
    assert bindable(server.port, "::1")


def test_two_programs_that_share_a_port_are_ended_both_or_neither(real_server: Program, start: Start) -> None:
    share = LISTEN + "listener, port = listen(port=sys.argv[1], reuse_port=True); ready(port); wait()"
    foreign = start(share, real_server.port)
    everybody = foreign.everybody() | real_server.everybody()
    assert "2 programs share it" in run("show", foreign.port).stdout
    assert run("release", foreign.port).returncode == 3
    assert foreign.everybody() | real_server.everybody() == everybody
    assert run("release", foreign.port, "--force").returncode == 0
    assert bindable(foreign.port)
    eventually(lambda: not foreign.everybody() | real_server.everybody(), "all of it is gone")


def test_a_pid_reused_between_look_and_signal_is_left_alone(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(PREFORK)
    bystander = start("import signal; print('0', flush=True); signal.pause()")
    [holding] = holders.look([server.port])
    [seen] = [process for process in holding.processes if process.pid == server.pid]
    # The pid of the supervisor now names the bystander: start time and sockets are still those that were seen.
    reused = seen._replace(pid=bystander.pid)
    stale = holding._replace(processes=(reused,))
    monkeypatch.setattr(releasing, "look_closely", lambda *_: [stale])
    [result] = release([server.port], Orders(grace_s=0.1, force=True), say=lambda _: None)
    assert "had gone before it was signalled" in result.lines[0]
    assert bystander.process.poll() is None
    assert server.process.poll() is None


def test_a_process_that_let_go_of_the_port_is_not_signalled(start: Start) -> None:
    bystander = start("import signal; print('0', flush=True); signal.pause()")
    process = holders.read_process(bystander.pid)
    assert process is not None
    assert not releasing._signal(process._replace(links=frozenset({"socket:[1]"})), signal.SIGKILL)
    assert bystander.process.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_another_users_process_needs_any_user(start: Start) -> None:
    server = start(LISTEN + "os.setuid(65534); listener, port = listen(); ready(port); wait()")
    refused = run("release", server.port, "--force")
    assert refused.returncode == 3
    assert "belongs to user nobody; --any-user" in refused.stdout
    assert server.process.poll() is None
    assert run("release", server.port, "--force", "--any-user").returncode == 0
    assert bindable(server.port)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_listener_whose_owner_cannot_be_seen_is_reported_as_that(start: Start) -> None:
    server = start(LISTEN + "listener, port = listen(); ready(port); wait()")
    done = run_as_nobody("release", server.port, "--force", "--any-user")
    assert done.returncode == 3, done.stdout + done.stderr
    assert "a process of user root listens that cannot be seen from here" in done.stdout
    assert f"; try: sudo make killport PORT={server.port}" in done.stdout
    told = run_as_nobody("show", server.port)
    assert told.returncode == 1
    assert f"; see it with: sudo python -m server.ports show {server.port}" in told.stdout
    assert server.process.poll() is None


def run_as_nobody(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As `run`, but another user: everything is imported before the user changes, who may not read our folder."""
    imports = "import locale, os, sys; from server import scoreboard; from server.ports.__main__ import main"
    code = f"{imports}; os.setuid(65534); sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


FORGED = "\x1b[1A\x1b[2K\rport 1/tcp: nobody listens\n  free\u202e"


def test_no_command_line_writes_lines_of_its_own(start: Start) -> None:
    server = start(LISTEN + "listener, port = listen(); ready(port); wait()", FORGED)
    asked, told = run("release", server.port), run("show", server.port)
    for done in (asked, told):
        lines = done.stdout.splitlines()
        assert all(line.isprintable() for line in lines)
        assert not any(line.startswith(("port 1/tcp", "  free")) for line in lines)
        assert r"\x1b[1A\x1b[2K\rport 1/tcp: nobody listens\n  free\u202e" in done.stdout
    [shown] = json.loads(run("show", server.port, "--json").stdout)
    assert shown["processes"][0]["command"][-1] == FORGED  # a script gets the very words
    [line] = holders.describe_holder(server.port).split("\n")
    assert line.isprintable()


def test_whose_main_thread_has_ended_is_found_explained_and_ended(start: Start) -> None:
    server = start(MAINLESS)
    assert state_of(server.pid) == "Z"
    shown = run("show", server.port)
    assert shown.returncode == HELD
    assert f"  pid {server.pid} lost its main thread while others go on: " in shown.stdout
    assert " python -c " in shown.stdout or " python3 -c " in shown.stdout  # not only its name
    assert holders.listening_root(server.port) == server.pid == holders.listening_root(server.port)
    assert run("release", server.port, "--force").returncode == FREE
    assert bindable(server.port)


def test_an_ancestor_is_never_signalled(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = run("release", port, "--force", "--any-user")  # this test started it
    assert done.returncode == 3
    assert "started it" in done.stdout


def test_udp(start: Start) -> None:
    server = start(
        LISTEN
        + """
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", int(sys.argv[1])))
ready(udp.getsockname()[1])
wait()
""",
        free_port(),  # which is not the TCP port of another test's server
    )
    assert run("show", server.port).returncode == 0
    assert run("show", server.port, "--udp").returncode == 1
    assert run("release", server.port, "--udp", "--force").returncode == 0
    eventually(lambda: not server.everybody(), "all of it is gone")


@pytest.mark.parametrize("words", ["show", "show --json", "release --force --dry-run"])
def test_that_nobody_reads_changes_no_exit_code(start: Start, words: str) -> None:
    server = start(LISTEN + "listener, port = listen(); ready(port); wait()")
    for port, code in ((server.port, 1), (1, 0)):
        command = [sys.executable, "-m", "server.ports", *words.split(), str(port)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.close()
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (code, "")


def test_a_full_disk_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "server.ports", "show", "1"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "Error: stdout cannot be written: No space left on device\n")


def test_several_ports_and_ranges_at_once(start: Start) -> None:
    listener = LISTEN + "listener, port = listen(); ready(port); wait()"
    first, second = start(listener), start(listener)
    low = first.port
    done = run("release", f"{low}-{low}", second.port, "--force", "--json")
    assert done.returncode == 0, done.stdout
    assert [(entry["port"], entry["outcome"]) for entry in json.loads(done.stdout)] == [
        (low, "free"),
        (second.port, "free"),
    ]
    eventually(lambda: not first.everybody() | second.everybody(), "all of it is gone")


@pytest.mark.parametrize("inside", [False, True], ids=["to a port outside the kernel's range", "within it"])
def test_a_client_calling_out_from_the_port_is_a_client(start: Start, inside: bool) -> None:
    """It cannot be bound meanwhile, and there is nothing to free: no way is shown that would be refused."""
    with socket.create_server(("127.0.0.1", 0 if inside else free_port())) as listener:
        caller = start(
            LISTEN + "s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); ready(s.getsockname()[1]); wait()",
            listener.getsockname()[1],
        )
        accepted, _ = listener.accept()
        with accepted:
            assert roles(caller.port) == {caller.pid: "client", os.getpid(): "server"}
        done = run("release", caller.port, "--include-accepted", "--force", "--any-user", "--json")
        [result] = json.loads(done.stdout)
        said = "nothing to free: a client's connection has the port until it ends, and is left alone"
        assert (done.returncode, result["outcome"], result["lines"][0]) == (0, "client", said)
        assert "--" not in run("release", caller.port).stdout.partition(said)[2]
        assert run("release", caller.port, "--strict").returncode == 4
        assert caller.process.poll() is None


def test_a_unix_socket_is_freed_as_a_port_is(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with running("--listen", f"unix://{path}", workers=2, forked=False) as server:
        shown = run("show", f"unix://{path}", "--json")
        [held] = json.loads(shown.stdout)
        assert (shown.returncode, held["port"], held["protocol"]) == (1, str(path), "unix")
        assert {each["pid"] for each in held["processes"]} == {server.pid, *server.workers()}
        assert f"socketswarm: worker 0 [unix://{path}]" in run("show", f"unix://{path}").stdout
        second = command("-m", "server", "--listen", f"unix://{path}", "--discard")
        assert f"stop it with: make killport SOCKET={path}, or name another path" in second.stderr
        make = ["make", "killport", f"SOCKET={path}"]
        done = subprocess.run(make, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert "let go after TERM" in done.stdout
        assert server.wait() == 0
        assert not path.exists()
    assert run("show", f"unix://{path}").returncode == 0


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x1b[2Jb", "a b ", "a\udcffb"])
def test_a_socket_of_any_name_is_found_and_writes_no_lines_of_its_own(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fsencode(path))
        listener.listen()
        [holding] = holders.look([path])
        assert [process.pid for process in holding.having(holders.LISTENER)] == [os.getpid()]
        said = run("show", f"unix://{path}").stdout
    assert "listened on" in said and all(line.isprintable() for line in said.splitlines())


def test_a_server_that_lost_its_path_to_a_file_is_found_by_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.unlink()
        path.write_bytes(b"precious")
        assert "listened on" in run("show", f"unix://{path}").stdout


def test_both_ways_to_ask_the_kernel_agree(start: Start) -> None:
    server = start(PREFORK)
    start(CLIENTS, server.port, 3)
    made = 1 << ESTABLISHED
    eventually(lambda: len(list(sockets.diagnosed(made, local=server.port))) == 3, "their server's ends are there")
    asked = [row._replace(local=row.local[:4], limit=None, dropped=None) for row in sockets.of_ports([server.port])]
    assert len(asked) == 7  # a listener, and both ends of three connections
    assert sorted(asked) == sorted(sockets.listed([server.port], "tcp"))


@pytest.mark.parametrize(("answer", "code"), [("y\n", FREE), ("\n", REFUSED), ("no\n", REFUSED)])
def test_at_a_terminal_a_person_is_asked(start: Start, answer: str, code: int) -> None:
    server = start(LISTEN + "listener, port = listen(); ready(port); wait()")
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "server.ports", "release", str(server.port)]
    with ExitStack() as stack:
        person = stack.enter_context(open(ours, "r+b", buffering=0))
        with open(theirs, "r+b", buffering=0) as terminal:
            helper = subprocess.Popen(command, cwd=ROOT, stdin=terminal, stdout=subprocess.DEVNULL, stderr=terminal)
        stack.enter_context(helper)
        stack.callback(helper.kill)
        question = b""
        while not question.endswith(b"[y/N] "):
            question += person.read(1024)
        assert f"pid {server.pid} (".encode() in question
        person.write(answer.encode())
        assert helper.wait(timeout=DEADLINE_S) == code
    if code == FREE:  # it lets go of the port before it is dead
        assert server.process.wait(DEADLINE_S) == -signal.SIGTERM
    else:
        assert server.process.poll() is None


def test_a_process_that_must_not_be_signalled_is_a_refusal(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start(PREFORK)

    def forbidden(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(signal, "pidfd_send_signal", forbidden)
    [result] = release([server.port], Orders(force=True), say=lambda _: None)
    assert result.code == REFUSED
    assert "Operation not permitted" in result.lines[0]
    assert server.process.poll() is None


def test_init_is_never_signalled() -> None:
    """Whatever is allowed otherwise: the guard that cannot be switched off."""
    process = holders.read_process(1)
    assert process is not None
    everything = Orders(any_user=True, force=True, include_accepted=True)
    assert "is init" in str(releasing._forbidden(process, process, everything, ourselves=()))


@pytest.mark.parametrize("wrong", ["0", "65536", "12x", "9-8", "-1", ""])
def test_a_wrong_port_is_a_usage_error_that_names_it(wrong: str) -> None:
    done = run("show", "--", wrong)
    assert done.returncode == 2
    assert f"{wrong!r} is neither a port" in done.stderr
