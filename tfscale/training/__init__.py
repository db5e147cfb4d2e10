"""One step, the loop around it, the reduction between replicas, state on disk.

`trainer` is the loop, `step` what one replica does, `reduction` how replicas become one,
`checkpoint` what survives. Nothing is imported here: `tfscale.Trainer` is loaded when asked for.
"""
