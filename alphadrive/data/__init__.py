"""Driving datasets: records, Parquet shards, images, import and validation.

    records   what a row is
    images    image bytes: header check, full decode
    parquet   reading rows at random; writing: writing shards in a stream
    validate  every problem of a dataset at once, naming file, row and field
    scan      some columns of all rows; stats (seen through stats_views), show, split and scenes ask it
    scenes    scenes that stand in two splits

    trajectory, labels, navigation    from where a vehicle went to plans, waypoints, commands
    candidates, drive_rows            rows on their way in, and how they are made of a drive
    metaad, comma2k19, nuscenes, csv_table     the layouts that can be imported
    importing                         any of them into a dataset folder, resumably

    cli, import_command, tools_cli    `alphadrive data ...`

Scenes are rendered in `alphadrive.world`; prompts and tokens are made by `alphadrive.processing`.
"""
