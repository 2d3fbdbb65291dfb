"""The report's words: its sentence, its tables, its circumstances."""

import msgspec
import pytest

from reports import run_folder
from reports.analysis import analyse
from reports.view import View, sentence, view
from tests.unit import run_folders
from tests.unit.run_folders import Rate, summarise


@pytest.fixture
def show(tmp_path):
    """The view of a scenario with changes."""

    def make(**changes) -> View:
        return view(analyse(run_folders.write(tmp_path / "run", **changes)))

    return make


def test_the_sentence(show):
    assert show().sentence == (
        "With 2 workers the server took 1,000 uploads/s over long connections (99 % of transactions within 1,000 µs, "
        "server CPU 0.210 cores) and 400 uploads/s over short connections (99 % of transactions within 5,000 µs, "
        "server CPU 0.510 cores); a short upload cost 3.00 times the CPU of a long one (3,000 against 1,000 busy "
        "core-µs)."
    )


def test_long_latencies_are_milliseconds_in_the_sentence_and_microseconds_in_the_table(show):
    shown = show(long=Rate(1000, 0.10, 0.40, 1.00, 20_000))
    assert "99 % of transactions within 100 ms" in shown.sentence
    assert shown.modes.rows[0].cells[5] == "100,000"


def test_the_sentence_knows_any_number_of_uploads_per_connection(show):
    assert "uploads/s over connections of 4 uploads" in show(plan=(("a", "measure", 4),)).sentence


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


def test_circumstances_name_each_option_once(tmp_path):
    """The load's options may hold what the run knows besides."""
    folder = run_folders.write(tmp_path / "run")
    run = msgspec.structs.replace(
        run_folder.read_run(folder),
        load_options={"seed": 7, "payload_dir": "", "verify_digest": True},
        environment={"memory_total_bytes": 8 << 30, "net.core.rmem_max": 4096, "governor": None},
    )
    run_folder.write_whole(folder / run_folder.RUN, run)
    facts = dict(view(analyse(folder)).facts)
    assert facts["Load"] == [("users", "20"), ("seed", "7"), ("payload dir", "none"), ("verify digest", "yes")]
    assert facts["Machine"] == [("memory total", "8.00 GiB"), ("net.core.rmem_max", "4096"), ("governor", "unknown")]


def test_the_server_of_a_run_that_did_not_find_it_is_said_to_be_unknown(show):
    assert ("Server", [("recorded", "no")]) in show(with_server=False).facts
