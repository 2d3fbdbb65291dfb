"""The report's words: its sentence, its tables, its circumstances."""

import re

import msgspec
import pytest

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.pages.report_texts import View, sentence, view
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import Rate, summarise


@pytest.fixture
def show(tmp_path):
    """The view of a scenario with changes."""

    def make(**changes) -> View:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        return view(analyse(run_folders.write(folder, **changes)))

    return make


def test_the_sentence(show):
    assert show().sentence == (
        "With 2 workers the server took 1,000 uploads/s over long connections (99 % of transactions ≤4 KiB within 600 "
        "µs, server CPU 0.210 cores) and 400 uploads/s over short connections (99 % of transactions ≤4 KiB within "
        "1,500 µs, server CPU 0.510 cores); a short upload cost 3.00 (3.00 to 3.00) times the CPU of a long one, all "
        "cores counted. What binds: nothing (the busiest worker used 25.0 % of a core; the users and their pauses "
        "asked for no more)."
    )


def test_where_other_programs_were_busy_no_cost_is_compared(show):
    """Over half of the busy CPU is nobody's that we know."""
    shown = show(long=Rate(1000, 0.10, 0.40, 1.80, 200))
    assert "times the CPU" not in shown.sentence
    [warning] = [warning for warning in shown.warnings if "other programs" in warning]
    assert "up to 65.0 % of all busy CPU in a measured phase was not that of server, load or recorder" in warning


def test_long_latencies_are_milliseconds_in_the_sentence_and_microseconds_in_the_table(show):
    shown = show(long=Rate(1000, 0.10, 0.40, 1.00, 20_000))
    assert "99 % of transactions ≤4 KiB within 60.0 ms" in shown.sentence
    assert shown.modes.rows[1].cells[5] == "60,000"


def test_too_few_samples_for_a_99th_percentile_leave_the_95th(show):
    assert "(95 % of transactions ≤4 KiB within 400 µs," in show(phase_s=1.5, plan=(("a", "measure", 0),)).sentence


def test_one_block_has_no_spread(show):
    modes = show(plan=(("a", "measure", 0), ("b", "measure", 1))).modes
    assert modes.rows[-1].cells[:2] == ["short ÷ long", "0.400×"]
    assert "short ÷ long: of one block of neighbouring phases." in modes.note


def test_percentiles_are_of_one_size_class(show):
    """Over mixed sizes they would show the mix."""
    rows = show().modes.rows
    assert rows[0].cells[0] == "long, all sizes" and set(rows[0].cells[3:7]) == {""}
    assert all(rows[1].cells[3:7])


def test_the_sentence_knows_any_number_of_uploads_per_connection(show):
    assert "uploads/s over connections of 4 uploads" in show(plan=(("a", "measure", 4),)).sentence


def test_the_sentence_lists_any_number_of_modes(show):
    text = show(plan=(("a", "measure", 0), ("b", "measure", 4), ("c", "measure", 1))).sentence
    assert re.findall(r"(, | and |took )[0-9,]+ uploads/s over (\S+)", text) == [
        ("took ", "long"),
        (", ", "connections"),
        (" and ", "short"),
    ]


def test_the_sentence_of_a_run_that_measured_nothing(tmp_path):
    nothing = Rate(0, 0, 0, 0, 1)
    assert sentence(summarise(tmp_path / "run", long=nothing, short=nothing)) == "Nothing was measured."


def test_rates_that_are_a_lower_bound_say_so(show):
    shown = show(long=Rate(1000, 0.1, 0.9, 1.5, 200))
    assert shown.verdict == "LOWER BOUND"
    assert "took ≥ 1,000 uploads/s over long" in shown.sentence
    rows = {row.cells[0]: row.cells for row in shown.modes.rows}
    assert rows["long, all sizes"][1:3] == ["≥ 1,000", "≥ 104"]
    assert rows["short, all sizes"][1] == "400"
    assert rows["short ÷ long"][1] == "–", "a ratio to a bound is not known"


# --- the open model ---------------------------------------------------------------------------------------------------


def test_the_subtitle_says_what_was_offered(show):
    assert "UTC, 20 users against tcp://127.0.0.1:12345" in show().subtitle
    assert "UTC, open model, 400 to 1,000 arrivals/s against tcp:" in show(model="open").subtitle
    assert "open model, 1,000 arrivals/s" in show(model="open", plan=(("a", "measure", 0),)).subtitle
    cut_off = show(model="open", cut_off_at_s=3.5, ended=None)
    assert "UTC, open model against" in cut_off.subtitle
    assert ("model", "open") in dict(cut_off.facts)["Load"]
    assert "users" not in dict(dict(cut_off.facts)["Load"])


def test_the_sentence_of_the_open_model_speaks_of_responses(show):
    one = {"model": "open", "plan": (("a", "measure", 0),)}
    assert "took 1,000 uploads/s over long connections (99 % of responses ≤4 KiB within 900 µs," in show(**one).sentence
    short = show(**one, unanswered_per_s=100)
    assert (
        "took 1,000 of 1,100 offered uploads/s over long connections (1 % of responses ≤4 KiB took at least"
        in short.sentence
    )


def test_the_mode_table_of_the_open_model(show):
    modes = show(model="open", unanswered_per_s=42, plan=(("a", "measure", 0), ("b", "measure", 1))).modes
    titles = [f"{column.title} {column.unit}" for column in modes.columns[3:9]]
    assert titles == [f"Response {what}, µs" for what in ("p50", "p95", "p99", "max")] + [
        f"Service {what}, µs" for what in ("p50", "p99")
    ]
    rows = {row.cells[0]: row.cells[3:9] for row in modes.rows}
    assert set(rows["long, all sizes"]) == set(rows["short ÷ long"]) == {""}
    assert rows["≤4 KiB"][2:4] == ["≥ 9,000,000", "≥ 9,000,000"]
    assert "uploads without an answer" in modes.note
    assert len({len(row.cells) for row in modes.rows} | {len(modes.columns)}) == 1


def test_a_closed_model_says_that_it_has_no_response(show):
    shown = show()
    assert "A closed model has no response time" in shown.modes.note
    assert "Response" not in [column.title for column in shown.modes.columns]
    assert shown.offered.rows == []
    assert "A closed model" not in show(model="open").modes.note


def test_what_was_offered_is_a_table_of_the_measured_phases(show):
    offered = show(model="open", late=30, unanswered_per_s=1, dropped_per_s=5).offered
    assert [row.cells[0] for row in offered.rows] == ["long-1", "short-1", "short-2", "long-2"]
    first = ["long-1", "long", "1,010", "1,000", "99.1 %", "30", "10", "50", "300", "150"]
    assert offered.rows[0].cells == first
    assert len(offered.columns) == len(first)


def test_how_the_load_fared(show):
    assert show().load.rows[1].cells == ["short-1", "50.0 %", "2.00 %", "80.0", "240", "800", "0 %"]
    load = show(model="open").load
    assert load.rows[0].cells == ["long-1", "40.0 %", "2.00 %", "80.0", "240", "800", "0 %", "300"]
    assert len(load.columns) == 8


def test_conditions_are_listed_with_what_became_of_them(show):
    shown = show(thresholds=("uploads/s < 500", "failures > 0"))
    assert [(row.kind, row.cells) for row in shown.thresholds.rows] == [
        ("bad", ["uploads/s < 500", "failed", "long 1,000/s, short 400/s", "short: 400/s"]),
        ("main", ["failures > 0", "passed", "long 0, short 0, whole run 0", ""]),
    ]


def test_circumstances_name_each_option_once(tmp_path):
    """The load's options may hold what the run knows besides."""
    folder = run_folders.write(tmp_path / "run")
    run = msgspec.structs.replace(
        run_folder.read_run(folder),
        load_options={"seed": 7, "payload_dir": "", "verify_digest": True, "grace_s": 30},
        environment={"memory_total_bytes": 8 << 30, "net.core.rmem_max": 4096, "governor": None, "load_1min": 3.82715},
    )
    run_folder.write_whole(folder / run_folder.RUN, run)
    facts = dict(view(analyse(folder)).facts)
    assert facts["Load"] == [
        ("model", "closed"),
        ("users", "20"),
        ("seed", "7"),
        ("payload dir", "none"),
        ("verify digest", "yes"),
        ("grace", "30 s"),
    ]
    assert facts["Machine"] == [
        ("memory total", "8.00 GiB"),
        ("net.core.rmem_max", "4096"),
        ("governor", "unknown"),
        ("load 1min", "3.83"),
    ]


def test_a_profile_that_is_not_even_is_named(tmp_path):
    folder = run_folders.write(tmp_path / "run", model="open")
    options = {"arrival_profile": "ramp", "arrival_rate": "2000"}
    run = msgspec.structs.replace(run_folder.read_run(folder), load_options=options)
    run_folder.write_whole(folder / run_folder.RUN, run)
    assert "open model, 400 to 1,000 arrivals/s in the mean (ramp 2000) against" in view(analyse(folder)).subtitle


def test_the_servers_options_are_shown_as_it_has_them(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    run = run_folder.read_run(folder)
    options = {"min_rate": "1KiB/s", "max_header_size": "64KiB", "max_store": "the disk's room", "tls": "none"}
    run = msgspec.structs.replace(run, server=msgspec.structs.replace(run.server, options=options))
    run_folder.write_whole(folder / run_folder.RUN, run)
    assert dict(view(analyse(folder)).facts)["Server"][2:] == [
        ("min rate", "1KiB/s"),
        ("max header size", "64KiB"),
        ("max store", "the disk's room"),
        ("tls", "none"),
    ]


def test_the_server_of_a_run_that_did_not_find_it_is_said_to_be_unknown(show):
    assert ("Server", [("recorded", "no")]) in show(with_server=False).facts


def test_cores_are_told_by_role_and_of_workers_by_slot(tmp_path):
    folder = run_folders.write(tmp_path / "run", workers=4)
    placed = {"server-master": "0-7", "server-worker": "0-1", "load-master": "2-3"}
    ticks = [
        msgspec.structs.replace(
            tick,
            processes=[
                msgspec.structs.replace(process, cores="4" if process.slot == 3 else placed.get(process.role))
                for process in tick.processes
            ],
        )
        for tick in run_folder.read_processes(folder)
    ]
    run_folders.rewrite(folder / run_folder.PROCESSES, ticks)
    assert dict(view(analyse(folder)).facts)["Core placement"] == [
        ("supervisor", "cores 0-7"),
        ("workers 0-2", "cores 0-1"),
        ("worker 3", "core 4"),
        ("load", "cores 2-3"),
    ]


def test_cores_that_were_not_recorded_are_said_to_be_unknown(show):
    assert ("Core placement", [("recorded", "no")]) in show().facts
