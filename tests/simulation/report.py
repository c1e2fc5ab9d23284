"""What becomes of a seed."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Report:
    """What became of a seed."""

    seed: int
    ending: str = ""
    violations: list[str] = field(default_factory=list)
    trace: list[tuple[float, str]] = field(default_factory=list)
    num_lives: int = 0
    num_checks: int = 0
    simulated_s: float = 0.0
    injected: Counter[str] = field(default_factory=Counter)
    lives: Counter[str] = field(default_factory=Counter)
    """How the lives of the driver ended."""
