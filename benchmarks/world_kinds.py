"""What docs/world.md says about each kind of scene, measured, and its pictures.

python benchmarks/world_kinds.py figures             the tables, on 1,500 scenes of each kind
python benchmarks/world_kinds.py pictures docs/images   one sheet of eight scenes a kind
"""

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from alphadrive.actions import Plan
from alphadrive.world.choices import FREQUENCIES, KINDS, Frequencies, Kind
from alphadrive.world.kinds import Population, View, views
from alphadrive.world.kinematics import acceptable_plans
from alphadrive.world.render import HEIGHT, WIDTH, render
from alphadrive.world.teacher import explain

NUM_SCENES = 1500
COLUMNS, ROWS, GAP = 4, 2, 4


def rows_of(kind: Kind, split: str, num: int, frequencies: Frequencies = "balanced") -> Iterator[View]:
    """The rows of `num` scenes of seed 0."""
    population = Population(kind=kind, frequencies=frequencies, split=split, seed=0)
    for index in range(num):
        yield from views(population, index)


def situation(view: View) -> tuple[int, str]:
    """All that a driver without eyes knows: the speed, to 2 m/s, and the route."""
    return round(view.scene.speed_mps / 2), view.scene.command


def best_plans(train: Sequence[View]) -> dict[tuple[int, str], Plan]:
    """For each situation, the plan that was acceptable most often."""
    counts: dict[tuple[int, str], Counter[Plan]] = defaultdict(Counter)
    for view in train:
        counts[situation(view)].update(acceptable_plans(view.scene))
    return {key: plans.most_common(1)[0][0] for key, plans in counts.items()}


def print_figures() -> None:
    """For each kind: rows, and what a constant, a driver without eyes and the teacher reach."""
    blind_by_frequencies: dict[Frequencies, dict[tuple[int, str], Plan]] = {
        each: best_plans(list(rows_of("plain", "train", 2 * NUM_SCENES, each))) for each in FREQUENCIES
    }
    print("| scenes | rows | several plans | always one plan | speed and route | the teacher |")
    print("|---|---|---|---|---|---|")
    for kind, frequencies in [*((kind, "balanced") for kind in KINDS), ("plain", "boreas")]:
        blind = blind_by_frequencies[frequencies]
        held_out = list(rows_of(kind, "eval", NUM_SCENES, frequencies))
        good = [acceptable_plans(view.scene) for view in held_out]
        constant = max(Counter(plan for plans in good for plan in plans).values())
        guessed = sum(blind.get(situation(v)) in plans for v, plans in zip(held_out, good, strict=True))
        taught = sum(
            explain(view.scene, view.recorded, number)[1] in plans
            for number, (view, plans) in enumerate(zip(held_out, good, strict=True))
        )
        several = sum(len(plans) > 1 for plans in good)
        shares = (f"{100 * count / len(good):.0f} %" for count in (several, constant, guessed, taught))
        name = kind if frequencies == "balanced" else f"{kind}, {frequencies}"
        print(f"| `{name}` | {len(good):,} | {' | '.join(shares)} |", flush=True)
        remarks = Counter(view.remark for view in held_out if view.remark)
        if len(remarks) > 1:
            print("  " + ", ".join(f"{remark.strip()} {count}" for remark, count in remarks.items()))


def draw_pictures(folder: Path) -> None:
    """Write `world-KIND.webp` for every kind but plain, eight rows of the eval split each."""
    for kind in KINDS[1:]:
        sheet = Image.new("RGB", (COLUMNS * (WIDTH + GAP) - GAP, ROWS * (HEIGHT + GAP) - GAP), "white")
        chosen = list(rows_of(kind, "eval", COLUMNS * ROWS))[: COLUMNS * ROWS]
        for place, view in enumerate(chosen):
            row, column = divmod(place, COLUMNS)
            sheet.paste(render(view.scene, view.look), (column * (WIDTH + GAP), row * (HEIGHT + GAP)))
        sheet.save(folder / f"world-{kind}.webp", quality=88, method=6)
        print(folder / f"world-{kind}.webp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("figures", "pictures"))
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/images"))
    args = parser.parse_args()
    if args.what == "figures":
        print_figures()
    else:
        draw_pictures(args.folder)


if __name__ == "__main__":
    main()
