"""Who am I, who are the others, are they alive. Nothing here imports TensorFlow.

`environment` reads TF_CONFIG, TFSCALE_HOSTS (`hosts`) or Slurm's variables, `ports` chooses and
probes addresses, `rendezvous` bounds the start. `supervise` runs the workers of one machine, a
`life` after the other: `crew` says which, `local` starts processes and `spawn` is the first thing
that runs in them, `pulse` says how far they are, `stall` and `verdict` who hangs or failed,
`memory` whether it ran out, `restarts` what then, and `ended` tells the other tasks.
"""
