"""A search: keras-tuner's oracles choose, runs of tfscale are the trials.

`loop` is the way of a trial; `journal` is the truth on disk; `trials`, `processes`, `oracles`,
`space` and `stopping` are its parts; `views` is what a person sees. Nothing is imported here, so
that the command's help does not wait for keras-tuner.
"""
