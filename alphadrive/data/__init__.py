"""Driving datasets: records, Parquet shards, images, import and validation.

    records   what a row is
    images    image bytes: header check, full decode
    parquet   writing shards in a stream, reading rows at random
    validate  every problem of a dataset at once, naming file, row and field
    metaad    import of the published MetaAD layout
    scan      some columns of all rows; stats (seen through stats_views), show, split and scenes ask it
    scenes    scenes that stand in two splits
    cli       `alphadrive data ...`

Scenes are rendered in `alphadrive.world`; prompts and tokens are made by `alphadrive.processing`.
"""
