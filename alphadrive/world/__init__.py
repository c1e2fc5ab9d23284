"""A small driving world: scenes, what may be done in them, and how they look.

`scene` holds the values, `kinematics` judges every plan by driving it, `sampling` draws balanced
scenes, `render` draws them through a pinhole camera, `describe` says what is to be seen (and never
what to do), `teacher` explains and decides, with a stated error rate, and `dataset` makes records
of it all. Nothing here knows about models or training.

Coordinates: metres, x forward from the ego's front bumper, y left, z up; time in seconds.
"""
