"""What the kernel counts of TCP, of real sockets, and of kernels that count less."""

import socket
from contextlib import ExitStack

from servers import eventually

from reports.recording import kernel_tcp
from reports.run_folder import AcceptQueue
from server.ports import sockets


def test_connections_that_nobody_accepts_wait_in_the_queue():
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=7))
        port = listener.getsockname()[1]
        assert kernel_tcp.accept_queues(port) == [AcceptQueue(waiting=0, limit=7, dropped=0)]
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        eventually(lambda: kernel_tcp.accept_queues(port) == [AcceptQueue(waiting=3, limit=7, dropped=0)], "three wait")
        assert kernel_tcp.states(port) == {"established": 3}
        stack.enter_context(listener.accept()[0])
        assert kernel_tcp.accept_queues(port) == [AcceptQueue(waiting=2, limit=7, dropped=0)]


def test_connections_that_find_no_room_are_counted_where_they_were_dropped():
    """A queue of 1 holds 2: the kernel drops what comes when there are more than its limit."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1))
        for _ in range(6):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        [queue] = kernel_tcp.accept_queues(listener.getsockname()[1])
        assert queue.limit == 1 and queue.waiting == 2
        assert queue.dropped >= 4


def test_each_socket_of_a_port_has_a_queue_in_the_order_of_opening():
    with ExitStack() as stack:
        port = 0
        for backlog in (5, 6):
            listener = stack.enter_context(socket.socket())
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen(backlog)
            port = listener.getsockname()[1]
        assert [queue.limit for queue in kernel_tcp.accept_queues(port)] == [5, 6]


def test_a_connection_that_one_end_has_closed():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0]:
            client.shutdown(socket.SHUT_WR)
            eventually(lambda: kernel_tcp.states(port) == {"close-wait": 1}, "the server's end knows")


def test_nobody_listens():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        assert kernel_tcp.accept_queues(port) == []
        assert kernel_tcp.states(port) == {}


def test_a_kernel_without_diagnostics(monkeypatch):
    def unsupported(*_, **__):
        raise OSError("no such protocol")

    monkeypatch.setattr(sockets, "diagnosed", unsupported)
    assert kernel_tcp.accept_queues(1) is None
    assert kernel_tcp.states(1) is None


def test_all_counters_are_there_and_count():
    before = kernel_tcp.counters()
    assert set(before) <= {name for names in kernel_tcp.COUNTERS.values() for name in names}
    assert {"ActiveOpens", "ListenOverflows", "RetransSegs"} <= set(before)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        socket.create_connection(listener.getsockname()).close()
    assert kernel_tcp.counters()["ActiveOpens"] > before["ActiveOpens"]


def test_counters_of_other_kernels(tmp_path):
    snmp = tmp_path / "snmp"
    snmp.write_text("Ip: Forwarding\nIp: 1\nTcp: New RetransSegs MaxConn\nTcp: 5 7 -1\n")
    assert kernel_tcp.counters((str(snmp), str(tmp_path / "missing"))) == {"RetransSegs": 7}


def test_sockets_in_use(tmp_path):
    path = tmp_path / "sockstat"
    path.write_text("sockets: used 12\nTCP: inuse 3 orphan 0 tw 44 alloc 9 mem 336\nUDP: inuse 0 mem 0\n")
    tcp = kernel_tcp.in_use(str(path))
    assert (tcp["inuse"], tcp["tw"]) == (3, 44)
    path.write_text("sockets: used 12\n")
    assert kernel_tcp.in_use(str(path)) == {}
    assert kernel_tcp.in_use(str(tmp_path / "missing")) == {}
