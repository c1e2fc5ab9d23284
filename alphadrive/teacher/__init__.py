"""The teacher: reasoning for the rows of a dataset, from a large model behind an OpenAI-compatible endpoint.

    rows ──▶ RowJudge ──request──▶ Endpoint ──▶ throttle, budget ──▶ server
               │   ▲                  │
               │   └──── Answer ── AnswerCache (OUT/answers.jsonl, append-only)
               ▼
           quality checks ──▶ accepted rows (shards) | rejected.jsonl | distill.json

`alphadrive distill` is the only caller. The rule-made teacher of the rendered world is
`alphadrive.world.teacher`; it needs none of this.
"""
