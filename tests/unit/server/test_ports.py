"""The port helper's decisions, each with made-up sockets and processes. What it does to real ones: integration."""

import os
import socket
from collections.abc import Callable

import pytest

from server.ports import __main__ as command
from server.ports import holders, sockets
from server.ports import release as releasing
from server.ports.holders import ACCEPTED_ONLY, BOUND, CLIENT, LISTENER, SERVER, Holding, Listener, Process
from server.ports.release import FREE, HELD, NOTHING, REFUSED, USAGE, Ask, Orders, Result

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:3039 00000000:0000 0A 00000000:00000002 00:00000000 00000000  1000        0 501 1 0 100 0 0 10 0
   1: 0100007F:3039 0100007F:9C41 01 00000000:00000000 00:00000000 00000000  1000        0 502 1 0 20 4 30 10 -1
   2: 0100007F:9C41 0100007F:3039 01 00000000:00000000 00:00000000 00000000  1001        0 503 1 0 20 4 30 10 -1
   3: 0100007F:3039 0100007F:9C42 06 00000000:00000000 03:00001770 00000000     0        0 0 3 0
10000: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 504 1 0 100 0 0 10 0
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when
   0: 00000000000000000000000001000000:3039 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 \
00000000  1000        0 601 1 0 100 0 0 10 0
"""

UNKNOWN_USER = 65000


def process(pid: int, *argv: str, parent: int = 1, role: str = LISTENER, links: str = "a", name: str = "x") -> Process:
    return Process(pid, parent, 100 + pid, 0, name, "sleeping", argv or ("x",), role, frozenset(links))


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Process]]:
    """Make these the only processes there are."""

    def there_are(*processes: Process) -> list[Process]:
        for reader in (holders, releasing):
            monkeypatch.setattr(reader, "read_process", {process.pid: process for process in processes}.get)
        return list(processes)

    return there_are


# --- Look ---


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/net/tcp": TCP, "/proc/net/tcp6": TCP6, "/proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n"}
    for reader in (holders, sockets):
        monkeypatch.setattr(reader, "kernel_text", lambda path: files.get(path, ""))


@pytest.fixture
def without_diagnostics(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object, **__: object) -> None:
        raise OSError("no such protocol")

    monkeypatch.setattr(sockets, "diagnosed", unsupported)


@pytest.mark.usefixtures("proc", "without_diagnostics")
def test_every_socket_on_the_port_gets_its_part() -> None:
    table = holders._tables([12345], udp=False)[12345]
    assert table.parts[LISTENER] == {"socket:[501]", "socket:[601]"}
    assert table.parts[ACCEPTED_ONLY] == {"socket:[502]"}
    assert table.parts[CLIENT] == {"socket:[503]"}
    assert len(table.time_wait) == 1
    assert [listener.place for listener in table.listening] == ["127.0.0.1:12345", "[::1]:12345"]
    assert [(listener.uid, listener.queue) for listener in table.listening] == [(1000, 2), (1000, 0)]


@pytest.mark.usefixtures("proc", "without_diagnostics")
def test_from_the_clients_side_the_server_is_the_other_end() -> None:
    """Asked for the client's port: neither end listens on it, and the kernel hands out such ports to who calls."""
    table = holders._tables([0x9C41], udp=False)[0x9C41]
    assert (table.parts[CLIENT], table.parts[SERVER]) == ({"socket:[503]"}, {"socket:[502]"})


@pytest.mark.usefixtures("proc", "without_diagnostics")
def test_whoever_calls_a_listener_is_its_client_whatever_the_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server on a port that the kernel hands out, called from one that it does not."""
    rows = TCP.replace(":3039", ":9C40").replace(":9C41", ":03E8")
    monkeypatch.setattr(sockets, "kernel_text", lambda path: rows if path == "/proc/net/tcp" else "")
    table = holders._tables([0x9C40], udp=False)[0x9C40]
    assert "socket:[503]" in table.parts[CLIENT] and not table.parts[SERVER]


@pytest.mark.usefixtures("proc")
def test_many_ports_are_looked_up_in_one_reading() -> None:
    tables = holders._tables(range(12340, 12360), udp=False)
    assert [port for port, table in tables.items() if table.listening] == [12345]


def test_of_several_parts_the_strongest_counts(family: Callable[..., list[Process]]) -> None:
    family(process(1), process(2), process(3))
    parts = {LISTENER: {"l"}, CLIENT: {"c"}, ACCEPTED_ONLY: {"a"}, BOUND: set[str]()}
    table = holders._Table([], parts, [])
    players = holders._players(table, {1: {"l", "c", "a"}, 2: {"c", "a"}, 3: {"a"}, 4: {"l"}, 5: {"z"}})
    assert [(player.pid, player.role, player.links) for player in players] == [
        (1, LISTENER, {"l"}),
        (2, CLIENT, {"c"}),
        (3, ACCEPTED_ONLY, {"a"}),
    ]


def test_a_name_with_brackets_and_spaces_does_not_confuse_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    stat = "1 (a) R (b) S 7 " + " ".join(["0"] * 17) + " 4242 0"
    monkeypatch.setattr(holders, "kernel_text", {"/proc/1/stat": stat, "/proc/1/cmdline": "/bin/a b\0-x\0"}.get)
    found = holders.read_process(1)
    assert found is not None
    assert (found.name, found.state, found.parent, found.start_ticks) == ("a) R (b", "sleeping", 7, 4242)
    assert found.command == "a b -x"


def test_a_listener_without_a_visible_owner_is_unseen() -> None:
    seen = Listener("a", socket.AF_INET, "127.0.0.1", 1, 0, 0)
    unseen = seen._replace(link="b")
    assert Holding(1, False, (seen, unseen), (process(5),), 0).unseen == [unseen]


# --- Climb ---


def test_the_root_is_the_topmost_ancestor_with_the_same_socket(family: Callable[..., list[Process]]) -> None:
    top, middle, worker = process(10), process(11, parent=10, links="z"), process(12, parent=11)
    family(top, middle, worker)
    assert holders.roots_of([worker, top]) == [top]


def test_per_worker_sockets_have_one_root(family: Callable[..., list[Process]]) -> None:
    everybody = family(process(10, links="ab"), process(11, parent=10, links="a"), process(12, parent=10, links="b"))
    assert holders.roots_of(everybody) == [everybody[0]]


@pytest.mark.parametrize("launcher", ["bash", "make", "systemd"])
def test_climbing_ends_below_what_only_launches(family: Callable[..., list[Process]], launcher: str) -> None:
    server = process(11, parent=10)
    everybody = family(process(10, name=launcher), server)
    assert server in holders.roots_of(everybody)


def test_climbing_ends_below_ourselves(family: Callable[..., list[Process]]) -> None:
    us, server = family(process(10), process(11, parent=10))
    assert holders.roots_of([us, server], stop={10}) == [us, server]


def test_orphans_are_roots_each(family: Callable[..., list[Process]]) -> None:
    orphans = family(process(11), process(12))
    assert holders.roots_of(orphans) == orphans


# --- Guard ---


@pytest.mark.parametrize(
    ("argv", "ours"),
    [
        (("python", "-m", "server", "--port", "1"), True),
        (("/x/.venv/bin/python3.11", "-u", "-m", "server"), True),
        (("python", "-m", "locust", "-f", "x.py"), True),
        (("/x/bin/python", "/x/bin/locust", "--worker"), True),
        (("/x/bin/locust",), True),
        (("python", "-m", "server.ports"), False),
        (("python", "-m", "http.server"), False),
        (("vim", "-m", "server"), False),
        (("python", "edit.py", "locust"), False),
        (("nginx: master process",), False),
        ((), False),
    ],
)
def test_ours_is_told_by_the_command_line(argv: tuple[str, ...], ours: bool) -> None:
    unborn = 1 << 30  # no state file either
    assert releasing._is_ours(process(unborn)._replace(argv=argv)) is ours


def refusals(targets: list[Process], orders: Orders, ask: Ask | None = None) -> list[str]:
    holding = Holding(1, False, (), tuple(targets), 0)
    return releasing._refusals(holding, targets, targets, orders, {77}, ask)


def test_ourselves_are_refused_whatever_is_allowed() -> None:
    assert "started it" in refusals([process(77)], Orders(force=True, any_user=True))[0]


def test_another_user_is_refused_unless_allowed() -> None:
    theirs = process(5)._replace(uid=UNKNOWN_USER)
    assert "--any-user" in refusals([theirs], Orders(force=True))[0]
    assert refusals([theirs], Orders(force=True, any_user=True)) == []


def test_what_our_server_made_another_users_is_ours(family: Callable[..., list[Process]]) -> None:
    server = process(5, "python", "-m", "server")._replace(uid=os.geteuid())
    helper = process(6, parent=5)._replace(uid=UNKNOWN_USER)
    assert refusals(family(server, helper), Orders(force=True)) == []
    stranger = server._replace(argv=("nginx",))
    assert "pid 6" in refusals(family(stranger, helper), Orders(force=True))[0]
    assert len(refusals(family(server._replace(uid=UNKNOWN_USER), helper), Orders(force=True))) == 2


def test_what_is_not_ours_needs_force_or_a_yes() -> None:
    stranger = process(1 << 30, "nc", "-l", "1")
    assert "--force" in refusals([stranger], Orders())[0]
    assert "--force" in refusals([stranger], Orders(), ask=lambda _: False)[0]
    assert refusals([stranger], Orders(), ask=lambda _: True) == []
    assert refusals([stranger], Orders(force=True)) == []


def test_nobody_is_asked_about_a_port_that_cannot_become_free_anyway() -> None:
    stranger, ourselves = process(1 << 30, "nc"), process(77)
    asked: list[str] = []
    assert refusals([stranger, ourselves], Orders(), ask=lambda question: bool(asked.append(question)))
    assert asked == []


def test_clients_are_never_among_those_to_signal() -> None:
    assert CLIENT not in Orders(include_accepted=True, any_user=True, force=True).roles
    assert Orders().roles == (LISTENER,)


# --- Tell ---


@pytest.mark.parametrize(
    ("line", "unit"),
    [
        ("0::/system.slice/nginx.service\n", "nginx.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope\n", None),
        ("0::/user.slice/user-1000.slice/user@1000.service\n", None),
        ("0::/\n", None),
        ("", None),
    ],
)
def test_the_systemd_service_is_named(monkeypatch: pytest.MonkeyPatch, line: str, unit: str | None) -> None:
    monkeypatch.setattr(releasing, "kernel_text", lambda _: line)
    assert releasing._unit(process(5)) == unit


def test_who_started_it_is_the_parent_unless_that_is_gone(family: Callable[..., list[Process]]) -> None:
    _, child = family(process(10, "respawner"), process(11, parent=10))
    assert releasing._starter([child]) == "which is started by pid 10 (respawner): end that first"
    assert "cannot be named" in releasing._starter([process(12, parent=9)])
    assert "cannot be named" in releasing._starter([])


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5), ("500ms", 0.5), ("2min", 120), ("1.5", 1.5), ("0", 0)])
def test_durations(text: str, seconds: float) -> None:
    assert command._duration_s(text) == seconds


@pytest.mark.parametrize("arguments", [[], ["show"], ["free", "1"], ["release", "1", "--grace", "5x"], ["show", "1e3"]])
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == USAGE
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: ")


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("unix://a.sock", "'unix://a.sock' is not the path of a socket: write unix:///PATH, from the root on"),
        ("unix:///", "'/' is a folder, not a socket"),
        ("unix:///etc/passwd", "'/etc/passwd' is a file, not a socket"),
        ("unix:///dev/null", "'/dev/null' is a file, not a socket"),
        ("tcp://user:hunter2@127.0.0.1:1", "what was given is neither a port"),
        ("unix://user:hunter2@a/b", "what was given is not the path of a socket"),
    ],
)
def test_what_cannot_be_listened_on_is_told_in_a_line(
    place: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for asked in ("show", "release"):
        with pytest.raises(SystemExit) as ended:
            command.main([asked, place])
        [line] = capsys.readouterr().err.splitlines()
        assert ended.value.code == USAGE
        assert line.startswith(f"Error: argument PORT: {what}")


@pytest.mark.parametrize(
    ("codes", "strict", "expected"),
    [
        ([FREE], True, 0),
        ([NOTHING], False, 0),
        ([NOTHING, FREE], True, 4),
        ([FREE, HELD, NOTHING], True, 1),
        ([HELD, REFUSED], False, 3),
    ],
)
def test_of_several_ports_the_worst_counts(
    monkeypatch: pytest.MonkeyPatch, codes: list[int], strict: bool, expected: int
) -> None:
    results = [Result(Holding(1, False, (), (), 0), code, []) for code in codes]
    monkeypatch.setattr(command, "release", lambda *_, **__: results)
    assert command.main(["release", "1", *(["--strict"] if strict else [])]) == expected


def test_whoever_cannot_bind_is_told_the_holder_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch, family: Callable[..., list[Process]]
) -> None:
    holder = process(4711, "/x/bin/python", "-m", "server", "--port", "12345")
    family(holder)
    monkeypatch.setattr(holders, "look", lambda _: [Holding(12345, False, (), (holder,), 0)])
    assert holders.describe_holder(12345) == (
        "port 12345 is held by pid 4711 (python -m server --port 12345); free it with: make killport PORT=12345"
    )
    monkeypatch.setattr(holders, "look", lambda _: [Holding(12345, False, (), (), 1)])
    assert "nobody listens" in holders.describe_holder(12345)
    unseen = Listener("a", socket.AF_INET, "0.0.0.0", 12345, UNKNOWN_USER, 0)
    monkeypatch.setattr(holders, "look", lambda _: [Holding(12345, False, (unseen,), (), 0)])
    assert f"a process of user {UNKNOWN_USER} listens that cannot be seen" in holders.describe_holder(12345)


def test_a_stuck_server_is_explained() -> None:
    listener = Listener("a", socket.AF_INET, "127.0.0.1", 1, 0, 27)
    stopped = process(5)._replace(state="stopped")
    notes = "\n".join(holders.notes_on(Holding(1, False, (listener,), (stopped,), 3)))
    assert "pid 5 stopped (Ctrl-Z or SIGSTOP)" in notes
    assert "waiting to be accepted: 27 connections" in notes
    assert "3 connections in TIME_WAIT" in notes
