"""Two sets of options run in turn and compared: `python -m loadtest compare`."""

import json
import signal

import pytest
from in_process import called
from loads import LOADTEST, is_too_busy, started
from servers import eventually

from loadtest.__main__ import cli
from reports import run_folder

COMPARE = [*LOADTEST, "compare"]
SHORT = ["--users", "2", "--plan", "long", "--phase-seconds", "1", "--warm-up", "0.2s", "--payloads", "4KiB"]
LONG = ["--users", "2", "--plan", "long", "--phase-seconds", "600"]


def compared(cwd):
    """The one comparison that was written."""
    [written] = cwd.glob("reports/comparisons/*/comparison.json")
    return json.loads(written.read_text())


@pytest.mark.slow
def test_in_turned_order_and_compared(tmp_path):
    """Too few to tell, which is an exit code of its own: silence would pass for "no difference"."""
    with started(tmp_path, *COMPARE, "--a", "--workers 1", "--b", "--workers 2", "--pairs", "2", *SHORT) as job:
        for number in range(1, 5):
            eventually(lambda number=number: f"run {number} of 4" in job.said() or job.process.poll(), f"run {number}")
        assert job.wait() == 4, job.said()
    infos = [run_folder.read_run(folder) for folder in job.runs()]
    assert [info.label for info in infos] == ["A workers 1", "B workers 2", "B workers 2", "A workers 1"]
    assert [info.server.options["workers"] for info in infos] == ["1", "2", "2", "1"]
    assert infos[1].command == [
        *("python", "-m", "loadtest", "run", *SHORT, "--workers", "2", "--label", "B workers 2")
    ]
    found = compared(tmp_path)
    assert found["baseline"] == "A workers 1"
    left_out = [folder for folder, run in zip(job.runs(), found["runs"], strict=True) if run["left_out"]]
    assert all(is_too_busy(run_folder.read_outcome(folder)) for folder in left_out)
    compared_labels = {run["label"] for run in found["runs"] if not run["left_out"]}
    differences = {"server workers": ["1", "2"]} if len(compared_labels) == 2 else {}
    assert found["against"][0]["differences"] == differences
    assert "run 3 of 4: B workers 2" in job.said()
    assert job.said().rstrip().endswith("comparison.html")


def test_stopped_in_between_it_compares_what_there_is(tmp_path):
    with started(tmp_path, *COMPARE, "--a", "--label=one", "--b", "--label=other", *LONG) as job:
        job.in_phase("long-1")
        job.process.send_signal(signal.SIGINT)
        assert job.wait() == 130, job.said()
    assert len(job.runs()) == 1
    assert not list(tmp_path.glob("reports/comparisons/*")), "one run is compared with nothing"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--a", "--wrkers 1"], "No such option '--wrkers'"),
        (["--b", "--plan nonsense"], "nonsense"),
        (["--a", "--workers '1"], "Invalid value for --a"),
        (["--a", "--host tcp://user:hunter2@127.0.0.1:1 '"], "Invalid value for --a: No closing quotation"),
        (["--a", "--seed 2", "--host", "tcp://user:hunter2@127.0.0.1:1"], "it has a user or a password"),
        (["--tolerance", "much", "--a", "--workers 1"], "'much' is not a share"),
        (["--a", "--label x", "--b", "--label x"], "both sets have the label 'x'"),
        (["--a", "", "--b", " "], "say what differs: --a and --b have options of `run`"),
        (["--pairs", "0", "--a", "--workers 1"], "0 is not in the range"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(tmp_path, options, said):
    done = called(cli, tmp_path, "compare", *options)
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert "hunter2" not in done.stdout + done.stderr
    assert not (tmp_path / "reports").exists()
