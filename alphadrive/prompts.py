"""The words a planner is asked with and taught to answer in (paper, section 3.2 and appendix), and those
its teacher is asked with (section 3.4).

Chat messages and answer text only. Tokens and pixels are made by `alphadrive.processing`; how a trajectory
is written is in `alphadrive.trajectory`.
"""

from collections.abc import Sequence

from alphadrive.actions import PATHS, SPEEDS, Path, Plan, Speed
from alphadrive.trajectory import trajectory_text

SPEED_WORDS: dict[Speed, str] = {
    "KEEP": "keep the current speed",
    "ACCELERATE": "accelerate",
    "DECELERATE": "slow down",
    "STOP": "come to a stop",
}
PATH_WORDS: dict[Path, str] = {
    "STRAIGHT": "go straight",
    "RIGHT_CHANGE": "change to the right lane",
    "LEFT_CHANGE": "change to the left lane",
    "RIGHT_TURN": "turn right",
    "LEFT_TURN": "turn left",
}
"""Each action as the teacher is told it."""

UNKNOWN_SPEED = "unknown"
NO_NAVIGATION = "no navigation"
"""What a prompt says in place of a speed or a navigation command that is withheld. An imported row whose
navigation is not known says the same."""


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + f", and {words[-1]}"


_TRAJECTORY = (
    " Between reasoning and answer state the trajectory in <trajectory> </trajectory> tags: your position "
    "(x, y) in metres, x forward and y left, every 0.5 seconds for three seconds. For example, at a steady "
    "8m/s: '<trajectory> (4.00, 0.00) (8.00, 0.00) (12.00, 0.00) (16.00, 0.00) (20.00, 0.00) (24.00, 0.00) "
    "</trajectory>'."
)


def planning_prompt(speed_mps: float | None, navigation: str | None, with_trajectory: bool = False) -> str:
    """The paper's planning prompt for one situation. `speed_mps` is printed with one decimal.

    None withholds a value; the sentence stays whole: "Your current speed is unknown, the navigation command
    is 'no navigation', …". `with_trajectory` asks for a trajectory beside the plan, which the paper does not.
    """
    speed = UNKNOWN_SPEED if speed_mps is None else f"{speed_mps:.1f}m/s"
    command = NO_NAVIGATION if navigation is None else navigation
    prompt = (
        f"You are an expert driving assistant. Your current speed is {speed}, the navigation "
        f"command is '{command}', based on the understanding of the driving scene and the navigation "
        "information, what is your driving plan for the next three seconds? Output the planning reasoning "
        "process in <think> </think> and final planning answer in <answer> </answer> tags, respectively. "
        f"Planning answer consists of SPEED plan and PATH plan, SPEED includes {_listed(SPEEDS)}. "
        f"PATH includes {_listed(PATHS)}. For example, a correct answer format is like "
        "'<think> planning reasoning process here </think> <answer> KEEP, LEFT_TURN </answer>'."
    )
    return prompt + _TRAJECTORY if with_trajectory else prompt


def planning_messages(
    speed_mps: float | None, navigation: str | None, with_trajectory: bool = False
) -> list[dict[str, object]]:
    """Chat messages for one front image and one situation, for a processor's chat template."""
    text = planning_prompt(speed_mps, navigation, with_trajectory)
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def answer_text(reasoning: str, plan: str, waypoints: Sequence[Sequence[float]] | None = None) -> str:
    """The text a planner should write: `<think> … </think> <answer> … </answer>`, with `waypoints` the
    trajectory between the two."""
    trajectory = f"<trajectory> {trajectory_text(waypoints)} </trajectory> " if waypoints else ""
    return f"<think> {reasoning} </think> {trajectory}<answer> {plan} </answer>"


def teacher_prompt(speed_mps: float, navigation: str, plan: Plan, refused: Sequence[str] = ()) -> str:
    """What a teacher is asked about one front image: why the true `plan` is right.

    Speed, navigation and the true decision go in, one or two sentences come out. `refused` are the
    problems of this row's earlier answers, in order; with them the question differs each time.
    """
    decision = f"{SPEED_WORDS[plan.speed]} and {PATH_WORDS[plan.path]}"
    text = (
        "The image is the view of a vehicle's front camera. The vehicle's current speed is "
        f"{speed_mps:.1f}m/s, the navigation command is '{navigation}'. The right decision for the next "
        f"three seconds is known: {decision}. Explain in one or two sentences why, from what decides it in "
        f"the image. State the decision in plain words ('{decision}'), and name no other manoeuvre, "
        "not even to rule it out. Mention only what is visible. Write plain sentences: no lists, no tags, "
        "no heading, no line breaks."
    )
    if refused:
        text += " Earlier answers were refused: " + "; ".join(refused) + "."
    return text


def visibility_prompt(reasoning: str, refused: Sequence[str] = ()) -> str:
    """What is asked about the same image afterwards: whether each object that `reasoning` names is there."""
    text = (
        f"Here is a remark about the image, made by somebody who may be wrong: '{reasoning}' For each object "
        "that the remark says is there (vehicle, person, traffic light, sign, marking, obstacle, and so on), "
        "write one line with the object, a colon, and yes if it is visible in the image as described, or no "
        "if it is not. Write nothing else. If the remark names no object, write: none"
    )
    if refused:
        text += " Earlier answers were refused: " + "; ".join(refused) + "."
    return text
