"""Python's garbage collector in the driver's event loop: seldom."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (50_000, 20, 50)
"""With Python's own (700, 10, 10) it took a third of the event loop's time: every group makes hundreds of
objects that are gone with it, none of them in a cycle."""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Look for cycles seldom, and never among what is there now: modules stay, and every look at them would
    hold the event loop up."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
