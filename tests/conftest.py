"""For all tests: Ctrl-C means what it means at a terminal, and nobody compiles the same sources again and again."""

import os
import signal

# A shell starts background jobs with SIGINT ignored, and what a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests start a thousand processes; without kept bytecode each compiles all of ours that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
