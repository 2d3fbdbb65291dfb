"""`make bench`: how often does `compare` see what is not there, and how often what is?

Runs of one server and of one that is 10 % dearer, in CPU of the machine an upload, in turned order. The runs of the
first alone, relabelled at random a thousand times, should raise an alarm in at most 5 %; of ten comparisons of both,
each with pairs of its own, at least nine should find the dearer one. An hour in all (COMPARISONS=2 for twelve minutes).
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from servers import ROOT

from reports.compare import compare_runs
from reports.compared_runs import Read, read
from reports.comparison import FEWEST_PAIRS, Comparison
from reports.summary import Summary

COMPARISONS = int(os.environ.get("COMPARISONS", "10"))
RELABELLED = 1000
DEARER = 0.10
DEAR_SERVER = Path(__file__).with_name("dear_server.py")
LOAD = ["--users", "20", "--wait", "20ms", "--plan", "long", "--payloads", "4KiB", "--warm-up", "1s"]


def one_run(cwd: Path, label: str, burn_us: float) -> Path:
    """With a server of its own; returns the run folder."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(DEAR_SERVER), str(burn_us), "--port", "0", "--workers", "1", "--discard"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, start_new_session=True
    )
    try:
        assert server.stdout is not None
        host = f"tcp://{server.stdout.readline().split()[2]}"
        load = [
            sys.executable,
            "-m",
            "loadtest",
            "run",
            "--host",
            host,
            "--label",
            label,
            "--phase-seconds",
            "5",
            *LOAD,
        ]
        output = subprocess.DEVNULL
        subprocess.run(load, cwd=cwd, stdout=output, stderr=output, env=environment, timeout=60, check=False)
    finally:
        server.terminate()
        server.wait(20)
        if server.stdout is not None:
            server.stdout.close()
    return max(cwd.glob("reports/runs/*"), key=lambda folder: folder.stat().st_mtime_ns)


def busy_us(run: Summary) -> float:
    return run.modes[0].busy_core_us_per_upload or 0.0


def found(comparison: Comparison) -> dict[str, str]:
    return {finding.metric: finding.outcome for one in comparison.against for finding in one.findings}


@pytest.mark.timeout(7200)
def test_alarms_and_finds(tmp_path: Path) -> None:
    calibration = [read([one_run(tmp_path, "calibration", 0)])[0] for _ in range(3)]
    burn_us = DEARER * sorted(busy_us(run.summary) for run in calibration)[1]
    folders = []
    for pair in range(COMPARISONS * FEWEST_PAIRS):
        sides = [("same", 0.0), ("dear", burn_us)]
        folders += [one_run(tmp_path, *side) for side in (sides if pair % 2 else reversed(sides))]
    runs = read(folders)

    same = [run for run in runs if run.info.label == "same"][:40]
    chance = random.Random(1)
    raised = sum(_alarm(same, chance) for _ in range(RELABELLED))
    print(
        f"\n{len(same)} runs of one server, relabelled {RELABELLED} times: alarms {raised / RELABELLED:.1%} (limit 5 %)"
    )

    size = 2 * FEWEST_PAIRS
    comparisons = [compare_runs(runs[start : start + size], "same", 0.02) for start in range(0, len(runs), size)]
    seen = sum(found(comparison)["CPU, all busy"] == "worse" for comparison in comparisons)
    others = sum(
        outcome in ("better", "worse")
        for comparison in comparisons
        for metric, outcome in found(comparison).items()
        if metric != "CPU, all busy"
    )
    print(f"{burn_us:.0f} µs dearer: found in {seen} of {len(comparisons)} comparisons of {FEWEST_PAIRS} pairs each")
    print(f"in other metrics: {others} differences")
    for comparison in comparisons:
        for finding in comparison.against[0].findings:
            print(f"  {finding.metric}: {finding.ratio or 0:.3f} p {finding.p or 0:.4f} {finding.outcome}", end="")
        print()


def _alarm(runs: list[Read], chance: random.Random) -> bool:
    """Of these runs with labels dealt out by chance, half of them each."""
    labels = ["A", "B"] * (len(runs) // 2)
    chance.shuffle(labels)
    relabelled = [
        Read(msgspec.structs.replace(run.info, label=label), run.summary)
        for run, label in zip(runs, labels, strict=True)
    ]
    return bool({"better", "worse"} & set(found(compare_runs(relabelled, "A", 0.0)).values()))
