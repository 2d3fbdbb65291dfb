"""A recording of its own: a server that something else loads, or a command from its start to its end, as a run folder.

`python -m reports record` writes what a run of ours would have, but for the uploads: `build` makes a report of costs.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import msgspec
import psutil

from reports import environment, run_folder, signals
from reports.guard import Guard
from reports.missing_values import read
from reports.recording import recorder
from reports.recording.observed_server import is_local, why_unseen
from reports.recording.recorder import Subject
from reports.run_folder import Ending, Phase, RunFolderError, RunInfo, ServerInfo
from server.printing import one_line, tell

COMMAND_ENDS_S = 10.0  # after it was told to; then it is killed


def record(out: Path, subject: Subject, command: Sequence[str], interval_s: float, load_pid: int | None = None) -> int:
    """Record until one of `signals.ending()`, or the end of the process that the subject names; with a `command`, of
    that command, which is told to end by them too. Returns its exit code, as a shell has it; without one, 0.
    RunFolderError when `out` holds a run already or cannot be written, or the command cannot be started."""
    if os.access(out / run_folder.RUN, os.F_OK):  # never an error: what is wrong with `out` is said when it is made
        raise RunFolderError(f"{out} holds a run already; give another folder with --out")
    if not command:
        with _nothing_left(out):
            _record(out, subject, None, interval_s, load_pid)
        return 0
    with Guard("the recording", one_line(run_folder.build_command(out))) as guard, _nothing_left(out):
        process = _start(command, guard)
        try:
            _record(out, replace(subject, pid=process.pid), process, interval_s, load_pid)
        finally:
            code = _end(process)
    return 128 - code if code < 0 else code


@contextmanager
def _nothing_left(out: Path) -> Iterator[None]:
    """Of a recording that fails before its first sample is written: it would be in the way of the next, and of who
    reads all runs."""
    paths = [*(out / name for name in recorder.FILES), out, *out.parents]
    absent = [path for path in paths if not os.access(path, os.F_OK)]
    try:
        yield
    except RunFolderError:
        if not os.access(out / run_folder.RUN, os.F_OK):
            for path in absent:
                with suppress(OSError):  # which was never made, or somebody else uses meanwhile
                    path.rmdir() if path.is_dir() else path.unlink()
        raise


def _start(command: Sequence[str], guard: Guard) -> "subprocess.Popen[bytes]":
    hand_over = guard.will_end(COMMAND_ENDS_S)

    def begin() -> None:
        signals.give_back()
        hand_over()

    try:
        return subprocess.Popen(command, preexec_fn=begin)
    except OSError as error:
        raise RunFolderError(f"cannot start {command[0]}: {error.strerror}") from None


def _end(process: "subprocess.Popen[bytes]") -> int:
    """Its exit code, once it has ended."""
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(COMMAND_ENDS_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _record(
    out: Path, subject: Subject, process: "subprocess.Popen[bytes] | None", interval_s: float, load_pid: int | None
) -> None:
    info = _describe(out, subject)

    def started(server: ServerInfo | None) -> None:
        _write(out, msgspec.structs.replace(info, server=server))
        tell(f"recording {subject} ({_who(subject, server)}) into {out}; Ctrl-C ends it")

    def pass_on(number: int, _: FrameType | None) -> bool:
        """A command that was told to end is recorded until it has. Only keys at the terminal reach it by themselves."""
        if process is None or process.poll() is not None:
            return False
        if number not in (signal.SIGINT, signal.SIGQUIT):
            process.terminate()
        return True

    server = recorder.record(
        out, subject, load_pid=load_pid, interval_s=interval_s, control=None, started=started, on_first_signal=pass_on
    )
    end_ns = time.monotonic_ns()
    phases = [msgspec.structs.replace(info.phases[0], end_ns=end_ns)]
    ended = Ending(how="completed", reason="the recording was ended")
    _write(out, msgspec.structs.replace(info, server=server, phases=phases, ended=ended))
    lasted_s = (end_ns - info.started_mono_ns) / 1e9
    tell(f"recorded {lasted_s:.1f} s; make the report with: {run_folder.build_command(out)}")


def _who(subject: Subject, server: ServerInfo | None) -> str:
    """Whom it is that is recorded, or why that is nobody."""
    if server is not None:
        more = ", another user's: to see its memory, files and disk too, record as that user, or as root"
        return f"pid {server.pid}{more if _is_anothers(server.pid) else ''}"
    if subject.pid is not None or subject.port is None:
        return "it has ended already"
    if not is_local(subject.host):
        return f"{subject.host} is not this machine: no process of the server is recorded"
    return why_unseen(subject.port) or "nobody listens there yet"


def _is_anothers(pid: int) -> bool:
    """Whether the kernel hides a part of this process from our user."""
    uids = read(lambda: psutil.Process(pid).uids())
    return uids is not None and os.geteuid() not in (0, uids.effective)


def _write(out: Path, info: RunInfo) -> None:
    try:
        run_folder.write_whole(out / run_folder.RUN, info)
    except OSError as error:
        raise RunFolderError(f"cannot record into {out}: {error.strerror}") from error


def _describe(out: Path, subject: Subject) -> RunInfo:
    stamp = run_folder.now_ns()
    return RunInfo(
        id=out.resolve().name,
        label="recording",
        command=["python", "-m", "reports", *sys.argv[1:]],
        host="" if subject.port is None else f"tcp://{subject.host}:{subject.port}",
        users=0,
        model="none",
        load_options={},
        seed=0,
        git_commit=None,
        git_dirty=None,
        environment=environment.fingerprint(),
        started_mono_ns=stamp["mono_ns"],
        started_wall_ns=stamp["wall_ns"],
        phases=[Phase(name="recording", kind="measure", uploads_per_connection=0, start_ns=stamp["mono_ns"])],
    )
