"""Term `length`: keeps completions short."""

from collections.abc import Sequence

from alphadrive.types import Completion


def length_values(completions: Sequence[Completion], length_chars: int) -> list[float]:
    """`-min(1, max(0, n - length_chars) / length_chars)`, in [-1, 0], n the characters of the whole text.

    0 up to `length_chars`, then falling in a line to -1 at twice as many. Characters of the whole text,
    because words can be written without spaces between them, and reasoning outside of `<think>`.
    """
    return [
        -min(1.0, max(0, len(completion.text) - length_chars) / length_chars) for completion in completions
    ]
