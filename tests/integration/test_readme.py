"""What README and the rooms' READMEs tell people to type exists, takes those options, and the example client works."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import servers

from loadtest.options import OPTIONS as LOAD_OPTIONS
from server.options import OPTIONS as SERVER_OPTIONS
from server.protocol import ClientConnection, Reply, Timing, UploadHeader, decode_header, digest_of

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]


def blocks(readme: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme.read_text(), re.DOTALL)


def commands() -> list[tuple[str, str]]:
    found = []
    for readme in READMES:
        for block in [*blocks(readme, "sh"), *blocks(readme, "")]:
            for line in block.splitlines():
                command = line.partition(" #")[0].strip()
                if re.match(r"(make|python -m|\.venv/bin/|locust)( |$)", command):
                    found.append((readme.parent.name if readme.parent != ROOT else "README", command))
    return found


def test_the_readmes_have_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize(("room", "command"), commands())
def test_a_command_exists_with_its_options(room: str, command: str) -> None:
    words = shlex.split(command.replace("FILE...", "FILE").replace("...", ""))
    if words[0] == "make":
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return
    program = words[0].removeprefix(".venv/bin/")
    if program == "locust":
        start, rest = [sys.executable, "-m", "locust", *words[1:3]], words[3:]
    else:
        subcommand = [word for word in words[3:4] if re.fullmatch("[a-z]+", word)]
        start, rest = [sys.executable, *words[1:3], *subcommand], words[3 + len(subcommand) :]
    text = help_of(*start)
    if program == "locust":  # prints its help before it reads our file; the options are the same as those of `run`
        text += help_of(sys.executable, "-m", "loadtest", "run")
    for option in (word for word in rest if re.match(r"--[\w-]+(=|$)", word)):  # not those within an argument
        assert re.search(rf"{option}\b", text), f"{option} is not in the help of {' '.join(start[1:])}"


@cache
def help_of(*command: str) -> str:
    done = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_client_uploads(tmp_path: Path) -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    with servers.running(store=tmp_path / "store") as server:
        code = example.replace("12345", str(server.port))
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
        assert "'code': 'ok'" in done.stdout
        assert (tmp_path / "store" / "hello.txt").read_bytes() == b"hello"


def option_table(readme: Path) -> dict[str, list[str]]:
    """The table below the heading Options: by flag, its default and the cells behind it."""
    found = {}
    section = readme.read_text().partition("\n## Options\n")[2].partition("\n|")[2].partition("\n\n")[0]
    header, _, *rows = section.splitlines()
    column = [cell.strip() for cell in header.split("|")].index("default")
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        flags = re.findall("`(--[a-z-]+)", cells[column - 1])
        defaults = cells[column].split(", ") if len(flags) > 1 and cells[column] else cells[column : column + 1] * 2
        for flag, default in zip(flags, defaults, strict=False):
            found[flag] = [default.strip("`"), *cells[column + 1 :]]
    return found


def test_the_table_of_the_servers_options_says_what_it_does() -> None:
    rows = option_table(ROOT / "server" / "README.md")
    assert rows.keys() == {option.flag for option in SERVER_OPTIONS} - {"--config"}
    for option in SERVER_OPTIONS[1:]:
        default, reloads, _ = rows[option.flag]
        assert (option.kind.read(default) == option.default) if default else not option.default, option.flag
        assert reloads == ("yes" if option.reloads else ""), option.flag


def test_the_table_of_the_loads_options_says_what_it_does() -> None:
    rows = {flag.replace("--no-", "--"): cells for flag, cells in option_table(ROOT / "README.md").items()}
    assert rows.keys() >= {option.flag for option in LOAD_OPTIONS}
    for option in LOAD_OPTIONS:
        if option.field != "payloads" and isinstance(option.default, str) and option.default:
            assert rows[option.flag][0] == option.default


def test_the_wire_format_names_every_key() -> None:
    text = (ROOT / "server" / "PROTOCOL.md").read_text()
    for part in (UploadHeader, Reply, Timing):
        for key in part.__struct_fields__:
            assert f"`{key}`" in text, f"server/PROTOCOL.md does not name {key} of {part.__name__}"


def test_the_wire_formats_example_is_an_upload_and_its_reply() -> None:
    upload, reply = (block.splitlines() for block in blocks(ROOT / "server" / "PROTOCOL.md", "")[1:3])
    client = ClientConnection()
    header = decode_header(upload[1].encode())
    assert client.send_upload(header) == bytes.fromhex(upload[0]) + upload[1].encode()
    body = bytes.fromhex(upload[2])
    assert len(body) == header.file_size
    [answer] = client.receive_data(bytes.fromhex(reply[0]) + reply[1].encode())
    assert (answer.code, answer.digest) == ("ok", digest_of("xxh3_128", body))


def test_every_file_of_a_room_is_in_its_readme() -> None:
    for room in ("server", "loadtest", "reports"):
        text = (ROOT / room / "README.md").read_text()
        for file in sorted((ROOT / room).rglob("*.py")):
            if file.name != "__init__.py":
                line = rf"^ {{{2 * (len(file.relative_to(ROOT).parts) - 1)}}}{file.name} "
                assert re.search(line, text, re.MULTILINE), f"{room}/README.md does not name {file.relative_to(ROOT)}"
