"""A small driving world: scenes, what may be done in them, and how they look.

`scene` holds the values, `kinematics` judges every plan by driving it, `sampling` draws scenes by the
shares of their plans (`frequencies`), `render` draws them through a pinhole camera with a `look`,
`describe` says what is to be seen (and never what to do), `teacher` explains and decides, with a stated
error rate, `kinds` (named in `choices`) makes the scenes that test something (`counterfactual`,
`withheld`), and `dataset` makes records of it all. Nothing here knows about models or training.

Coordinates: metres, x forward from the ego's front bumper, y left, z up; time in seconds.
"""
