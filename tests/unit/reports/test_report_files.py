"""report.html, report.md, summary.json and the terminal's summary: they agree, they are safe, and they stand alone."""

import json
import re
import signal
from html.parser import HTMLParser

import msgspec
import pytest
from click.testing import CliRunner
from in_process import called
from slow import first_of

from reports import run_folder
from reports.__main__ import cli, main
from reports.analysis.summarise import analyse
from reports.pages import layout, report_files
from reports.pages.report_texts import view
from reports.run_folder import Event, RunFolderError
from reports.summary import SUMMARY_VERSION
from tests.unit.reports import run_folders
from tests.unit.reports.run_folders import Rate

HOSTILE = "</script><script>alert(1)</script>\x1b[31m|`*&\r\u202e"


class Tags(HTMLParser):
    """The start tags of a page with their attributes, and its text outside of script and style."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._silent = False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._silent = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._silent = False

    def handle_data(self, data):
        if not self._silent:
            self.text += data


@pytest.fixture
def build(tmp_path):
    """(what the terminal shows, folder) of a scenario with changes."""

    def make(**changes):
        folder = run_folders.write(tmp_path / "run", **changes)
        return report_files.build(folder), folder

    return make


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """As `build` makes it of a run without changes, only to be read."""
    folder = run_folders.write(tmp_path_factory.mktemp("plain") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "500")
        return report_files.build(folder), folder


@pytest.fixture(scope="module")
def unusual(tmp_path_factory):
    """The same of a run with conditions, a label with spaces and no server that was found."""
    changes = {"thresholds": ("uploads/s < 500", "failures > 0"), "with_server": False, "label": "two words; rm -rf"}
    folder = run_folders.write(tmp_path_factory.mktemp("unusual") / "run", **changes)
    return report_files.build(folder), folder


@pytest.mark.parametrize("model", ["closed", "open"])
def test_all_outputs_show_the_same_numbers(build, model):
    terminal, folder = build(
        model=model, failures_per_s=1, killed_at_s=17.3, thresholds=("uploads/s < 500", "failures > 1%")
    )
    page = Tags((folder / run_folder.REPORT_HTML).read_text()).text
    text = (folder / run_folder.REPORT_MD).read_text().replace("\\", "")
    shown = view(analyse(folder))
    for row in shown.modes.rows:
        for cell in row.cells:
            assert cell in page
            assert cell in text
            assert row.kind == "part" or cell in terminal
    for sentence in (shown.reason, shown.sentence, *shown.warnings):
        assert sentence in page
        assert sentence in text
        assert sentence in terminal
    for table in (
        *(shown.processes, shown.events, shown.phases, shown.failures),
        *(shown.thresholds, shown.offered, shown.load),
    ):
        assert all(cell in page and cell in text for row in table.rows for cell in row.cells)
        assert table.note in page
        assert table.note in text
    assert all(cell in terminal for row in shown.offered.rows for cell in row.cells)


def test_sections_without_content_are_left_out(plain):
    _, folder = plain
    text = (folder / run_folder.REPORT_MD).read_text()
    assert re.findall("^## (.*)$", text, re.MULTILINE) == [
        "Long against short",
        "Load generator",
        "Phases",
        "Failures by code",
        "Costs",
        "Processes",
        "TCP",
        "Events",
        "Circumstances",
    ]
    assert "\n\n\n" not in text
    page = Tags((folder / run_folder.REPORT_HTML).read_text()).text
    assert "Thresholds" not in page
    assert "Offered and achieved" not in page


def test_the_terminal_says_what_became_of_each_condition(unusual):
    terminal, _ = unusual
    lines = terminal.splitlines()
    assert "failed: fails if uploads/s < 500 (short: 400/s)" in lines
    assert "passed: fails if failures > 0 (long 0, short 0, whole run 0)" in lines


def test_costs_that_are_unknown_are_not_zero(unusual):
    terminal, _ = unusual
    assert "not recorded" in terminal


@pytest.mark.parametrize("columns", [50, 60, 80, 100, 200])
def test_tables_fit_the_terminal(plain, columns):
    """What there is no room for follows below, and each part says again of what it tells."""
    _, folder = plain
    table = view(analyse(folder)).modes
    lines = layout.aligned(table, columns)
    assert max(map(len, lines)) <= columns
    parts = "\n".join(lines).split("\n\n")
    firsts = [re.split("  +", part.splitlines()[0])[0] for part in parts]
    assert set(firsts) == {table.columns[0].title}
    for row in table.rows:
        assert all(cell in "\n".join(lines) for cell in row.cells)


@pytest.mark.parametrize("columns", [0, 1])
def test_of_no_width_known_or_too_small_a_one_none_is_lost(plain, columns):
    _, folder = plain
    table = view(analyse(folder)).modes
    lines = layout.aligned(table, columns)
    assert len(lines) == (len(table.rows) + 2 if not columns else (len(table.columns) - 1) * (len(table.rows) + 3) - 1)


def test_the_terminal_s_width_is_that_of_who_shows_it(plain, monkeypatch):
    wide, folder = plain
    monkeypatch.setenv("COLUMNS", "60")
    narrow = report_files.build(folder)
    assert [text.count("\nConnections ") for text in (wide, narrow)] == [1, 3]


@pytest.mark.parametrize("full", first_of([run_folder.REPORT_HTML, run_folder.REPORT_MD, run_folder.SUMMARY]))
def test_on_a_full_disk_no_file_of_a_report_is_left_whichever_does_not_fit(tmp_path, full):
    folder = run_folders.write(tmp_path / "run")
    before = sorted(path.name for path in folder.iterdir())
    (folder / f".{full}").symlink_to("/dev/full")
    with pytest.raises(RunFolderError, match=r"the report cannot be written into .*: No space left on device"):
        report_files.build(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_run_whose_disk_was_full_says_so_although_only_an_event_could(tmp_path):
    folder = run_folders.write(tmp_path / "run", ended=None)
    assert analyse(folder).summary.warnings[0].startswith("the run was cut off")
    event = Event(mono_ns=0, wall_ns=0, source="load", kind=run_folder.RUN_FAILED, text="No space left on device")
    with (folder / run_folder.EVENTS).open("ab") as file:
        file.write(msgspec.json.encode(event) + b"\n")
    summary = analyse(folder).summary
    assert (summary.warnings[0], summary.exit_code) == ("the run failed: No space left on device", 1)


def test_the_repeat_command_is_quoted_for_a_shell(unusual):
    _, folder = unusual
    assert "--label &#39;two words; rm -rf&#39;" in (folder / run_folder.REPORT_HTML).read_text()


def test_the_terminal_ends_with_the_path_of_the_report(plain):
    terminal, folder = plain
    lines = terminal.splitlines()
    assert lines[0].startswith("VALID: the server held the offered load")
    assert lines[-1] == str(folder / run_folder.REPORT_HTML)
    assert "\n\n\n" not in terminal


def test_summary_is_data_with_a_schema_version(plain):
    _, folder = plain
    summary = json.loads((folder / run_folder.SUMMARY).read_text())
    assert summary["schema_version"] == SUMMARY_VERSION
    assert summary["verdict"] == "VALID"
    assert summary["modes"][0]["uploads_per_s"] == 1000
    assert summary["server"]["cpu_total_s"] > 10


def test_the_page_stands_alone(plain):
    _, folder = plain
    tags = Tags((folder / run_folder.REPORT_HTML).read_text()).tags
    assert sum(attributes.get("class") == "chart" for _, attributes in tags) == 7, "one chart each"
    for tag, attributes in tags:
        assert tag not in ("iframe", "object", "img")
        assert not (attributes.get("src") or "")
        assert (attributes.get("href") or "data:").startswith("data:")


def test_what_strangers_chose_is_text_and_nothing_else(tmp_path):
    ended = run_folder.Ending(how="stopped", reason=HOSTILE)
    folder = run_folders.write(tmp_path / "run\u202e", label=HOSTILE, plan=((HOSTILE, "measure", 0),), ended=ended)
    event = Event(**run_folders.stamp(5), source="server", kind=HOSTILE, text=HOSTILE)
    run_folders.append(folder / run_folder.EVENTS, event)
    run = msgspec.structs.replace(
        run_folder.read_run(folder),
        environment={HOSTILE: HOSTILE},
        load_options={HOSTILE: HOSTILE},
        command=[HOSTILE],
        thresholds=[HOSTILE],
    )
    run_folder.write_whole(folder / run_folder.RUN, run)
    terminal = report_files.build(folder)
    page, text = ((folder / name).read_bytes().decode() for name in (run_folder.REPORT_HTML, run_folder.REPORT_MD))
    assert "<script>alert" not in page
    assert "</script>alert" not in page
    assert r"<script>alert(1)</script>\x1b[31m|`*&\r\u202e" in Tags(page).text, "as it is, but for control characters"
    for output in (terminal, page, text):
        assert not set("\x1b\r\u202e") & set(output)
    for line in text.splitlines():
        if line.startswith("|") and "alert" in line:
            assert len(re.findall(r"(?<!\\)\|", line)) in (5, 8, 12), "no cell breaks its row"


def test_charts_without_data_say_why(tmp_path):
    nothing = Rate(0, 0, 0, 0, 1)
    folder = run_folders.write(tmp_path / "run", cut_off_at_s=0.4, ended=None, long=nothing)
    for name in (run_folder.PROCESSES, run_folder.HOST, run_folder.EVENTS):
        (folder / name).unlink()
    report_files.build(folder)
    page = Tags((folder / run_folder.REPORT_HTML).read_text()).text
    assert page.count("Nothing to draw") == 7
    assert (folder / run_folder.REPORT_HTML).stat().st_size < 100_000, "without charts no library of charts"
    assert "names no phase" in page
    assert "No process was recorded" in page
    assert "No event" in page
    assert "host.jsonl has fewer than two ticks" in page


@pytest.mark.slow  # as any other, of more lines
def test_an_hour_of_twenty_processes_is_drawn(tmp_path):
    plan = (("long-1", "measure", 0), ("short-1", "measure", 1))
    folder = run_folders.write(tmp_path / "run", workers=17, plan=plan, phase_s=1800, interval_s=10)
    assert report_files.build(folder).startswith("VALID")


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    folder = run_folders.write(tmp_path / "run")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_files, "replace_all", refuse)
    with pytest.raises(RunFolderError, match=r"cannot be written into .*: No space left"):
        report_files.build(folder)


def test_the_command_line_builds_and_refuses(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    done = called(main, tmp_path, "build", folder)
    assert done.returncode == 0
    assert done.stdout.rstrip().endswith("report.html")
    assert done.stderr == ""
    refused = called(main, tmp_path, "build", tmp_path / "x")
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "there is no run folder" in refused.stderr


def test_ctrl_c_does_not_say_that_the_folder_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setattr(report_files, "build", lambda run: signal.raise_signal(signal.SIGINT))
    done = CliRunner().invoke(cli, ["build", str(tmp_path)])
    assert (done.exit_code, done.stderr) == (130, "\nInterrupted\n")
