"""Import of nuScenes through its devkit: CAM_FRONT at the key frames, labels from the ego poses.

One row a sample (2 Hz). The trajectory is that of the ego poses of all CAM_FRONT sweeps (about 12 Hz),
the speed comes from it too. One scene is one unit. The devkit holds all tables in memory. It is an
optional dependency; docs/nuscenes.md says how it is installed.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alphadrive.data.candidates import Candidate
from alphadrive.data.drive_rows import Drive, Moment, RowOptions
from alphadrive.data.importing import ImportSource, SourceUnit
from alphadrive.data.paths import read_file_under
from alphadrive.data.trajectory import Track, speeds_from_positions
from alphadrive.errors import ConfigError, DataError

SOURCE = "nuscenes"
CAMERA = "CAM_FRONT"
SPLITS = {
    "v1.0-mini": ("mini_train", "mini_val"),
    "v1.0-trainval": ("train", "val"),
    "v1.0-test": ("test",),
}
"""The official splits of each version of the data set; a scene is in one of them."""
INSTALL = "pip install 'alphadrive[nuscenes]' && pip install --no-deps nuscenes-devkit==1.2.0"


def nuscenes_source(path: Path, version: str, split: str | None, options: RowOptions) -> ImportSource:
    """The scenes of one version of the data set, or of one official split of it.

    Raises ConfigError when the devkit is missing or the version has no such split, DataError when the
    tables are incomplete.
    """
    if split is not None and split not in SPLITS[version]:
        raise ConfigError(
            f"--split {split}: {version} has no such split; expected {' or '.join(SPLITS[version])}, or none "
            "for all of its scenes"
        )
    database, scene_names = _load(path, version)
    split_of = {name: part for part in SPLITS[version] for name in scene_names[part]}
    scenes = [scene for scene in database.scene if split in (None, split_of.get(scene["name"]))]
    if not scenes:
        raise DataError(f"{path}: {version} holds no scene of split {split}")
    return ImportSource(
        layout=SOURCE,
        path=path,
        units=[
            SourceUnit(
                name=scene["name"],
                candidates=functools.partial(
                    _candidates, database, path, scene, split_of.get(scene["name"], version), options
                ),
            )
            for scene in scenes
        ],
        files=sorted((path / version).glob("*.json")),
        options=options.as_text() | {"version": version, "split": str(split)},
    )


def _load(path: Path, version: str) -> tuple[Any, dict[str, list[str]]]:
    """The devkit's tables and the scene names of each official split."""
    if not (path / version).is_dir():
        raise DataError(f"{path}: no folder {version}; expected {version}/*.json, maps/ and samples/ in it")
    max_pixels = Image.MAX_IMAGE_PIXELS
    try:
        from nuscenes import NuScenes
        from nuscenes.utils.splits import create_splits_scenes
    except ImportError as error:
        raise ConfigError(
            f"the nuScenes importer needs the devkit ({error}); install it: {INSTALL}"
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = max_pixels  # The devkit lifts Pillow's limit for the whole process.
    try:
        database = NuScenes(version=version, dataroot=str(path), verbose=False)
    except (AssertionError, OSError, json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{path}: the tables of {version} cannot be read ({type(error).__name__}: {error}); expected all "
            "tables and the maps they name: unpack the archive again"
        ) from error
    return database, create_splits_scenes()


def _candidates(
    database: Any, root: Path, scene: dict[str, Any], split: str, options: RowOptions
) -> Iterator[Candidate]:
    where = f"{root / database.version}: scene {scene['name']}"
    try:
        track = _track(database, scene)
        samples = list(_samples(database, scene))
    except (KeyError, ValueError, TypeError) as error:
        yield Candidate(
            where=where, problems=[f"tables: {type(error).__name__}: {error}; expected {CAMERA} data"]
        )
        return
    drive = Drive(
        track=track,
        source=SOURCE,
        scene_id=f"{SOURCE}/{scene['name']}",
        split=split,
        start_s=float(track.time_s[0]),
    )
    moments = (
        Moment(
            where=where,
            row=sample["token"],
            query_id=f"{SOURCE}/{sample['token']}",
            time_s=image["timestamp"] / 1e6,
            read_image=functools.partial(read_file_under, root, image["filename"]),
            share_done=(number + 1) / len(samples),
        )
        for number, (sample, image) in enumerate(samples)
    )
    yield from drive.candidates(moments, options)


def _samples(database: Any, scene: dict[str, Any]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The samples of a scene in order, each with its key frame of the front camera."""
    token = scene["first_sample_token"]
    while token:
        sample = database.get("sample", token)
        yield sample, database.get("sample_data", sample["data"][CAMERA])
        token = sample["next"]


def _track(database: Any, scene: dict[str, Any]) -> Track:
    """The ego poses of all sweeps of the front camera in a scene."""
    token = database.get("sample", scene["first_sample_token"])["data"][CAMERA]
    poses: list[tuple[float, ...]] = []
    while token:
        sweep = database.get("sample_data", token)
        pose = database.get("ego_pose", sweep["ego_pose_token"])
        time_s = sweep["timestamp"] / 1e6
        if not poses or time_s > poses[-1][0]:
            poses.append((time_s, *pose["translation"][:2], *pose["rotation"]))
        token = sweep["next"]
    values = np.array(poses, np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"got {len(values)} ego poses, expected at least two of finite numbers")
    time_s, x, y, qw, qx, qy, qz = values.T
    return Track(
        time_s=time_s,
        x_m=x,
        y_m=y,
        speed_mps=speeds_from_positions(time_s, x, y),
        yaw_rad=np.arctan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy**2 + qz**2)),
    )
