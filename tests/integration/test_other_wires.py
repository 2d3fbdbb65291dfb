"""Other protocols than ours, as real runs of Locust: web servers, and one that somebody wrote for themselves."""

import shutil
import signal
import socket

import pytest
from benches import NGINX, nginx
from headless import host_of, load, measured, script, together, users
from loads import acked, assert_complete, built, failures, started
from servers import ROOT, eventually, free_port, running
from slow import first_of

from loadtest import payloads
from reports import run_folder


def accepts(port):
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_a_web_server(tmp_path):
    """In both models; and one that says no."""
    port = free_port()
    with script(tmp_path, "http_store.py", str(port)):
        eventually(lambda: accepts(port), "the web server listens")
        host, modes = f"http://127.0.0.1:{port}", ["--uploads-per-connection", "0,1"]
        commands = {
            "open": load(f"{host}/dir", *modes, "--arrival-rate", 100, "--no-report"),
            "closed": load(f"{host}/dir/", *modes, *users(3), "--wait", "10ms", "--no-report"),
            "refused": load(f"{host}/elsewhere", "--plan", "long", "--arrival-rate", 50, "--no-report"),
        }
        opened, closed, refused = together(tmp_path, commands)
    assert opened.wait() == 0, opened.said()
    assert built(opened.runs()[0]).exit_code in (0, 4)  # 4 when the machine was too busy
    assert_complete(opened.runs()[0])
    assert [acked(opened.runs()[0], phase.name) for phase in measured(opened.runs()[0])] == [100, 100]
    assert "the server shows no scoreboard" in (opened.runs()[0] / run_folder.REPORT_MD).read_text()
    assert closed.wait() == 0, closed.said()
    for phase in measured(closed.runs()[0]):
        assert acked(closed.runs()[0], phase.name)
    assert refused.wait() == 1
    assert failures(refused.runs()[0]) == {"http_503": 50}


def test_a_protocol_of_ones_own(tmp_path):
    """Found where Locust was started. Its failures are counted under its own words."""
    port, here = free_port(), tmp_path / "here"
    here.mkdir()
    shutil.copy(ROOT / "tests" / "line_wire.py", here)
    with script(tmp_path, "line_wire.py", str(port)):
        eventually(lambda: accepts(port), "the server listens")
        options = ["--wire", "line_wire:LineWire", "--plan", "long", "--arrival-rate", 100, "--no-report"]
        with started(here, *load(f"tcp://127.0.0.1:{port}", *options)) as job:
            assert job.wait() == 1, job.said()
    [folder] = job.runs()
    chosen = payloads.generated(payloads.parse_mix("4KiB"), 1, with_digests=False)
    refused = sum("-3-" in name for _, name in map(chosen.pick_arrival, range(100)))
    assert failures(folder) == {"said_no": refused}
    assert acked(folder) == 100 - refused


@pytest.mark.parametrize("where", first_of(["encode(self, name, size_bytes, *, close)", "__init__(self, target)"]))
def test_a_wire_that_fails_before_anything_waits(tmp_path, where):
    """Users without a pause leave the others their turn: batches go out, and a signal ends the run."""
    shutil.copy(ROOT / "tests" / "line_wire.py", tmp_path)
    mistake = f"    def {where}:\n        raise ZeroDivisionError"
    (tmp_path / "hasty.py").write_text(f"import line_wire\n\nclass HastyWire(line_wire.LineWire):\n{mistake}\n")
    with running() as server:
        options = [*users(3), "--wire", "hasty:HastyWire", "--wait", "0", "--plan", "long", "--phase-seconds", 60]
        with started(tmp_path, *load(host_of(server), *options, "--no-report", "--logfile", "log")) as job:
            eventually(lambda: job.runs() and failures(job.runs()[0]), "failures are told")
            job.process.send_signal(signal.SIGTERM)
            job.wait()
    [folder] = job.runs()
    ended = run_folder.read_run(folder).ended
    assert ended is not None
    assert ended.how == "stopped"
    assert failures(folder).keys() == {"client_failed"}
    assert (tmp_path / "log").read_text().count("ZeroDivisionError") == 2  # the first one's traceback


@pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light")
def test_nginx(tmp_path):
    folder = tmp_path / "nginx"
    folder.mkdir()
    with nginx(folder, "dav_methods PUT;") as port:
        options = ["--arrival-rate", 100, "--uploads-per-connection", "0,1", "--no-report"]
        with started(tmp_path, *load(f"http://127.0.0.1:{port}/", *options)) as job:
            assert job.wait() == 0, job.said()
    [found] = job.runs()
    assert failures(found) == {}
    assert [acked(found, phase.name) for phase in measured(found)] == [100, 100]
    sizes = {path.stat().st_size for path in (folder / "store").iterdir()}
    assert sizes == {4096}
    assert len(list((folder / "store").iterdir())) == payloads.NAMES_PER_PAYLOAD * payloads.VARIANTS_PER_SIZE
