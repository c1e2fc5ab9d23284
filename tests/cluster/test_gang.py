"""Calls of all ranks at once, on virtual time, with actors that are futures."""

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("ray")
from test_needless_ends import Method, nothing

from alphadrive.errors import LearnerDiedError
from cluster.gang import Gang
from cluster.virtual_time import run_virtual


def test_a_call_that_hangs_names_the_ranks_that_have_not_answered():
    def rank(answer):
        return SimpleNamespace(send_weights=Method(answer))

    def never():
        return asyncio.Event().wait()

    gang = Gang([rank(nothing), rank(never), rank(nothing), rank(never)])
    silent = r"send_weights did not end in 5 s .* no answer from rank 1, 3 of 4"
    with pytest.raises(LearnerDiedError, match=silent):
        run_virtual(gang.call("send_weights", [()] * 4, 5.0))
