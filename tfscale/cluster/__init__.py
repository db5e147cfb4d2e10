"""Who am I, who are the others, are they alive. Nothing here imports TensorFlow.

`environment` reads TF_CONFIG or Slurm's variables, `ports` chooses and probes addresses,
`rendezvous` bounds the start of a cluster, `local` runs the workers of one machine and
`spawn` is the first thing that runs in each of them. Import the modules themselves.
"""
