"""Run folders that are damaged, incomplete or none at all."""

import pytest

from reports import run_folder
from reports.analysis.summarise import analyse
from reports.run_folder import HistogramsLine, RunFolderError
from tests.unit.reports import run_folders


@pytest.mark.parametrize(
    "name", [run_folder.UPLOADS, run_folder.PROCESSES, run_folder.HOST, run_folder.LOAD, run_folder.EVENTS]
)
def test_a_torn_last_line_is_left_out(tmp_path, name):
    folder = run_folders.write(tmp_path / "run")
    path = folder / name
    path.write_bytes(path.read_bytes()[:-7])
    assert analyse(folder).summary.modes[0].uploads_per_s == 1000


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        (run_folder.PROCESSES, "server was not recorded"),
        (run_folder.HOST, "machine's CPU was not recorded"),
        (run_folder.EVENTS, None),
        (run_folder.LOAD, None),
    ],
)
def test_a_missing_file_is_a_warning_at_most(tmp_path, name, warning):
    folder = run_folders.write(tmp_path / "run")
    (folder / name).unlink()
    summary = analyse(folder).summary
    assert summary.verdict == "VALID"
    assert summary.modes[0].uploads_per_s == 1000
    assert (warning is None) == (summary.warnings == [])
    assert warning is None or any(warning in text for text in summary.warnings)


def test_load_that_neither_it_nor_the_recorder_tells_of_is_a_warning(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    for name in (run_folder.PROCESSES, run_folder.LOAD):
        (folder / name).unlink()
    summary = analyse(folder).summary
    assert [phase.generator_share for phase in summary.phases] == [None] * 5
    assert any("load's CPU was not recorded" in text for text in summary.warnings)


def test_without_a_recorder_nothing_can_be_believed(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    for name in (run_folder.PROCESSES, run_folder.HOST):
        (folder / name).unlink()
    summary = analyse(folder).summary
    assert summary.verdict == "INVALID"
    assert "recorder missed 100 %" in summary.reason


def test_an_empty_uploads_file_is_a_report_of_nothing(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    (folder / run_folder.UPLOADS).write_bytes(b"")
    assert "nothing was measured" in analyse(folder).summary.reason


def test_what_is_no_run_folder_is_one_clear_line(tmp_path):
    with pytest.raises(RunFolderError, match="there is no run folder"):
        analyse(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"it has no run\.json"):
        analyse(tmp_path)
    folder = run_folders.write(tmp_path / "run")
    (folder / run_folder.UPLOADS).unlink()
    with pytest.raises(RunFolderError, match=r"no uploads\.jsonl"):
        analyse(folder)


def test_a_broken_histogram_is_one_clear_line(tmp_path):
    folder = run_folders.write(tmp_path / "run")
    broken = HistogramsLine(**run_folders.stamp(43), phase="long-2", names={"long ≤4 KiB": {"transaction": "AAAA"}})
    run_folders.append(folder / run_folder.UPLOADS, broken)
    with pytest.raises(RunFolderError, match="cannot be decoded"):
        analyse(folder)
