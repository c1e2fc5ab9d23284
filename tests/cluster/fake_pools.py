"""Pools that can be resized, without workers behind them: a new worker serves when it is told to."""

from cluster.workers import WorkerState, WorkerStatus


class FakePool:
    def __init__(self, kind, num_workers):
        self.kind, self.num_wanted, self.num_serving = kind, num_workers, num_workers
        self.resizes, self.num_lost = [], 0

    def resize(self, num_workers):
        self.resizes.append(num_workers)
        self.num_wanted = num_workers
        self.num_serving = min(self.num_serving, num_workers)

    def workers(self):
        return [self.worker(index) for index in range(self.num_wanted)]

    def worker(self, index):
        is_serving = index < self.num_serving
        return WorkerStatus(
            kind=self.kind,
            id=f"{self.kind}-{index}",
            pid=1000 + index if is_serving else None,
            node="ab" * 28 if is_serving else None,
            state=WorkerState.SERVING if is_serving else WorkerState.STARTING,
            weight_version="0.3" if self.kind == "rollout" and is_serving else None,
            groups_done=10 * index if is_serving else 0,
            last_progress_s=1000.0 if is_serving else None,
        )
