"""Where examples come from, in which order, on which worker, transformed how.

Importing this package imports nothing else. `load.load(config)` opens what a run names;
`batches` cuts arrays and user datasets, `stream` files too large for memory, into global
batches; `shards` and `order` say who trains on which example when; `arrays`, `folder`,
`tables`, `idx`, `digits` and `tfds_source` read; `transforms` prepares; `checks` refuses.
"""
