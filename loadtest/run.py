"""The main job: `python -m loadtest run`, which is `make loadtest`.

It starts a server (unless it is told of one), Locust, and through Locust the recorder, each a process of its own in a
session of its own, so that Ctrl-C reaches this process only and it can end the others in order: first the load, with
the uploads under way finished and the recorder's last sample taken, then the server, then the temporary store. Then
it builds the report of whatever was measured. There is no Locust in this process: it must outlive Locust. Should it be
killed, its guard ends them in the same order.
"""

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TextIO

from loadtest import options as load_options
from loadtest.option_error import OptionError
from loadtest.options import LoadOptions
from loadtest.progress import Progress
from reports import run_folder, signals
from reports.guard import Guard
from reports.run_folder import Event, RunFolderError
from reports.signals import INTERRUPTED
from server.printing import in_words, one_line, show

SERVER_START_S = 20.0
SERVER_STOP_S = 10.0
LOAD_STOP_S = 30.0  # beside the drain: last batches, the recorder's last sample
POLL_S = 0.2
ROOM_TO_SPEAK_BYTES = 4096  # a block
STORE_ROOM_BYTES = 2 << 30  # payloads are at most 1 GiB, and replaced while they are still being read

OK, FAILED, USAGE = 0, 1, 2  # the others are the report's


class RunError(Exception):
    """The job cannot go on; the text says why and where to look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to run. `host` None: a server of our own, with `workers` workers, on a free port, with a temporary store
    below `store`."""

    host: str | None
    users: int
    workers: int
    store: Path | None
    """None: in memory if there is room, see `_store_parent`."""
    fields: dict[str, str | bool]
    """The load's options by field, as `options.FIELDS` names them."""
    folder: Path
    command: list[str]
    """That repeats the run."""
    brief: bool = False
    """Show only the verdict of the report: there are more runs to come."""


class Interrupts:
    """Counts what would end us (`signals.ending`) instead of dying of it: the first ends the run in order, the second
    hurries it."""

    def __init__(self) -> None:
        self.count = 0
        for number in signals.ending():
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1


def run(job: Job, interrupts: Interrupts) -> tuple[int, Path]:
    """Do the job and return the exit code and the run folder. RunError and OptionError for what a person must know."""
    options = check(job)
    try:
        job = replace(job, folder=run_folder.create(job.folder))
    except OSError as error:
        raise RunError(f"the run folder cannot be made: {in_words(error)}") from None
    try:
        with (
            Guard("the run", run_folder.build_command(job.folder)) as guard,
            _server(job, guard, interrupts) as host,
        ):
            _load(job, host, options, guard, interrupts)
        if interrupts.count and not _began(job.folder):
            raise RunError("stopped before the run began")
    except OptionError:  # which the first upload has shown, or the store: nothing was measured
        shutil.rmtree(job.folder, ignore_errors=True)
        raise
    except RunError as error:
        if not interrupts.count:
            raise
        _show(f"{error}\n", sys.stderr)
    finally:
        is_reported = _report(job)
    if interrupts.count:
        if not _began(job.folder):  # it would be in the way of who reads all runs
            shutil.rmtree(job.folder, ignore_errors=True)
        return INTERRUPTED, job.folder
    outcome = run_folder.read_outcome(job.folder) if is_reported else None
    return (FAILED if outcome is None else outcome.exit_code), job.folder


def _why_failed(folder: Path) -> str:
    """What the load found wrong with its options once it ran; empty when that is not known."""
    try:
        ended = run_folder.read_run(folder).ended
    except RunFolderError:
        return ""
    return ended.reason if ended is not None and ended.how == "failed" else ""


def _began(folder: Path) -> bool:
    return (folder / run_folder.RUN).exists()


def check(job: Job) -> LoadOptions:
    """Everything that can be wrong, before anything is started. The job's options."""
    options = load_options.validate(job.host or "tcp://127.0.0.1:1", job.fields)
    load_options.check_users(options, job.users)
    load_options.check_descriptors(options, job.users)
    load_options.check_store(options, options.load_payloads(), job.users)
    if job.host is not None:
        load_options.check_server(options, job.host)
    return options


# ── the server ────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _server(job: Job, guard: Guard, interrupts: Interrupts) -> Iterator[str]:
    """The address of the server under test; one of our own lives as long as this context."""
    if job.host is not None:
        yield job.host
        return
    try:
        store = Path(tempfile.mkdtemp(prefix="socketswarm-store-", dir=job.store or _store_parent()))
    except OSError as error:
        raise OptionError(f"no store can be made in {error.filename}: {error.strerror}") from None
    guard.will_remove(str(store))
    process = None
    try:
        process = _start_server(job, store, guard)
        yield _wait_until_listening(process, job.folder, interrupts)
    finally:
        if process is not None:
            _end(process, SERVER_STOP_S)
        shutil.rmtree(store, ignore_errors=True)


def _store_parent() -> str:
    """Where a store goes if nobody says: in memory, so that the server is measured and not the disk. On ext4, where
    replacing a file waits for its blocks, the same load had 20 times the latency. TMPDIR still decides if it is set."""
    memory = Path("/dev/shm")
    if "TMPDIR" not in os.environ and memory.is_dir() and shutil.disk_usage(memory).free >= STORE_ROOM_BYTES:
        return str(memory)
    return tempfile.gettempdir()


def _start_server(job: Job, store: Path, guard: Guard) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "server", "--port", "0", "--workers", str(job.workers), "--store", str(store)]
    if token_file := str(job.fields["token_file"]).strip():
        command += ["--token-file", token_file]
    with (job.folder / "server.log").open("wb") as log:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding=sys.stdout.encoding,
            errors="replace",
            start_new_session=True,
            preexec_fn=guard.will_end(SERVER_STOP_S),
        )


def _wait_until_listening(process: "subprocess.Popen[str]", folder: Path, interrupts: Interrupts) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], SERVER_START_S)
    line = process.stdout.readline() if ready else ""  # the server prints it, or ends
    if not line.startswith("listening on "):
        if interrupts.count:
            raise RunError("stopped before the server was ready")
        raise RunError(f"the server did not start: {_last_line(folder / 'server.log')}")
    _show(f"server    {line}", sys.stdout)
    return "tcp://" + line.split()[2]


# ── the load ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _load(job: Job, host: str, options: LoadOptions, guard: Guard, interrupts: Interrupts) -> None:
    if interrupts.count:
        return
    stop_s = LOAD_STOP_S + options.drain_s
    with (job.folder / "locust.log").open("wb") as log:
        process = subprocess.Popen(
            _locust_command(job, host),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=guard.will_end(stop_s),
        )
    try:
        code = _watch(process, job.folder, options.planned_s, interrupts)
    finally:
        _end(process, stop_s)
    if not interrupts.count and code == USAGE and (reason := _why_failed(job.folder)):
        raise OptionError(reason)
    if not interrupts.count and code < 0 and _began(job.folder):
        raise RunError(_note_kill(job.folder, signal.Signals(-code).name))
    if not interrupts.count and (code not in (OK, FAILED) or not _began(job.folder)):
        raise RunError(f"Locust ended with exit code {code}: {_last_line(job.folder / 'locust.log')}")


def _note_kill(folder: Path, by: str) -> str:
    """Locust can say nothing any more: that it was killed, which the report then gives as the cause."""
    text = f"the load process was killed by {by}"
    with suppress(OSError), closing(run_folder.Appender(folder / run_folder.EVENTS)) as events:
        events.append(Event(**run_folder.now_ns(), source="load", kind="load-process-lost", text=text, details={}))
    return text


def _locust_command(job: Job, host: str) -> list[str]:
    command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("users.py")), "--headless"]
    command += ["--host", host, "--users", str(job.users), "--spawn-rate", str(max(1, min(100, job.users)))]
    command += ["--only-summary", "--run-folder", str(job.folder), "--no-report"]
    command.append(f"--run-command={shlex.join(job.command)}")
    for option in load_options.OPTIONS:
        value = job.fields[option.field]
        if not isinstance(option.default, bool):
            command.append(f"{option.flag}={value}")
        elif value != option.default:
            command.append(option.flag if value else option.flag.replace("--", "--no-", 1))
    return command


def _watch(process: "subprocess.Popen[bytes]", folder: Path, planned_s: float, interrupts: Interrupts) -> int:
    """Show the run's progress until Locust has ended; pass interrupts on."""
    handled = 0
    with closing(Progress(folder, planned_s, lambda text: _show(f"{text}\n", sys.stderr))) as progress:
        while True:
            try:
                return process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                pass
            if interrupts.count > handled:
                # timeout(1) and make both pass on one signal: what came since the last look is one wish, not two
                first, handled = handled == 0, interrupts.count
                progress.say("stopping: finishing the uploads under way (again to end at once)")
                process.send_signal(signal.SIGTERM if first else signal.SIGKILL)
            progress.update()


# ── the end ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _end(process: "subprocess.Popen[str] | subprocess.Popen[bytes]", grace_s: float) -> None:
    """TERM, wait, KILL: whatever happens, the process is gone afterwards."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _report(job: Job) -> bool:
    """Build and show the report, if anything was measured; otherwise our error says more. Whether there is one."""
    (job.folder / run_folder.ROOM).unlink(missing_ok=True)  # Locust may have been killed
    if not _began(job.folder):
        return False
    from reports.pages import report_files  # numpy and bokeh take their time to import: no mistake waits for that

    try:
        told = report_files.build(job.folder)
    except RunFolderError as error:
        _show(f"Error: {one_line(str(error))}\n", sys.stderr)
        return False
    show(told.partition("\n")[0] if job.brief else told)
    return True


def _show(text: str, stream: TextIO) -> None:
    """What nobody reads any more ends no run: the terminal may be closed, or the pipe."""
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:  # or what is left in the buffer would make us fail at our exit
            os.dup2(nowhere.fileno(), stream.fileno())


def _last_line(path: Path) -> str:
    """What a log says last: of a program that says more after its error, that. On a full disk it says nothing."""
    lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    if lines:
        return one_line([*lines, *errors][-1])
    is_full = path.exists() and shutil.disk_usage(path).free < ROOM_TO_SPEAK_BYTES
    return f"no space is left for {path}" if is_full else f"it said nothing; see {path}"
