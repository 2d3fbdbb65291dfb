"""A run that is ended by Ctrl-C, TERM or a closed terminal, at any moment: nothing stays behind, and of what was
measured there is a report.

The three ways are tried at the same time, each on a run of its own: most of a run is waiting.
"""

import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from loads import END_S, LOADTEST, assert_complete, assert_report
from slow import first_of
from terminals import WAYS, at_a_terminal, close_the_terminal, exit_code, shown_until

from reports import run_folder
from reports.pages import report_files
from reports.run_folder import RunFolderError

RUN = [*LOADTEST, "run", "--users", "2", "--workers", "1", "--plan", "long", "--payloads", "4KiB", "--warm-up", "200ms"]
LONG = ["--phase-seconds", "600"]
SHORT = ["--phase-seconds", "1"]
INTERRUPTED = 130

# ── moments ───────────────────────────────────────────────────────────────────────────────────────────────────────


def while_python_imports(job):
    return maps(job.process.pid, "msgspec")


def before_the_server_listens(job):
    return has(job, "server.log")


def while_locust_starts(job):
    return has(job, "locust.log")


def in_the_ramp_up(job):
    return has(job, run_folder.RUN)


def in_a_measure_phase(job):
    return phase_kind(job) == "measure"


def in_the_drain(job):
    return phase_kind(job) == "drain"


def while_the_report_is_built(job):
    """All that the run had started has ended; at the latest once there is a report."""
    info, pid = job.info(), job.process.pid
    try:
        if info is not None and info.ended and not Path(f"/proc/{pid}/task/{pid}/children").read_text():
            return True
    except OSError:  # it has ended
        pass
    return after_the_report(job)


def after_the_report(job):
    return has(job, run_folder.REPORT_HTML)


AT_THE_END = [in_the_drain, while_the_report_is_built, after_the_report]
MOMENTS = [while_python_imports, before_the_server_listens, while_locust_starts, in_the_ramp_up, *AT_THE_END]


def maps(pid, package):
    return f"/{package}/" in Path(f"/proc/{pid}/maps").read_text()


def has(job, name):
    return any((folder / name).exists() for folder in job.runs())


def phase_kind(job):
    info = job.info()
    return info.phases[-1].kind if info is not None and info.phases else None


# ── what must be left ─────────────────────────────────────────────────────────────────────────────────────────────


def assert_folder(job):
    """A report that is whole, or a folder of which `build` says in one line why it has none."""
    for folder in job.runs():
        if (folder / run_folder.RUN).exists():
            assert_report(folder)
            assert run_folder.read_outcome(folder) is not None
        else:  # it was killed
            with pytest.raises(RunFolderError, match=r"is not a run folder: it has no run\.json$"):
                report_files.build(folder)
        assert list(folder.glob(".*")) == []  # what was to be put in place whole


@pytest.mark.parametrize(
    ("moment", "ways"),
    first_of([(in_a_measure_phase, WAYS[:1]), (in_a_measure_phase, WAYS[1:]), *((m, WAYS) for m in MOMENTS)]),
    ids=["in_a_measure_phase", "in_a_measure_phase-otherwise", *(moment.__name__ for moment in MOMENTS)],
)
def test_a_run_is_ended(tmp_path, moment, ways):
    command = [*RUN, *(SHORT if moment in AT_THE_END else LONG)]
    with ExitStack() as stack:
        runs = [(*stack.enter_context(at_a_terminal(tmp_path / way.__name__, *command)), way) for way in ways]
        over = end_each_when(runs, [moment] * len(runs))
        for job, terminal, _ in runs:
            code = exit_code(job, terminal)
            if job not in over:  # such a run may have ended by itself
                assert code == INTERRUPTED, terminal.shown()
                assert all((folder / run_folder.RUN).exists() for folder in job.runs())
            assert_folder(job)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
def test_a_run_is_ended_whenever(tmp_path, seed):
    """Between the moments that have a name there are others."""
    chance = random.Random(seed)
    with ExitStack() as stack:
        runs = []
        for number in range(3):
            job, terminal = stack.enter_context(at_a_terminal(tmp_path / str(number), *RUN, *LONG))
            runs.append((job, terminal, chance.choice(WAYS)))
        end_each_when(runs, [after(chance.uniform(0.1, 4.0)) for _ in runs])
        for job, terminal, _ in runs:
            assert exit_code(job, terminal) == INTERRUPTED
            assert_folder(job)


def after(seconds):
    """So long after our code began to run: what happens before that is between the shell, `setsid` and Python."""
    due_s = []

    def has_come(job):
        if not due_s and while_python_imports(job):
            due_s.append(time.monotonic() + seconds)
        return bool(due_s) and time.monotonic() >= due_s[0]

    return has_come


def end_each_when(runs, moments):
    """Each run in its way as soon as its own moment has come. Returns those that had their report already: it was the
    moment, or it was missed."""
    over = []
    left = list(zip(runs, moments, strict=True))
    deadline_s = time.monotonic() + END_S
    while left:
        for (job, terminal, end), moment in list(left):
            shown = terminal.shown()
            assert time.monotonic() < deadline_s, f"not in time; it showed:\n{shown}"
            if moment(job):
                if after_the_report(job):
                    over.append(job)
                end(job, terminal)
                left = [(run, m) for run, m in left if run[0] is not job]
        time.sleep(0.005)
    return over


@pytest.mark.slow
def test_a_run_outlives_its_terminal_under_nohup(tmp_path):
    with at_a_terminal(tmp_path / "run", "nohup", *RUN, *SHORT) as (job, terminal):
        shown_until(terminal, lambda: in_the_ramp_up(job), "the run's begin")
        close_the_terminal(job, terminal)
        assert exit_code(job, terminal) in (0, 4)  # 4: the machine was too busy
    [folder] = job.runs()
    assert assert_complete(folder).ended.how == "completed"
