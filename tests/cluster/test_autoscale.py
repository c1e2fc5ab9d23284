"""The autoscaler: fed with figures worked out by hand, and with runs that answer to what it decides."""

import pytest

from cluster.autoscale import Autoscaler, Observation


class Figures:
    """Feeds an autoscaler with steps of 10 s in which the learner waits `share` of the time."""

    def __init__(self, scaler, num_workers, step_s=10.0):
        self.scaler, self.wanted, self.serving = scaler, num_workers, num_workers
        self.step_s, self.steps, self.loop_s, self.waited_s = step_s, 0, 0.0, 0.0
        self.decisions = []

    def observe(self):
        seen = Observation(
            now_s=self.loop_s,
            steps=self.steps,
            loop_s=self.loop_s,
            waited_s=self.waited_s,
            num_wanted=self.wanted,
            num_serving=self.serving,
        )
        decision = self.scaler.observe(seen)
        if decision is not None:
            self.decisions.append((self.wanted, decision.num_workers, decision.reason))
            self.wanted = self.serving = decision.num_workers
        return decision

    def steps_of(self, share, number, serving=None):
        """Make steps; returns the decisions they led to as `(before, after)`."""
        first = len(self.decisions)
        for _ in range(number):
            if serving is not None:
                self.serving = serving
            self.steps += 1
            self.loop_s += self.step_s
            self.waited_s += share * self.step_s
            self.observe()
        return [(before, after) for before, after, _ in self.decisions[first:]]


def at_start(low=1, high=4, num_workers=1):
    figures = Figures(Autoscaler(low, high), num_workers)
    figures.observe()
    return figures


def test_a_waiting_learner_gets_one_worker_more_after_thirty_seconds_of_whole_steps():
    figures = at_start()
    assert figures.steps_of(0.5, 3) == []  # the first step is left out, two make 20 s
    assert figures.steps_of(0.5, 1) == [(1, 2)]
    assert figures.decisions[0][2] == "the learner waited 50% of the last 30 s (3 steps), more than 10%"


def test_long_steps_are_measured_over_two_of_them():
    figures = Figures(Autoscaler(1, 4), 1, step_s=300.0)
    figures.observe()
    assert figures.steps_of(0.5, 2) == []
    assert figures.steps_of(0.5, 1) == [(1, 2)]


def test_between_the_thresholds_nothing_is_done():
    figures = at_start(num_workers=2)
    assert figures.steps_of(0.09, 200) == []
    assert figures.steps_of(0.03, 200) == []


def test_a_learner_that_never_waits_gives_a_worker_back_after_five_minutes():
    figures = at_start(num_workers=2)
    assert figures.steps_of(0.0, 30) == []
    assert figures.steps_of(0.0, 1) == [(2, 1)]
    assert figures.decisions[0][2] == "the learner waited 0% of the last 300 s (30 steps), less than 2%"


def test_it_never_leaves_the_bounds_and_enters_them_at_once():
    assert at_start(1, 2, 2).steps_of(0.9, 100) == []
    assert at_start(2, 4, 2).steps_of(0.0, 100) == []
    figures = Figures(Autoscaler(2, 4), 6)
    assert figures.observe().num_workers == 4
    assert figures.decisions[0][2] == "6 is outside of 2 to 4"


def test_nothing_is_decided_while_a_worker_is_missing_and_its_steps_do_not_count():
    figures = at_start(num_workers=2)
    assert figures.steps_of(0.5, 50, serving=1) == []
    assert figures.steps_of(0.0, 50, serving=1) == []
    assert figures.steps_of(0.5, 3, serving=2) == []  # the step in which it came does not count either
    assert figures.steps_of(0.5, 1) == [(2, 3)]


def test_a_growth_that_did_not_help_is_taken_back_and_not_tried_again_for_half_an_hour():
    figures = at_start()
    assert figures.steps_of(0.5, 8) == [(1, 2), (2, 1)]
    assert figures.decisions[1][2] == (
        "the learner waited 50% of the last 30 s (3 steps), 50% before the last worker came: it was of no use"
    )
    assert figures.steps_of(0.5, 179) == []
    assert figures.steps_of(0.5, 4) == [(1, 2)]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (0.47, [(2, 1)]),
        (0.36, []),
    ],
)
def test_a_growth_must_bring_a_quarter_of_what_it_promised(after, expected):
    """From one worker to two at a share of 0.5: it may fall by min(0.5, 0.5 / 1), so a quarter is 0.125."""
    figures = at_start(high=2)
    assert figures.steps_of(0.5, 4) == [(1, 2)]
    assert figures.steps_of(after, 4) == expected


def test_the_target_reached_is_help_enough():
    figures = at_start(num_workers=1)
    assert figures.steps_of(0.11, 4) == [(1, 2)]
    assert figures.steps_of(0.095, 20) == []


def test_a_number_that_was_too_small_is_not_gone_back_to_for_half_an_hour():
    figures = at_start(num_workers=2, high=3)
    assert figures.steps_of(0.3, 4) == [(2, 3)]
    assert figures.steps_of(0.0, 178) == []
    assert figures.steps_of(0.0, 20) == [(3, 2)]


def test_counters_that_start_again_after_a_restart_of_the_learner_are_a_new_beginning():
    figures = at_start(num_workers=1)
    assert figures.steps_of(0.5, 3) == []
    figures.steps, figures.loop_s, figures.waited_s = 1, 0.0, 0.0
    assert figures.observe() is None
    assert figures.steps_of(0.5, 3) == []
    assert figures.steps_of(0.5, 1) == [(1, 2)]


def test_seconds_that_start_again_at_the_step_that_was_reached_are_a_new_beginning_too():
    figures = at_start(num_workers=1)
    assert figures.steps_of(0.5, 3) == []
    figures.loop_s, figures.waited_s = -5.0, 0.0  # the next step ends 5 s after the restart
    assert figures.steps_of(0.5, 4) == []
    assert figures.steps_of(0.5, 1) == [(1, 2)]


class Run:
    """A run whose step takes as long as the slower of learner (1 s) and workers (`work_s` / number), unless
    `floor_s` of it is the time of one group, which no number of workers shortens."""

    def __init__(self, low, high, work_s, floor_s=0.0, start_steps=3):
        self.figures = Figures(Autoscaler(low, high), low)
        self.work_s, self.floor_s, self.start_steps = work_s, floor_s, start_steps
        self.starting = 0
        self.history = []

    def go(self, steps):
        figures = self.figures
        for _ in range(steps):
            if self.starting:
                self.starting -= 1
                figures.serving = figures.wanted if not self.starting else figures.serving
            rollout_s = max(self.floor_s, self.work_s / min(figures.serving, figures.wanted))
            figures.step_s = max(1.0, rollout_s)
            before = figures.wanted
            figures.steps_of(1 - 1 / figures.step_s, 1)
            if figures.wanted > before:
                figures.serving, self.starting = before, self.start_steps
            if figures.wanted != before:
                self.history.append(figures.wanted)


def test_it_finds_the_number_at_which_the_learner_stops_waiting_and_stays_there():
    run = Run(1, 16, work_s=5.6)
    run.go(1500)
    assert run.history == [2, 3, 4, 5, 6]  # at 5 the share is 1 - 5 / 5.6 = 0.107, at 6 it is 0


def test_what_one_group_takes_is_not_fought_with_workers():
    run = Run(1, 16, work_s=4.0, floor_s=2.0)
    run.go(600)
    assert run.history == [2, 3, 2]  # at 2 the share is 0.5, at 3 it still is


def test_when_less_is_to_do_it_shrinks_and_stays_within_the_bounds():
    run = Run(1, 16, work_s=3.4)
    run.go(600)
    assert run.history == [2, 3, 4]
    run.work_s = 0.5
    run.go(4000)
    assert run.history == [2, 3, 4, 3, 2, 1]
