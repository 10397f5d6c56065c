# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""Commands that a signal stops while they run in this process."""

import signal
from collections.abc import Callable


def exit_status_when_stopped(command: Callable[[], object]) -> int | None:
    """The exit status of a command in which a signal is raised; None where it ends by an exception, as by a traceback.

    A signal that the command does not handle ends the command and not the tests.
    """
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        command()
    except SystemExit as stopped:
        assert all(signal.getsignal(number) is signal.default_int_handler for number in handlers), "not restored"
        return stopped.code
    except KeyboardInterrupt:
        return None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    raise AssertionError("The command was not stopped.")
