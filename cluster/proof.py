"""The proof that an engine holds the weights it claims: digest, then canary.

The digest shows that the right bytes arrived. The canary shows that the engine computes with them: it
draws a few short completions of image prompts, and the learner computes the log-probabilities of the
same tokens. Stale packed matrices, a cached image or prefix, a wrong mask all show up there. Plain
values only; used by `cluster.weight_sync` and by the single-process mode.
"""

from collections.abc import Callable, Sequence

from alphadrive.errors import WeightSyncError
from alphadrive.types import DrivingQuery, WeightsFile, WeightsSent, WeightVersion
from rollout.settings import Sampling

CANARY_SEED = 20_250
NUM_COMPLETIONS = 2
NUM_TOKENS = 8
TOLERANCE_FACTOR = 4.0
FLOOR = {"float32": 1e-4, "bfloat16": 2e-2}
CEILING = {"float32": 2e-2, "bfloat16": 0.5}


def canary_queries(
    query_of_row: Callable[[int], DrivingQuery], num_rows: int, num_canaries: int
) -> list[DrivingQuery]:
    """Queries spread evenly over a dataset of `num_rows` rows."""
    count = min(num_canaries, num_rows)
    return [query_of_row(index * num_rows // count) for index in range(count)]


def canary_sampling(temperature: float) -> Sampling:
    """Short and always the same draw for the same weights, at the temperature trained at."""
    return Sampling(
        num_samples=NUM_COMPLETIONS, temperature=temperature, max_new_tokens=NUM_TOKENS, seed=CANARY_SEED
    )


def check_digest(
    engine_id: str, weights: WeightsFile | WeightsSent, received: str, published: WeightVersion
) -> None:
    """Raises WeightSyncError unless the engine received the learner's tensors of this version."""
    if weights.version != published:
        raise WeightSyncError(
            f"the learner exported version {weights.version} of its weights, expected {published}"
        )
    if received != weights.sha256:
        raise WeightSyncError(
            f"{engine_id}: received tensors with SHA-256 {received} as version {weights.version}, expected "
            f"{weights.sha256}; the run stops before anything is trained on what it would draw"
        )


class CanaryLimit:
    """How far apart engine and learner may be, set by how far they are at version 0.

    At version 0 both have read the same files, so what differs is arithmetic alone. From then on
    four times that is allowed, and no less than a floor for the dtype.
    """

    def __init__(self, dtype: str) -> None:
        self._floor, self._ceiling = FLOOR[dtype], CEILING[dtype]
        self.limit: float | None = None

    def calibrate(self, differences: Sequence[float]) -> None:
        """Set the limit. Raises WeightSyncError when the two compute different models to begin with."""
        difference = max(differences)
        if not difference <= self._ceiling:
            raise WeightSyncError(
                f"engine and learner disagree by {difference:.3g} in a log-probability before any update, "
                f"expected at most {self._ceiling:g}: they do not compute the same model (check model.path, "
                "model.dtype, model.max_pixels)"
            )
        self.limit = max(self._floor, TOLERANCE_FACTOR * difference)

    def check(self, engine_id: str, version: WeightVersion, difference: float) -> None:
        """Raises WeightSyncError for a difference above the limit (or not a number)."""
        assert self.limit is not None, "calibrate first"
        if not difference <= self.limit:
            raise WeightSyncError(
                f"{engine_id}: canary at version {version}: log-probabilities differ from the learner's by "
                f"{difference:.3g}, expected at most {self.limit:.3g}: the engine does not compute with the "
                "weights it received (stale packed weights or caches)"
            )
