"""The index of engines by load, held against a look at all of them."""

import random
from dataclasses import dataclass

import pytest

from cluster.load_index import SPARE_ENTRIES, LoadIndex
from cluster.workers import WorkerState


@dataclass(eq=False)
class Bench:
    """An engine as the index sees it."""

    number: int
    num_under_way: int = 0
    state: WorkerState = WorkerState.SERVING
    reserved_for: object = None


def by_looking_at_all(engines, avoided):
    open_ones = [each for each in engines if each.state is WorkerState.SERVING and each.reserved_for is None]
    others = [each for each in open_ones if each is not avoided] or open_ones
    return min(others, key=lambda each: each.num_under_way, default=None)


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_that_of_a_look_at_all_engines_whatever_happens_to_them(seed):
    chance = random.Random(seed)
    engines = [Bench(number) for number in range(chance.choice([1, 2, 5, 12]))]
    index = LoadIndex(lambda: engines)
    for engine in engines:
        index.note(engine)
    for turn in range(2000):
        engine = chance.choice(engines)
        match chance.randrange(8):
            case 0:
                engine.state = chance.choice(list(WorkerState))
            case 1:
                engine.reserved_for = chance.choice([None, None, "suspect"])
            case 2 if chance.random() < 0.2:
                engines.remove(engine)
                engine.state = WorkerState.DEAD
                engines.append(Bench(len(engines) + turn + 100, state=WorkerState.SERVING))
                engine = engines[-1]
            case 3 | 4:
                engine.num_under_way = max(0, engine.num_under_way - 1)
            case _:
                chosen = index.least_loaded()
                if chosen is not None:
                    engine = chosen
                    engine.num_under_way += 1
        index.note(engine)
        avoided = chance.choice([None, *engines])
        assert index.least_loaded(avoided) is by_looking_at_all(engines, avoided)
        assert len(index._entries) <= 4 * len(engines) + SPARE_ENTRIES + 1
