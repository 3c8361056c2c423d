"""Training: the loop and what it needs, from settings and losses to discriminators, chunks, checkpoints and validation.

`loop.train` runs one stage by a `config.TrainConfig`; what a stage's steps learn is a task (`tasks`); the looped
chunks, which keep the memory of a large picture's gradient at one window's, are in `chunks`.
"""
