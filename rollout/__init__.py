"""One vLLM engine: it draws groups of completions and takes new weights.

`RolloutEngine` (an engine in processes of its own), `InProcessEngine` (in this process, for
debugging) and `FakeEngine` (no vLLM at all, for tests) have the same four methods: `start`, `generate`,
`update_weights` and `close`. Importing this package imports neither vLLM nor torch.
"""
