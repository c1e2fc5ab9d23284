"""Which actions a text names as what the driver does, in plain words rather than labels.

Phrases of each action are looked for in all their forms; one that another road user does ("the truck ahead
is braking"), one that belongs to a thing ("stop line", "left turn lane") and the navigation command quoted
do not count. A negated one does: a text that rules an action out still names it.
"""

import re

from alphadrive.actions import Path, Speed

_OWN = r"(?:(?:the|its|our|my|your|this|that|a|an|current|present|same|own|vehicle's|car's|ego) )"
_MOVING = r"(?:go|goes|going|driv\w+|mov\w+|proceed\w*|continu\w+|travel\w*|head\w*|carry\w*|keep\w*)"


def _turn(side: str) -> str:
    thing = r"(?![\s-]+(?:lanes?|arrows?|signals?|signs?|lights?|only|pockets?|indicators?|bays?))"
    return (
        rf"turn(?:s|ed|ing)? (?:to the )?{side}\b(?! lane)|{side}(?:-hand)?[\s-]turns?\b{thing}"
        r"|(?:tak|mak)(?:e|es|ing) (?:it|(?:the|a) (?:next |first |\w+ to the )?) ?(?:to the )?"
        rf"{side}\b(?! lane)"
    )


def _change(side: str) -> str:
    moving = r"(?:chang|mov|merg|shift|switch|steer|swerv|veer|pull|cross|go|return)(?:e|es|s|ed|ing|ting)?"
    return (
        rf"{moving} (?:lanes? |over |across |out |back |in)*(?:to|into|toward|towards) the {side}\b(?! turn)"
        rf"|(?:to the )?{side}(?:ward)? lane[\s-]changes?|lane[\s-]changes? (?:in)?to the {side}"
        rf"|(?:tak|us|enter)(?:e|es|ing|ering) the {side} lane"
    )


_PHRASES: dict[Speed | Path, str] = {
    "KEEP": (
        rf"(?:keep|maintain|hold|stay|remain|continu)\w* (?:at |with |on )?{_OWN}*"
        r"(?:constant |steady |moderate |safe |cruising |low |\d[\d.]* ?m/s )*(?:speed|pace|velocity)\b"
        r"|(?:constant|steady|unchanged|same) (?:speed|pace|velocity)\b|cruis(?:e|es|ing)\b"
    ),
    "ACCELERATE": (
        r"accelerat\w+|speed(?:s|ing)? up|(?:go|goes|going|driv\w+|mov\w+) faster"
        rf"|(?:increas|rais|gain|pick|build)(?:e|es|s|ing)?(?: up)? {_OWN}*speed\b"
        r"|(?:start|begin|resum)(?:e|s|es|ing|ning)? (?:to )?(?:mov|driv|roll)\w+|pull(?:s|ing)? away"
    ),
    "DECELERATE": (
        r"decelerat\w+|slow(?:s|ed|ing)?(?: \w+){0,2} down|slowing\b(?! \w*ly down)"
        r"|(?:to|should|must|will|and|can) slow\b(?! \w*ly)"
        r"|brak(?:e|es|ed|ing)\b(?![\s-]*(?:lights?|lamps?))"
        rf"|(?:reduc|lower|decreas)(?:e|es|ed|ing) {_OWN}*speed\b"
    ),
    "STOP": (
        r"(?<!bus )(?<!tram )stop(?:s|ped|ping)?\b(?![\s-]+(?:signs?|lines?|lights?|and-go|markings?))"
        r"|halt(?:s|ed|ing)?\b|standstill|wait(?:s|ing)?\b|(?:remain|stay|stand)\w* (?:stationary|still)\b"
    ),
    "STRAIGHT": (
        rf"{_MOVING} (?:on |moving |going |driving )*straight\b|straight (?:on|through|forward)\b"
        rf"|(?:stay|keep|remain|continu)\w* (?:straight|(?:in|within) {_OWN}*lane)\b"
    ),
    "LEFT_TURN": _turn("left"),
    "RIGHT_TURN": _turn("right"),
    "LEFT_CHANGE": _change("left"),
    "RIGHT_CHANGE": _change("right"),
}
_PATTERNS = {word: re.compile(rf"\b(?:{phrase})", re.IGNORECASE) for word, phrase in _PHRASES.items()}

_USERS = (
    r"(?:cars|vehicles|trucks?|lorr(?:y|ies)|bus(?:es)?|trams?|vans?|taxis?|suvs?|cyclists?|bicycles?|bikes?"
    r"|motorcycl\w+|scooters?|pedestrians?|persons?|people|child(?:ren)?|traffic|drivers|someone|they|which"
    r"|who|(?:lead|leading|preceding|other|another|oncoming|front|next|parked|white|black|red|blue|silver"
    r"|gr[ae]y) (?:car|vehicle|driver)|(?:an?|one) (?:\w+ )?(?:car|vehicle)"
    r"|(?:car|vehicle|driver)(?= (?:ahead|in|on|to|at|from|directly|just|behind|beside)\b))"
)
_WHERE = (
    r"(?: (?:directly |just )?(?:ahead|in front(?: of (?:us|it|the (?:ego |own )?vehicle))?|behind|opposite"
    r"|crossing|(?:in|on|to|from) the (?:\w+ )?(?:left|right|front|lane|road|crossing|crosswalk|junction"
    r"|intersection)"
    r"|at \d+ ?m(?:et(?:re|er)s)?))*"
)
_DOING = (
    r"(?: (?:is|are|was|were|has|have|been|also|now|already|may|might|can|could|starts?|started|begins?|to"
    r"|that|who|which|slightly|gradually|slowly|currently|all|both|preparing|about))*"
)
_AFTER_ANOTHER = re.compile(rf"\b{_USERS}{_WHERE}{_DOING}\s*$", re.IGNORECASE)
_BEFORE_ANOTHER = re.compile(rf"\s+(?:\w+ )?{_USERS}\b|\s+(?:car|vehicle)\b", re.IGNORECASE)
_PARTICIPLE = re.compile(r"(?:ed|ing)$", re.IGNORECASE)
_SUBJECT_CHARS = 90


def named_actions(text: str, navigation: str) -> dict[Speed | Path, str]:
    """The actions a text names for the driver, each with the first phrase that does so.

    >>> named_actions("The truck ahead is braking at the stop line, so slow down.", "Straight")
    {'DECELERATE': 'slow down'}
    """
    plain = " ".join(text.split())
    if navigation.strip():
        quoted = re.compile(re.escape(" ".join(navigation.split())), re.IGNORECASE)
        plain = quoted.sub("the route", plain)
    named: dict[Speed | Path, str] = {}
    for word, pattern in _PATTERNS.items():
        for match in pattern.finditer(plain):
            if not _is_of_another(plain, match):
                named[word] = match.group().strip()
                break
    return named


def _is_of_another(text: str, match: re.Match[str]) -> bool:
    """Whether another road user does it: named before it ("traffic is slowing") or right after a
    participle ("a stopped bus")."""
    before = text[max(0, match.start() - _SUBJECT_CHARS) : match.start()]
    if _AFTER_ANOTHER.search(before):
        return True
    is_participle = _PARTICIPLE.search(match.group()) is not None
    return is_participle and _BEFORE_ANOTHER.match(text, match.end()) is not None
