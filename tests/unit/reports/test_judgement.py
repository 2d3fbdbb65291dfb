"""Two or more sets of runs compared, from summaries that are known to the texts that people read.

One summary is made from a run folder; repeats of it are that summary with its numbers scattered, so that thousands of
comparisons are tried in seconds.
"""

import json
import os
import random
import subprocess
import sys
from itertools import count

import msgspec
import pytest
from in_process import called
from servers import ROOT
from slow import first_of
from small_disks import fill, small_disk

from reports import run_folder
from reports.__main__ import main
from reports.analysis.summarise import analyse
from reports.comparison.judgement import compare, compare_runs
from reports.comparison.result import FEWEST_PAIRS
from reports.comparison.runs import Read
from reports.pages.comparison_files import html, markdown, write
from reports.pages.comparison_texts import view
from tests.unit.reports import run_folders

HOUR_NS = 3600 * 10**9
CPU, RATE, P99 = "CPU, all busy", "rate", "p99"
RATE_LONG = "long: rate, uploads/s"


@pytest.fixture(scope="module")
def one_run(tmp_path_factory):
    folder = run_folders.write(tmp_path_factory.mktemp("run") / "run")
    return Read(run_folder.read_run(folder), run_folders.summarise(tmp_path_factory.mktemp("other") / "run"))


@pytest.fixture
def repeat(one_run):
    """Makes runs, each later than the last: `repeat("A", cpu=1.1)` costs 10 % more CPU an upload."""
    numbers = count()

    def make(label, *, cpu=1.0, rate=1.0, p99=1.0, verdict="VALID", **info):
        number = next(numbers)
        modes = [_scaled(mode, cpu, rate, p99) for mode in one_run.summary.modes]
        started = one_run.info.started_wall_ns + number * HOUR_NS // 60
        named = {"id": f"run-{number}", "label": label, "started_wall_ns": started}
        return Read(
            msgspec.structs.replace(one_run.info, **(named | info)),
            msgspec.structs.replace(one_run.summary, modes=modes, verdict=verdict),
        )

    return make


def _scaled(mode, cpu, rate, p99):
    sizes = [
        msgspec.structs.replace(size, transaction_us=msgspec.structs.replace(size.transaction_us, p99=1000.0 * p99))
        for size in mode.sizes
    ]
    return msgspec.structs.replace(
        mode,
        uploads_per_s=mode.uploads_per_s * rate,
        busy_core_us_per_upload=mode.busy_core_us_per_upload * cpu,
        sizes=sizes,
    )


def interleaved(repeat, pairs, seed=1, scatter=0.02, drift=0.0, **changed):
    """A B B A ..., with scatter, of which B is changed; and everything grows dearer by `drift` from run to run."""
    chance = random.Random(seed)
    runs = []
    for number in range(pairs):
        for label in ("AB", "BA")[number % 2]:
            noise = {name: chance.lognormvariate(0, scatter) for name in ("cpu", "rate", "p99")}
            noise["cpu"] *= (1 + drift) ** len(runs)
            own = changed if label == "B" else {}
            runs.append(repeat(label, **{name: value * own.get(name, 1) for name, value in noise.items()}))
    return runs


def found_in(comparison, metric, label="B"):
    (one,) = [one for one in comparison.against if one.label == label]
    return [finding for finding in one.findings if finding.metric.startswith(metric)]


# --- what is found ----------------------------------------------------------------------------------------------------


def test_a_dearer_server_is_a_regression(repeat):
    found = compare_runs(interleaved(repeat, 6, cpu=1.10), "A", 0.02)
    assert found.exit_code == 5
    for finding in found_in(found, CPU):
        assert (finding.outcome, finding.regression, finding.pairs) == ("worse", True, 6)
        assert finding.low < 1.10 < finding.high
        assert finding.p < 0.05
        assert len(finding.baseline.values) == len(finding.candidate.values) == len(finding.pair_ratios) == 6
    assert all(finding.outcome == "~" for finding in (*found_in(found, RATE), *found_in(found, P99)))


def test_metrics_are_three_a_mode_and_latency_is_of_one_size(repeat):
    (one,) = compare_runs(interleaved(repeat, 6), "A", 0).against
    assert [(finding.mode, finding.metric) for finding in one.findings] == [
        (mode, metric) for mode in ("long", "short") for metric in ("rate", "p99 transaction ≤4 KiB", "CPU, all busy")
    ]


def test_better_is_no_regression_in_either_direction(repeat):
    found = compare_runs(interleaved(repeat, 8, cpu=0.8, rate=1.3, p99=0.5), "A", 0)
    assert found.exit_code == 0
    assert {finding.outcome for one in found.against for finding in one.findings} == {"better"}
    turned = compare_runs(interleaved(repeat, 8, cpu=0.8, rate=1.3, p99=0.5), "B", 0)
    assert turned.exit_code == 5
    assert {finding.outcome for one in turned.against for finding in one.findings} == {"worse"}


def test_what_is_tolerated_is_worse_without_being_a_regression(repeat):
    runs = interleaved(repeat, 10, scatter=0.005, cpu=1.04)
    found = compare_runs(runs, "A", 0.05)
    assert found.exit_code == 0
    assert [(finding.outcome, finding.regression) for finding in found_in(found, CPU)] == [("worse", False)] * 2
    assert view(found).verdict == "WITHIN TOLERANCE"
    assert compare_runs(runs, "A", 0.02).exit_code == 5


def test_drift_falls_on_both(repeat):
    """Of 3 % from run to run: the last costs twice what the first did."""
    same = compare_runs(interleaved(repeat, 12, drift=0.03), "A", 0)
    assert {finding.outcome for finding in found_in(same, CPU)} == {"~"}
    dearer = compare_runs(interleaved(repeat, 12, drift=0.03, cpu=1.10), "A", 0)
    assert {finding.outcome for finding in found_in(dearer, CPU)} == {"worse"}


def test_under_six_pairs_nothing_is_tested(repeat):
    found = compare_runs(interleaved(repeat, FEWEST_PAIRS - 1, cpu=2.0), "A", 0)
    assert found.exit_code == 4
    for one in found.against:
        for finding in one.findings:
            assert (finding.outcome, finding.p, finding.regression) == ("too few", None, False)
            assert finding.baseline.low is None
    assert "5 pairs, at least 6 are needed" in view(found).sentence


def test_groups_that_were_not_interleaved_are_compared_as_such(repeat):
    runs = sorted(interleaved(repeat, 8, cpu=1.2), key=lambda run: run.info.label)
    runs = [Read(msgspec.structs.replace(run.info, started_wall_ns=n), run.summary) for n, run in enumerate(runs)]
    found = compare_runs(runs, "A", 0)
    assert not found.against[0].paired
    assert {finding.outcome for finding in found_in(found, CPU)} == {"worse"}
    assert any("not interleaved" in warning for warning in found.warnings)


def test_runs_that_make_too_few_pairs_are_compared_as_groups_where_these_are_large_enough(repeat):
    """A A B B A A ...: neighbours make 5 pairs of 6 runs each."""
    runs = [repeat(label, cpu=1.1 if label == "B" else 1.0) for label in "AABBAABBAABB"]
    found = compare_runs(runs, "A", 0)
    assert not found.against[0].paired
    assert found.exit_code == 5


def test_three_labels_are_one_family(repeat):
    chance = random.Random(3)
    runs = [repeat(label, cpu=chance.lognormvariate(0, 0.02)) for _ in range(8) for label in "ABC"]
    found = compare_runs(runs, "A", 0)
    assert [one.label for one in found.against] == ["B", "C"]
    alone = compare_runs([run for run in runs if run.info.label != "C"], "A", 0)
    for one, other in zip(found_in(alone, CPU), found_in(found, CPU), strict=True):
        assert other.p >= one.p


def alarms(relabelled, tolerance=0.0):
    found = compare_runs(relabelled, "A", tolerance)
    return any(finding.outcome in ("better", "worse") for one in found.against for finding in one.findings)


@pytest.mark.parametrize(("times", "in_blocks"), first_of([(100, True), (400, True), (400, False)]))
def test_a_thing_compared_with_itself_raises_few_alarms(repeat, times, in_blocks):
    """40 runs of one thing that drifts, scatters and has spells, relabelled again and again: alarms in at most 5 %."""
    chance = random.Random(11)
    spell = [1.0 if number % 13 else 1.3 for number in range(40)]
    runs = [
        repeat(
            "A", cpu=1.01**n * spell[n] * chance.lognormvariate(0, 0.05), p99=spell[n] * chance.lognormvariate(0, 0.3)
        )
        for n in range(40)
    ]
    raised = 0
    for _ in range(times):
        labels = [label for _ in range(20) for label in chance.choice(("AB", "BA"))]
        if not in_blocks:
            chance.shuffle(labels)
        relabelled = [
            Read(msgspec.structs.replace(run.info, label=label), run.summary)
            for run, label in zip(runs, labels, strict=True)
        ]
        raised += alarms(relabelled)
    assert raised <= 0.05 * times


# --- what a reader is warned of ---------------------------------------------------------------------------------------


def warned(runs, baseline="A"):
    return "\n".join(compare_runs(runs, baseline, 0).warnings)


def test_clean_repeats_raise_no_warning(repeat):
    assert warned(interleaved(repeat, 6)) == ""


def test_an_invalid_run_is_left_out(repeat):
    runs = interleaved(repeat, 7)
    runs[3] = Read(runs[3].info, msgspec.structs.replace(runs[3].summary, verdict="INVALID", reason="counts differ"))
    found = compare_runs(runs, "A", 0)
    assert {finding.pairs for finding in found.against[0].findings} == {6}
    assert [run.left_out for run in found.runs] == [number == 3 for number in range(14)]
    assert "1 of 14 runs are INVALID: left out" in found.warnings[0] and "counts differ" in found.warnings[0]


def test_a_candidate_whose_runs_break_is_not_as_good_as_the_baseline(repeat):
    """The runs that are left show no difference: they are those in which all went well."""
    runs = interleaved(repeat, 9)
    broken = [run for run in runs if run.info.label == "B"][:3]
    runs = [
        Read(run.info, msgspec.structs.replace(run.summary, verdict="INVALID")) if run in broken else run
        for run in runs
    ]
    found = compare_runs(runs, "A", 0)
    assert found.exit_code == 4
    assert "more runs of B than of A were left out" in "\n".join(found.warnings)
    assert compare_runs(runs, "B", 0).exit_code == 0, "of a baseline that breaks, nothing is worse"


def test_uploads_that_fail_are_a_regression_though_the_others_are_as_fast(repeat):
    def failing(run, share):
        modes = [
            msgspec.structs.replace(mode, failures={"busy": round(mode.uploads * share)}) for mode in run.summary.modes
        ]
        return Read(run.info, msgspec.structs.replace(run.summary, modes=modes))

    runs = [failing(run, 0.03) if run.info.label == "B" else run for run in interleaved(repeat, 6)]
    found = compare_runs(runs, "A", 0.02)
    assert found.exit_code == 5
    assert "worse in uploads that failed: 2.91 %, not 0 %" in view(found).sentence
    assert "B failed 2.91 % of its uploads" in "\n".join(found.warnings)
    assert compare_runs(runs, "A", 0.05).exit_code == 0
    assert compare_runs(runs, "B", 0.02).exit_code == 0


def test_a_lower_bound_is_shown_as_one(repeat):
    def bounded(run):
        modes = [msgspec.structs.replace(mode, lower_bound=True) for mode in run.summary.modes]
        return Read(run.info, msgspec.structs.replace(run.summary, modes=modes))

    runs = [bounded(run) if run.info.label == "B" else run for run in interleaved(repeat, 6)]
    [row] = [row for row in view(compare_runs(runs, "A", 0)).sections[0].findings.rows if row.cells[0] == RATE_LONG]
    assert row.cells[4].startswith("≥ ") and not row.cells[3].startswith("≥")


def test_the_tolerance_is_of_the_change_that_is_shown(repeat):
    """A rate that fell by 9.5 % is within 10 %, whichever way one divides."""
    runs = interleaved(repeat, 10, scatter=0.001, rate=0.905)
    assert compare_runs(runs, "A", 0.10).exit_code == 0
    assert compare_runs(runs, "A", 0.09).exit_code == 5


def test_all_invalid_is_not_comparable(repeat):
    runs = [*(repeat("A") for _ in range(6)), *(repeat("B", verdict="INVALID") for _ in range(6))]
    found = compare_runs(runs, "A", 0)
    assert found.exit_code == 4
    assert "no run of B is left to be compared" in found.warnings
    html(view(found))


@pytest.mark.parametrize("verdict", ["NOISY", "LOWER BOUND"])
def test_doubtful_verdicts_are_compared_and_told(repeat, verdict):
    runs = [*interleaved(repeat, 6), repeat("A", verdict=verdict), repeat("B")]
    assert f"1 of 14 runs are {verdict}" in warned(runs)


def test_environments_that_differ(repeat):
    runs = interleaved(repeat, 6)
    other = msgspec.structs.replace(runs[1].info, environment={**runs[1].info.environment, "kernel": "Linux 7.0"})
    runs[1] = Read(other, runs[1].summary)
    assert "kernel is Linux 6.18.0 in 6 of A, 5 of B; Linux 7.0 in 1 of B" in warned(runs)


def test_what_was_asked_for_is_told_and_what_was_not_is_warned_of(repeat):
    runs = [*(repeat(label, users=users) for _ in range(6) for label, users in (("A", 10), ("B", 20)))]
    found = compare_runs(runs, "A", 0)
    assert found.against[0].differences == {"users": ("10", "20")}
    assert "differ in" not in "\n".join(found.warnings)
    runs[0] = Read(msgspec.structs.replace(runs[0].info, users=11), runs[0].summary)
    assert "runs of A are not repeats of one thing: they differ in users (11, 10)" in warned(runs)


def test_unstable_repeats(repeat):
    assert "repeats of B are unstable" in warned(
        [run for n in range(8) for run in (repeat("A"), repeat("B", cpu=1 + n / 8))]
    )


def test_always_in_the_same_order(repeat):
    chance = random.Random(5)
    runs = [repeat(label, cpu=chance.lognormvariate(0, 0.01)) for _ in range(6) for label in "BA"]
    assert "in every pair B ran first" in warned(runs)


def test_modes_and_models_that_only_one_side_has(repeat, one_run):
    runs = interleaved(repeat, 6)
    long_only = [
        run
        if run.info.label == "A"
        else Read(run.info, msgspec.structs.replace(run.summary, modes=run.summary.modes[:1]))
        for run in runs
    ]
    assert "not all runs measured mode short" in warned(long_only)
    one_open = [
        run if run.info.label == "A" else Read(run.info, msgspec.structs.replace(run.summary, model="open"))
        for run in runs
    ]
    found = compare_runs(one_open, "A", 0)
    assert not found_in(found, P99)
    assert "different latencies" in "\n".join(found.warnings)


# --- files and command line -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """12 run folders of two labels in turned order, of which B costs 30 % more."""
    top = tmp_path_factory.mktemp("runs")
    cheap = run_folders.Rate(1000, 0.10, 0.40, 1.00, 200)
    made = []
    for number in range(6):
        for label in ("AB", "BA")[number % 2]:
            dear = 1.3 if label == "B" else 1.0
            busy = cheap.busy * dear * (1 + number / 500)
            rate = run_folders.Rate(cheap.uploads, cheap.worker_share, cheap.load_share, busy, cheap.latency_us)
            folder = run_folders.write(top / f"{len(made)}-{label}", label=label, phase_s=4.0, long=rate)
            info = run_folder.read_run(folder)
            started = info.started_wall_ns + len(made) * HOUR_NS
            run_folder.write_whole(folder / run_folder.RUN, msgspec.structs.replace(info, started_wall_ns=started))
            made.append(folder)
    return made


def test_the_command_writes_three_files_and_says_where(folders, tmp_path):
    command = [sys.executable, "-m", "reports", "compare", *map(str, folders)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60, env=environment)
    assert done.returncode == 5, done.stderr
    page = tmp_path / done.stdout.splitlines()[-1]
    assert page.name == "comparison.html" and page.parent.parent == tmp_path / "reports" / "comparisons"
    assert "REGRESSION: " in done.stdout
    data = json.loads((page.parent / "comparison.json").read_text())
    assert data["exit_code"] == 5 and data["schema_version"] == 1
    assert {finding["outcome"] for finding in data["against"][0]["findings"] if finding["mode"] == "long"} == {
        "~",
        "worse",
    }
    assert "REGRESSION" in (page.parent / "comparison.md").read_text()
    assert "REGRESSION" in page.read_text()


def test_a_comparison_is_the_same_with_and_without_summaries(folders, tmp_path):
    """It is read where `build` wrote one, and made where not."""
    before = msgspec.json.encode(compare(folders, None, 0.02))
    for folder in folders[:3]:
        run_folder.write_whole(folder / run_folder.SUMMARY, analyse(folder).summary)
    (folders[3] / run_folder.SUMMARY).write_text('{"schema_version": 1}')
    (folders[4] / run_folder.SUMMARY).write_text("torn {")
    assert msgspec.json.encode(compare(folders, None, 0.02)) == before


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], 1, "nowhere is not a run folder"),
        (["{0}", "{0}"], 1, "was named before"),
        (["{0}"], 2, "all runs have the label 'A'"),
        (["{0}", "{1}", "--baseline", "C"], 2, "no run has the label 'C' (--baseline); there are: A, B"),
        (["{0}", "{1}", "--tolerance", "much"], 2, "'much' is not a share: write percent, such as 5%"),
        (["{0}", "{1}", "--tolerance", "-1%"], 2, "is not a share"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_cannot_be_compared_is_one_line(folders, tmp_path, arguments, code, said):
    done = called(main, tmp_path, "compare", *(argument.format(*folders) for argument in arguments))
    assert done.returncode == code
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_baseline_and_order_of_arguments(folders):
    assert compare(list(reversed(folders)), "A", 0.02) == compare(folders, None, 0.02)
    assert compare(folders, "B", 0.02).exit_code == 0


def test_texts_of_strangers_stay_texts(repeat, tmp_path):
    label = '<script>alert("B")</script>|*x*\r\u202e'
    runs = [repeat(name) for _ in range(6) for name in ("A", label)]
    found = compare_runs(runs, "A", 0)
    page, text = html(view(found)), markdown(view(found))
    assert "<script>alert" not in page
    assert "\\<script\\>" in text and "\\|\\*x\\*" in text
    terminal = write(found, tmp_path / "out")
    assert str(tmp_path / "out" / "comparison.html") in terminal
    for shown in (page, text, terminal):
        assert not set("\r\u202e") & set(shown) and "u202e" in shown


def test_on_a_full_disk_nothing_is_left_of_a_comparison(repeat, tmp_path):
    runs = [repeat(name) for _ in range(6) for name in ("A", "B")]
    with small_disk(tmp_path / "disk", "1m") as disk:
        taken = fill(disk, but_bytes=8 << 10)
        with pytest.raises(run_folder.RunFolderError, match=r"the comparison cannot be written into .*: No space left"):
            write(compare_runs(runs, "A", 0), disk / "out")
        assert list(disk.iterdir()) == [taken]


def test_a_comparison_whose_folder_cannot_be_made_is_one_line(folders, tmp_path):
    (tmp_path / "reports").touch()
    done = called(main, tmp_path, "compare", *folders)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Error: the comparison's folder cannot be made: ")
