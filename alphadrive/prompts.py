"""The words a planner is asked with and taught to answer in (paper, section 3.2 and appendix).

Chat messages and answer text only. Tokens and pixels are made by `alphadrive.processing`; how a trajectory
is written is in `alphadrive.trajectory`.
"""

from collections.abc import Sequence

from alphadrive.actions import PATHS, SPEEDS
from alphadrive.trajectory import trajectory_text


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + f", and {words[-1]}"


_TRAJECTORY = (
    " Between reasoning and answer state the trajectory in <trajectory> </trajectory> tags: your position "
    "(x, y) in metres, x forward and y left, every 0.5 seconds for three seconds. For example, at a steady "
    "8m/s: '<trajectory> (4.00, 0.00) (8.00, 0.00) (12.00, 0.00) (16.00, 0.00) (20.00, 0.00) (24.00, 0.00) "
    "</trajectory>'."
)


def planning_prompt(speed_mps: float, navigation: str, with_trajectory: bool = False) -> str:
    """The paper's planning prompt for one situation. `speed_mps` is printed with one decimal.

    `with_trajectory` asks for a trajectory beside the plan, which the paper does not.
    """
    prompt = (
        f"You are an expert driving assistant. Your current speed is {speed_mps:.1f}m/s, the navigation "
        f"command is '{navigation}', based on the understanding of the driving scene and the navigation "
        "information, what is your driving plan for the next three seconds? Output the planning reasoning "
        "process in <think> </think> and final planning answer in <answer> </answer> tags, respectively. "
        f"Planning answer consists of SPEED plan and PATH plan, SPEED includes {_listed(SPEEDS)}. "
        f"PATH includes {_listed(PATHS)}. For example, a correct answer format is like "
        "'<think> planning reasoning process here </think> <answer> KEEP, LEFT_TURN </answer>'."
    )
    return prompt + _TRAJECTORY if with_trajectory else prompt


def planning_messages(
    speed_mps: float, navigation: str, with_trajectory: bool = False
) -> list[dict[str, object]]:
    """Chat messages for one front image and one situation, for a processor's chat template."""
    text = planning_prompt(speed_mps, navigation, with_trajectory)
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def answer_text(reasoning: str, plan: str, waypoints: Sequence[Sequence[float]] | None = None) -> str:
    """The text a planner should write: `<think> … </think> <answer> … </answer>`, with `waypoints` the
    trajectory between the two."""
    trajectory = f"<trajectory> {trajectory_text(waypoints)} </trajectory> " if waypoints else ""
    return f"<think> {reasoning} </think> {trajectory}<answer> {plan} </answer>"
