"""What a command prints, to a stdout that need not take it: whoever reads may have seen enough, as `head` has, and a
disk may be full.

A leaf. That nobody reads is no failure, and changes no exit code: scripts ask for that alone.
"""

import os
import sys


def show(text: str) -> None:
    """Print the text and a line's end, at once. SystemExit with one line when it cannot be written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        _to_nowhere()
    except OSError as error:
        _to_nowhere()
        sys.exit(f"Error: stdout cannot be written: {error.strerror}")


def _to_nowhere() -> None:
    """What is left of the text would fail once more when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
