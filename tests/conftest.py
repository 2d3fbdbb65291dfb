"""For all tests: Ctrl-C means what it means at a terminal."""

import signal

# A shell starts background jobs with SIGINT ignored, and what a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
