"""The values that travel between the parts of the system.

All are frozen: a stage makes a new one, never edits what it was given. Pixels and tensors are not
here; a query carries a row index and each process opens the dataset itself. `TrainBatch` (tensors)
lives inside `learner/` only.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self


class WeightVersion(NamedTuple):
    """Which policy a token was drawn from: `attempt` of the learner, `step` within it.

    Step 0 is the policy the run started from, k the policy after k calls of `learner.step`. The
    attempt grows by one at every restart of the learner, so a version never names two policies.
    """

    attempt: int
    step: int

    def __str__(self) -> str:
        return f"{self.attempt}.{self.step}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `"0.12"`. Raises ValueError for anything else."""
        attempt, step = text.split(".")
        return cls(int(attempt), int(step))


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpan:
    """Tokens [start, end) of a completion were drawn under `version`."""

    version: WeightVersion
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DrivingQuery:
    """One driving situation to plan for: a row of a dataset, without its pixels.

    `speed_mps` is in m/s. `plans` are all acceptable plans (`"KEEP, STRAIGHT"`), the recorded one
    first. `reasoning` is the teacher's, `waypoints` the driven (x, y) in m (see `alphadrive.trajectory`),
    where there are any. `withheld` names what the prompt does not tell (`speed`, `navigation`): an
    evaluation asks so what a planner makes of it. `seed` is where the sampling of its completions starts,
    set when it is issued for training.
    """

    query_id: str
    row: int
    speed_mps: float
    navigation: str
    plans: tuple[str, ...]
    reasoning: str | None = None
    waypoints: tuple[tuple[float, ...], ...] | None = None
    withheld: frozenset[str] = frozenset()
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer. `rollout_logprobs[i]` is the sampler's own log-probability of
    `token_ids[i]`, after temperature and the vision-token mask."""

    text: str
    token_ids: tuple[int, ...]
    rollout_logprobs: tuple[float, ...]
    finish_reason: str
    weight_versions: tuple[VersionSpan, ...]

    @property
    def oldest_version(self) -> WeightVersion:
        """The version of the oldest token."""
        return min(span.version for span in self.weight_versions)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """G completions of one query, drawn by one engine in one request.

    `prompt_token_ids` has one placeholder for every vision token, as the engine saw it. `ticket`
    orders groups; it is given when the query is issued and kept if the group is drawn again. It was asked
    for at `generate_started_s` (Unix time) and took `generate_s`, waiting in the engine included; both 0
    where nobody looked at the clock.
    """

    ticket: int
    query: DrivingQuery
    prompt_token_ids: tuple[int, ...]
    completions: tuple[Completion, ...]
    engine_id: str
    generate_started_s: float = 0.0
    generate_s: float = 0.0

    @property
    def oldest_version(self) -> WeightVersion:
        """The version of the oldest token of the group."""
        return min(completion.oldest_version for completion in self.completions)


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardBreakdown:
    """The reward of one completion: every term by name, already weighted, and their total."""

    terms: dict[str, float]
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A group with a reward and an advantage for each completion. `score_s` is what scoring took, 0 where
    nobody looked at the clock."""

    group: RolloutGroup
    rewards: tuple[RewardBreakdown, ...]
    advantages: tuple[float, ...]
    score_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupHeader:
    """All that the driver sees of a scored group; standard deviations are the population's. `scored` is a
    reference to the group itself: a Ray object reference on a cluster, the group where everything runs in
    one process."""

    ticket: int
    query_id: str
    row: int
    weight_version: WeightVersion
    reward_mean: float
    reward_std: float
    reward_min: float
    reward_max: float
    term_means: dict[str, float]
    term_stds: dict[str, float]
    num_tokens: int
    scored: object

    @property
    def has_signal(self) -> bool:
        """Whether the rewards differ, so that the advantages are not all zero."""
        return self.reward_std > 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsFile:
    """The learner's weights of one version, as a safetensors file that every engine can read.

    Names are those `save_pretrained` writes; a tied lm_head is left out. `sha256` is the digest of
    the tensors (see `alphadrive.weights.WeightDigest`), not of the file.
    """

    path: str
    version: WeightVersion
    sha256: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsOffer:
    """Weights of one version that the learner is ready to send: who asks its store at `host`:`port` for round
    `round` is told which tensors. `kind` is `gloo`, `nccl` or `ipc`."""

    kind: str
    host: str
    port: int
    round: int
    version: WeightVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsStream:
    """An offer to one engine: it takes part as `member`, and waits `timeout_s` for the learner at most."""

    offer: WeightsOffer
    member: str
    timeout_s: float

    @property
    def version(self) -> WeightVersion:
        """Of the weights on offer."""
        return self.offer.version


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSent:
    """What the learner has sent: the digest of its tensors, and by engine why one did not get them all."""

    version: WeightVersion
    sha256: str
    num_bytes: int
    missing: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What one call of `learner.step` did. `metrics` uses the names in `alphadrive.metric_names`.

    `problem` says what was not finite and kept an update from being made; None when nothing was. With
    `was_updated` False no update was made at all: the policy of `weight_version` is the one before.
    """

    step: int
    weight_version: WeightVersion
    metrics: dict[str, float]
    problem: str | None = None
    was_updated: bool = True
