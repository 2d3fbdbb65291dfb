"""`make bench`: does the report's CPU agree with what the kernel says when the server is gone?

A run with more than 10 CPU-seconds of server, whose workers are killed 20 times meanwhile; then the CPU of all server
processes as summary.json has it beside the supervisor's wait4, which includes every worker it reaped.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from servers import ROOT, eventually, session

from server import scoreboard

DEATHS = 20
UPLOADS_BETWEEN_DEATHS = 6_000


@pytest.mark.timeout(300)
def test_recorded_cpu_beside_wait4(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server", "--port", "0", "--workers", "2", "--discard"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    assert server.stdout is not None
    host = f"tcp://{server.stdout.readline().split()[2]}"
    server.stdout.close()
    load = [sys.executable, "-m", "loadtest", "run", "--host", host, "--users", "30", "--wait", "0"]
    load += ["--payloads", "64KiB", "--plan", "compare", "--phase-seconds", "12"]
    run = subprocess.Popen(
        load,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        eventually(lambda: list(tmp_path.glob("reports/runs/*/uploads.jsonl")), "the run has begun")
        state = scoreboard.read_state(server.pid)
        assert state is not None
        board = scoreboard.Scoreboard.open(state.scoreboard)
        for death in range(1, DEATHS + 1):
            target = death * UPLOADS_BETWEEN_DEATHS
            eventually(lambda: sum(slot.uploads_stored for slot in board.read()) > target, "it is busy")  # noqa: B023
            victim = list(board.read())[death % 2]
            if victim.pid:  # or its replacement is still on its way
                os.kill(victim.pid, signal.SIGKILL)
        board.close()
        run.wait(120)
    finally:
        server.terminate()
        _, _, usage = os.wait4(server.pid, 0)
        server.returncode = 0
    assert not session(server.pid)
    [summary] = tmp_path.glob("reports/runs/*/summary.json")
    recorded = json.loads(summary.read_text())["server"]["cpu_total_s"]
    really = usage.ru_utime + usage.ru_stime
    events = summary.with_name("events.jsonl").read_text().splitlines()
    births = sum(json.loads(line)["kind"] == "worker-replaced" for line in events)
    print(f"\n{births} workers replaced")
    print(f"server CPU recorded {recorded:.2f} s, wait4 {really:.2f} s, ratio {recorded / really:.4f}")
    assert really >= 10, "the run is too short to tell"
    assert abs(recorded / really - 1) <= 0.03
