"""The learner: GRPO and SFT updates of a vision-language model under DeepSpeed.

    rank.LearnerRank, sft.SftRank     what `cluster` calls; one process is one rank
    └── trainer.Trainer               one model, one optimizer: batches in, an update out
        ├── policy.Policy             log-probabilities of completion tokens
        ├── rows, batch               groups and samples to tensors (one row = one prompt + its completions)
        ├── images, patches, vision   pixels and vision features: read ahead, kept within a budget
        ├── losses, schedule          pure maths
        ├── step_metrics, data_metrics   what a step reports
        └── engine, export            DeepSpeed; weights out

Only `rank`, `sft` and the maths are meant for others; nothing outside this package sees DeepSpeed.
"""
