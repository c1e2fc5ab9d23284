"""Running a training run on Ray: the loop, its buffer, actors, pools, weight sync, launch."""
