"""What a run shows while it goes on; reads, never steers.

`run_log` writes TensorBoard's event files and `metrics.jsonl`. Nothing is imported here.
"""
