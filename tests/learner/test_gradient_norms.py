"""Which gradient norms count as spikes."""

from learner.gradient_norms import FEWEST, WINDOW, GradientNorms


def test_a_spike_is_above_ten_times_the_median_of_those_before() -> None:
    norms = GradientNorms([2.0] * 10)
    assert [norms.add(norm) for norm in (20.0, 20.1, 19.0)] == [False, True, False]


def test_nothing_is_a_spike_before_enough_is_known() -> None:
    norms = GradientNorms()
    assert [norms.add(1.0) for _ in range(FEWEST - 1)] == [False] * (FEWEST - 1)
    assert not norms.add(100.0)
    assert norms.add(100.0)


def test_spikes_that_stay_become_the_rule() -> None:
    norms = GradientNorms([1.0] * WINDOW)
    assert [norms.add(50.0) for _ in range(WINDOW)].count(True) < WINDOW
    assert not norms.add(50.0)


def test_only_the_last_hundred_are_kept_and_a_checkpoint_keeps_them() -> None:
    norms = GradientNorms(range(WINDOW + 5))
    assert norms.state() == [float(norm) for norm in range(5, WINDOW + 5)]
    assert GradientNorms(norms.state()).state() == norms.state()
