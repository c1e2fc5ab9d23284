"""The words a planner is asked with and taught to answer in (paper, section 3.2 and appendix).

Chat messages and answer text only. Tokens and pixels are made by `alphadrive.processing`.
"""

from alphadrive.actions import PATHS, SPEEDS

UNKNOWN = "unknown"
"""What a prompt says in place of a speed or a navigation command that is withheld."""


def _listed(words: tuple[str, ...]) -> str:
    return ", ".join(words[:-1]) + f", and {words[-1]}"


def planning_prompt(speed_mps: float | None, navigation: str | None) -> str:
    """The paper's planning prompt for one situation. `speed_mps` is printed with one decimal.

    None withholds a value; the sentence stays whole: "Your current speed is unknown, the navigation command
    is 'unknown', …".
    """
    speed = UNKNOWN if speed_mps is None else f"{speed_mps:.1f}m/s"
    command = UNKNOWN if navigation is None else navigation
    return (
        f"You are an expert driving assistant. Your current speed is {speed}, the navigation "
        f"command is '{command}', based on the understanding of the driving scene and the navigation "
        "information, what is your driving plan for the next three seconds? Output the planning reasoning "
        "process in <think> </think> and final planning answer in <answer> </answer> tags, respectively. "
        f"Planning answer consists of SPEED plan and PATH plan, SPEED includes {_listed(SPEEDS)}. "
        f"PATH includes {_listed(PATHS)}. For example, a correct answer format is like "
        "'<think> planning reasoning process here </think> <answer> KEEP, LEFT_TURN </answer>'."
    )


def planning_messages(speed_mps: float | None, navigation: str | None) -> list[dict[str, object]]:
    """Chat messages for one front image and one situation, for a processor's chat template."""
    text = planning_prompt(speed_mps, navigation)
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def answer_text(reasoning: str, plan: str) -> str:
    """The text a planner should write: `<think> … </think> <answer> … </answer>`."""
    return f"<think> {reasoning} </think> <answer> {plan} </answer>"
