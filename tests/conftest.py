"""For all tests: Ctrl-C means what it means at a terminal, and nobody does the same again and again that is known."""

import gc
import os
import signal
import sys

import hypothesis

# A shell starts background jobs with SIGINT ignored, and what a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes says how busy the machine is. `make test` tries some, `make test-slow` four times as many.
hypothesis.settings.register_profile("some", deadline=None, max_examples=25)
hypothesis.settings.register_profile("many", deadline=None, max_examples=100)
hypothesis.settings.load_profile("some")
# Tests start a thousand processes; without kept bytecode each compiles all of ours that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False  # and each pytest process would rewrite the assertions of all tests: 6 s of CPU
# Of what is imported and collected nothing is garbage; looking for it takes a quarter of the time to the first test.
gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()  # nor is it looked through again
    gc.enable()
