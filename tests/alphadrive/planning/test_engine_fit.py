"""The speed of an engine, found from what it drew."""

import heapq
import itertools

import numpy as np
import pytest

from alphadrive.planning.engine import EngineSpeed, SimulatedEngine
from alphadrive.planning.engine_fit import DrawnGroups, fitted_speed

SEATS, TRAIN_S, PAUSE_S = 16, 0.3, 0.06


def drawn_by(speed, num_slots, num_groups, groups_per_step, noise, seed):
    """What an engine of this speed draws for a learner that asks for the next groups step by step."""
    random = np.random.default_rng(seed)
    tokens = random.integers(20, 70, (num_groups, 4))
    engine, order = SimulatedEngine(speed, SEATS, 0.0), itertools.count()
    started_s, ended_s, pauses = np.zeros(num_groups), np.zeros(num_groups), []
    asked = iter(range(num_groups))
    changes = []

    def at(time_s, change, *number):
        heapq.heappush(changes, (time_s, next(order), change, number))

    def begin(now_s, number):
        started_s[number] = now_s
        engine.begin(now_s, number, (tokens[number] + speed.prompt_tokens).tolist())

    for number in itertools.islice(asked, num_slots):
        at(0.0, begin, number)
    num_ended, step_s = 0, 0.0
    while changes or engine.next_end_s() is not None:
        end_s = engine.next_end_s()
        if changes and (end_s is None or changes[0][0] <= end_s):
            now_s, _, change, number = heapq.heappop(changes)
            change(now_s, *number)
            continue
        for number in engine.ended(end_s):
            ended_s[number] = end_s
            num_ended += 1
            if num_ended % groups_per_step == 0:
                step_s = max(end_s, step_s) + TRAIN_S
                pauses.append((step_s, step_s + PAUSE_S))
                at(step_s, engine.pause)
                at(step_s + PAUSE_S, lambda now_s: engine.resume(now_s, version=0))
                for number in itertools.islice(asked, groups_per_step):
                    at(step_s, begin, number)
    in_turn = np.argsort(started_s, kind="stable")
    seconds = (ended_s - started_s) * random.normal(1.0, noise, num_groups)
    return DrawnGroups(
        started_s=started_s[in_turn],
        tokens=tokens[in_turn],
        generate_s=seconds[in_turn],
        seats=SEATS,
        pauses=pauses,
    )


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize(
    "speed",
    [
        EngineSpeed(token_s=0.012, sequence_token_s=0.0005, prompt_tokens=6),
        EngineSpeed(token_s=0.005, sequence_token_s=0.002, prompt_tokens=2),
        EngineSpeed(token_s=0.02, sequence_token_s=0.0, prompt_tokens=0),
    ],
    ids=["mixed", "load costs most", "load costs nothing"],
)
def test_the_speed_is_found_behind_a_long_queue(speed, noise):
    """Sixteen groups of four share sixteen seats: a group takes three times as long as it is drawn."""
    found = fitted_speed([drawn_by(speed, 16, 192, 8, noise, 0), drawn_by(speed, 8, 146, 4, noise, 1)])
    for load in (2, SEATS):
        expected = speed.token_s + load * speed.sequence_token_s
        assert found.token_s + load * found.sequence_token_s == pytest.approx(expected, rel=0.1)
    assert found.prompt_tokens == pytest.approx(speed.prompt_tokens, abs=2)
