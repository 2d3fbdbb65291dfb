"""Load for tests: commands of the load room as processes, each with everything that it starts.

A run starts processes in sessions of their own, so a process group does not hold them together. Each command therefore
gets a mark in its environment, which its descendants inherit: whoever carries it belongs to the command, and at the
end of every test nobody may carry it any more. Its temporary files go to a folder of its own, which must be empty then.
"""

import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from nursery import Forked, nursery
from servers import ROOT, all_pids, eventually

from reports import run_folder
from reports.pages import report_files
from reports.run_folder import Outcome, RunFolderError, RunInfo, UploadsLine
from server import scoreboard

USERS_PY = ROOT / "loadtest" / "users.py"
LOADTEST = [sys.executable, "-m", "loadtest"]
PLAIN_LOCUST = [sys.executable, "-m", "locust"]
LOCUST = [*PLAIN_LOCUST, "-f", str(USERS_PY)]
END_S = 60.0
_PROGRAMS = {
    # Locust first, which puts gevent's sockets in the place of others; then what our users import.
    "locust": ("locust.main", "loadtest.lifecycle", "loadtest.uploader"),
    "loadtest": (
        "loadtest.run",
        "loadtest.compare",
        "loadtest.upload",
        "reports.pages.drawing",
        "reports.pages.report_files",
    ),
}
"""Programs that a nursery has imported all of."""


@dataclass
class Command:
    """A command that was started in `cwd`, and everything that it started."""

    process: "subprocess.Popen[bytes] | Forked"
    cwd: Path
    temporary: Path
    mark: str
    seen: set[int] = field(default_factory=set)
    """Every pid that `living` ever found."""

    def living(self) -> dict[int, str]:
        """Command lines by pid of all living processes that carry the mark, and of the command's own, which /proc does
        not show it of when it comes from a nursery."""
        own = self.process.pid if self.process.poll() is None else None
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if folder.name == str(own) or self.mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        self.seen |= found.keys()
        return found

    def find(self, words: str) -> int:
        """The pid of a process whose command line has these words: the first that was started, once there is one."""

        def matching() -> list[tuple[int, int]]:
            found = [pid for pid, command in self.living().items() if words in command]
            return sorted((_started(pid), pid) for pid in found)  # pids begin again when there are no more

        return eventually(matching, f"a process {words!r}; it said:\n{self.said()}")[0][1]

    def find_store(self) -> Path:
        """The temporary store of its server, once it is there."""
        return eventually(lambda: list(self.temporary.glob("socketswarm-store-*")), "a temporary store")[0]

    def said(self) -> str:
        """All it wrote to standard output and standard error so far."""
        return (self.cwd / "said.txt").read_text(errors="replace")

    def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end; it said:\n{self.said()}") from None

    def ends_well(self) -> bool:
        """Wait for its end; whether its exit code says that all is well, but for a machine that was too busy. Tests
        share their cores, and what they ask is never how fast something was."""
        code = self.wait()
        outcome = run_folder.read_outcome(self.runs()[-1]) if code == 4 and self.runs() else None
        return code == 0 or (outcome is not None and is_too_busy(outcome))

    def ends_with_failures(self) -> bool:
        """As `ends_well`, of a run some of whose uploads failed."""
        return self.wait() == 1 or (self.process.returncode == 4 and self.ends_well())

    def runs(self) -> list[Path]:
        """Run folders, the oldest first."""
        return sorted(self.cwd.glob("reports/runs/*"))

    def info(self) -> RunInfo | None:
        """The newest run's run.json, once there is one."""
        try:
            return run_folder.read_run(self.runs()[-1])
        except (IndexError, RunFolderError):
            return None

    def in_phase(self, name: str) -> RunInfo:
        """Wait until this phase of the newest run has acknowledged uploads."""

        def uploads() -> RunInfo | None:
            info = self.info()
            return info if info and acked(self.runs()[-1], name) else None

        return eventually(uploads, f"uploads in {name}; it said:\n{self.said()}")


@contextmanager
def started(cwd: Path, /, *command: str, forked: bool = True, **options: Any) -> Iterator[Command]:
    """A command in a session of its own, with these `options` of Popen. Without any, and if it may be `forked`, Locust
    and ours come from a nursery. At the end nothing that it started may be left: no process (once the deadline has
    passed), no temporary file, no runtime folder of a server."""
    mark = f"STARTED_BY_TEST={uuid.uuid4().hex}"
    temporary = cwd / f"tmp-{mark[-8:]}"
    temporary.mkdir()
    name, _, value = mark.partition("=")
    environment = os.environ | {name: value, "TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    with (cwd / "said.txt").open("ab") as said:
        program = " ".join(command[:3]).removeprefix(f"{sys.executable} -m ")
        if program in _PROGRAMS and forked and not options:
            process = nursery(*_PROGRAMS[program], unbuffered=True).start(command[1:], cwd, environment, said)
        else:
            streams = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said}
            own = {"cwd": cwd, "env": environment, "start_new_session": True}
            process = subprocess.Popen(command, **streams | own | options)
    job = Command(process, cwd, temporary, mark)
    try:
        yield job
        eventually(lambda: not job.living() and process.poll() is not None, f"nothing is left of {command}")
        assert list(temporary.iterdir()) == []
        dead = job.seen - all_pids()  # a pid may be somebody else's by now, and so the folder
        assert {pid for pid in dead if (scoreboard.runtime_root(os.geteuid()) / str(pid)).exists()} == set()
        assert "Traceback" not in job.said(), job.said()
    finally:
        eventually(lambda: not _kill(job), "everything is dead")
        process.wait()


def _started(pid: int) -> float:
    """When it was started; 0 if it has ended."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return 0.0


def _kill(job: Command) -> dict[int, str]:
    for pid in job.living():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return job.living()


_BUSY = "|".join(
    (
        r"users spent [^;]*: the load process held them up",
        r"only [\d.]+ % of the [^;]* offered in phase [^;]*; (late|dropped) [^;]* is known to have been at its limit",
        r"the recorder missed [\d.]+ % of its ticks [^;]*",
    )
)
"""Broken invariants that say no more than that a process had to wait for its core or its disk."""


def is_too_busy(outcome: Outcome) -> bool:
    """Whether all that can be said against a run is that the machine kept the load, or its recorder, from going on."""
    kept = all(re.fullmatch(_BUSY, text) for text in (outcome.reason, *outcome.also_broken))
    return outcome.verdict == "NOISY" or (outcome.verdict == "INVALID" and kept)


def run(cwd: Path, *command: str) -> tuple[int, str]:
    """(exit code, all it said) of a command that ends by itself."""
    with started(cwd, *command) as job:
        return job.wait(), job.said()


def seconds(folder: Path) -> list[UploadsLine]:
    return [line for line in run_folder.read_uploads(folder) if isinstance(line, UploadsLine)]


def acked(folder: Path, phase: str | None = None) -> int:
    """Acknowledged uploads of a run, or of one of its phases."""
    lines = [line for line in seconds(folder) if phase in (None, line.phase)]
    return sum(name.count for line in lines for name in line.names.values())


def failures(folder: Path) -> dict[str, int]:
    """Failed uploads of a run by code."""
    counts: dict[str, int] = {}
    for line in seconds(folder):
        for name in line.names.values():
            for code, count in name.failures.items():
                counts[code] = counts.get(code, 0) + count
    return counts


def events(folder: Path, kind: str) -> list[run_folder.Event]:
    return [event for event in run_folder.read_events(folder) if event.kind == kind]


def assert_complete(folder: Path) -> RunInfo:
    """The run has every file, each with something in it, and its report is readable; returns its run.json."""
    info = run_folder.read_run(folder)
    assert info.ended is not None
    assert info.id == folder.name
    assert list(run_folder.read_processes(folder))
    assert list(run_folder.read_host(folder))
    assert_load_told(folder)
    assert acked(folder)
    assert list(run_folder.read_events(folder))
    assert all(phase.end_ns for phase in info.phases)
    assert_report(folder)
    return info


def built(folder: Path) -> Outcome:
    """What its report makes of a run that built none itself. Here it costs a third: bokeh is imported already."""
    report_files.build(folder)
    outcome = run_folder.read_outcome(folder)
    assert outcome is not None
    return outcome


def assert_load_told(folder: Path) -> None:
    """Each load process told of itself once a second, and a last time when it had nothing under way any more."""
    pids = pids_by_role(folder)
    ticks = list(run_folder.read_load(folder))
    assert {tick.pid for tick in ticks} == (pids.get("load-worker") or pids["load-master"])
    assert [tick.mono_ns for tick in ticks] == sorted(tick.mono_ns for tick in ticks)
    for pid in {tick.pid for tick in ticks}:
        own = [tick for tick in ticks if tick.pid == pid]
        assert len(own) > 1
        assert own[0].cpu_s < own[-1].cpu_s
        assert [tick.cpu_s for tick in own] == sorted(tick.cpu_s for tick in own)
        assert (own[-1].in_flight, own[-1].queued) == (0, 0)


def pids_by_role(folder: Path) -> dict[str, set[int]]:
    """Of all processes that were recorded. The last role of each counts: a process that somebody starts is among his
    until the recorder is told to follow it."""
    roles = {sample.pid: sample.role for tick in run_folder.read_processes(folder) for sample in tick.processes}
    pids: dict[str, set[int]] = {}
    for pid, role in roles.items():
        pids.setdefault(role, set()).add(pid)
    return pids


def assert_report(folder: Path) -> None:
    """Whatever happened to the run, there is a report that a person can read."""
    markdown = (folder / run_folder.REPORT_MD).read_text()
    assert markdown.startswith("# ")
    assert "**" in markdown.splitlines()[4]  # the verdict comes before the numbers
    html = (folder / run_folder.REPORT_HTML).read_text()
    assert html.rstrip().endswith("</html>")
    assert (folder / run_folder.SUMMARY).stat().st_size > 100
