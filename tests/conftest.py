"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """A program started in the background of a script ignores SIGINT, and so does all that it starts; tests
    of Ctrl-C need the ordinary way."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
