"""What every worker did at each moment, or what it waited for.

    rollout   generate │ weights    new weights are brought and proved, or it is paused for them
                       │ tickets    all slots are taken by groups that the learner has yet to train
                       │ reward     the learner waits for a group that is being scored
                       │ groups     the learner waits for a group that another engine draws
    learner   train    │ groups, reward, weights
    reward    score    │ groups     nothing is there to be scored
    all                │ evaluation, checkpoint, other

What the train loop does tells why a worker without work has none: an idle engine has no ticket, and tickets
come when the learner has trained. Times in which an engine draws one group count as times in which it draws:
how many it draws at once is `groups_at_once` of the analysis.
"""

from collections.abc import Sequence

from alphadrive.profiling.intervals import Intervals, common, divided, union, without
from alphadrive.profiling.recording import GROUPS, LOOP, Recording, Track
from alphadrive.profiling.steps import Step

BUSY = {"rollout": "generate", "learner": "train", "reward": "score"}
CAUSES = ("weights", "tickets", "groups", "reward", "evaluation", "checkpoint", "other")


class LoopStates:
    """What the train loop did during `window`, and how its waits are divided."""

    def __init__(self, recording: Recording, steps: Sequence[Step], window: Intervals) -> None:
        driver = recording.driver
        self.window = window

        def during(name: str) -> Intervals:
            return common(window, driver.moments(name, lane=LOOP))

        self.train, self.weights = during("train"), during("sync")
        self.evaluation, self.checkpoint = during("evaluate"), during("checkpoint")
        scored = {int(span.args["ticket"]): span for span in driver.named("reward", lane=GROUPS)}
        scoring = [scored[step.last_group] for step in steps if step.last_group in scored]
        waits = during("wait")
        self.wait_for_reward = common(waits, union((span.start_ns, span.end_ns) for span in scoring))
        self.wait_for_groups = without(waits, self.wait_for_reward)

    def layers(self, while_training: str) -> list[tuple[str, Intervals]]:
        """Causes of idleness; `while_training` is what a worker waits for when the learner trains."""
        return [
            ("evaluation", self.evaluation),
            ("checkpoint", self.checkpoint),
            ("weights", self.weights),
            (while_training, self.train),
            ("reward", self.wait_for_reward),
            ("groups", self.wait_for_groups),
        ]

    def parts(self) -> dict[str, Intervals]:
        """What the loop did, by name."""
        return divided(self.window, self.layers("train"), "other")


def worker_states(track: Track, loop: LoopStates) -> dict[str, Intervals]:
    """What a worker did at each moment of the loop's window at which it was there."""
    present = common(loop.window, [track.presence])
    if track.kind == "rollout":
        layers = [
            ("weights", track.moments("paused")),
            ("generate", track.moments("generate", lane=GROUPS)),
            ("evaluation", track.moments("evaluate", lane=GROUPS)),
            ("weights", track.moments("sync")),
            *loop.layers("tickets"),
        ]
    elif track.kind == "learner":
        layers = [
            ("train", track.moments("train")),
            ("weights", track.moments("export", "canary")),
            ("checkpoint", track.moments("checkpoint")),
            *loop.layers("other"),
        ]
    else:
        return divided(present, [("score", track.moments("reward"))], "groups")
    return divided(present, layers, "other")
