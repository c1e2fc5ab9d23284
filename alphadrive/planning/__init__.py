"""What a run would bring with another number of workers: a simulation with what was measured in real runs.

    a run's folder ─ calibration, engine_fit ─▶ Measured ─┐
    a configuration ───────────────────────────▶ Setup ───┴─ simulation ─▶ Outcome ─ prediction ─▶ advice

It is a discrete-event simulation: `loop` keeps the rules of `cluster/loop.py` and its buffer, `pool` and
`exchange` those of the modules of these names in `cluster`, `engine` draws, `rewards` scores, `learner` makes
steps and brings weights. No Ray, torch or vLLM.
"""
