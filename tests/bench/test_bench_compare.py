"""`make bench`: how often does `compare` see what is not there, and how often what is?

Runs of one server and of one that is 10 % dearer, in CPU of the machine an upload, in turned order. The runs of the
first alone, relabelled at random a thousand times, should raise an alarm in at most 5 %; of ten comparisons of both,
each with pairs of its own, at least nine should find the dearer one. An hour in all (COMPARISONS=2 for twelve minutes).
"""

import os
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from servers import ROOT

from reports.comparison.judgement import compare_runs
from reports.comparison.result import Comparison
from reports.comparison.runs import Read, read
from reports.summary import Summary

COMPARISONS = int(os.environ.get("COMPARISONS", "10"))
PAIRS = 20  # as `make compare` has
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
    for pair in range(COMPARISONS * PAIRS):
        sides = [("same", 0.0), ("dear", burn_us)]
        folders += [one_run(tmp_path, *side) for side in (sides if pair % 2 else reversed(sides))]
    runs = read(folders)

    same = [run for run in runs if run.info.label == "same"][:40]
    chance = random.Random(1)
    print(f"\n{len(same)} runs of one server, relabelled {RELABELLED} times; alarms (limit 5 %):")
    print(f"  all of them, dealt out by chance: {_alarms(same, chance, _dealt_out):.1%}")
    print(f"  {PAIRS} neighbouring pairs of them, turned by chance: {_alarms(same, chance, _turned):.1%}")

    size = 2 * PAIRS
    comparisons = [compare_runs(runs[start : start + size], "same", 0.02) for start in range(0, len(runs), size)]
    seen = sum(found(comparison)["CPU, all busy"] == "worse" for comparison in comparisons)
    others = sum(
        outcome in ("better", "worse")
        for comparison in comparisons
        for metric, outcome in found(comparison).items()
        if metric != "CPU, all busy"
    )
    same_us, dear_us = (
        statistics.median(busy_us(run.summary) for run in runs if run.info.label == label) for label in ("same", "dear")
    )
    print(
        f"the calibration may have been disturbed: it was {dear_us / same_us - 1:.1%} dearer, beside {DEARER:.0%} meant"
    )
    print(f"{burn_us:.0f} µs dearer: found in {seen} of {len(comparisons)} comparisons of {PAIRS} pairs each")
    print(f"in other metrics: {others} differences")
    for comparison in comparisons:
        for finding in comparison.against[0].findings:
            print(f"  {finding.metric}: {finding.ratio or 0:.3f} p {finding.p or 0:.4f} {finding.outcome}", end="")
        print()


def _alarms(
    runs: list[Read], chance: random.Random, relabel: Callable[[list[Read], random.Random], list[tuple[str, Read]]]
) -> float:
    return sum(_alarm(relabel(runs, chance)) for _ in range(RELABELLED)) / RELABELLED


def _dealt_out(runs: list[Read], chance: random.Random) -> list[tuple[str, Read]]:
    """Half of them each."""
    labels = ["A", "B"] * (len(runs) // 2)
    chance.shuffle(labels)
    return list(zip(labels, runs, strict=True))


def _turned(runs: list[Read], chance: random.Random) -> list[tuple[str, Read]]:
    """As many pairs as `make compare` runs, from anywhere among them."""
    start = chance.randrange(len(runs) - 2 * PAIRS + 1)
    labels = [label for _ in range(PAIRS) for label in chance.choice(("AB", "BA"))]
    return list(zip(labels, runs[start : start + 2 * PAIRS], strict=True))


def _alarm(labelled: list[tuple[str, Read]]) -> bool:
    relabelled = [Read(msgspec.structs.replace(run.info, label=label), run.summary) for label, run in labelled]
    return bool({"better", "worse"} & set(found(compare_runs(relabelled, "A", 0.0)).values()))
