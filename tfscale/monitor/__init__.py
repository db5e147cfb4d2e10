"""What a person sees of a run: it reads, and never steers.

`run_log` writes the curves, `story` the events, `event_file` TensorBoard's files; `run_files` reads
a run's folder again, for `tfscale.watch` and `tfscale.report`. Nothing is imported here.
"""
