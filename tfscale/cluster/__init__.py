"""Who am I, who are the others, are they alive. Nothing here imports TensorFlow.

`environment` reads TF_CONFIG or Slurm's variables, `ports` chooses and probes addresses,
`rendezvous` bounds the start of a cluster. `supervise` runs the workers of one machine, a `life`
after the other: `crew` says which, `local` starts processes and `spawn` is the first thing that
runs in them, `pulse` says how far they are, `stall` and `verdict` who hangs or failed, `restarts`
what then.
"""
