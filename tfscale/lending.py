"""A launched script's strategies: the one of its process, whatever it asks TensorFlow for.

Owns what a script finds when it makes a strategy, or none. `strategy` makes the one that is lent;
`run_script` calls `lend_to_script` once, before the script begins.
"""

import functools
import sys

import tensorflow as tf

from tfscale.strategy import set_lent, shard_of


def lend_to_script(strategy):
    """Let a script that does not know of `strategy` train under it.

    It becomes the default strategy, and the one that `tf.distribute.MultiWorkerMirroredStrategy`
    gives, whatever its arguments. As soon as the script makes a strategy itself, there is no
    default any more: what it makes outside of a scope is then of this worker alone, as it is
    without tfscale. Cannot be undone.

    Args:
        strategy: a multi-worker strategy of `make_strategy`.
    """
    set_lent()
    tf.distribute.experimental_set_strategy(strategy)
    _lend_multiworker(strategy)
    _lend_set_strategy(strategy)
    _warn_of_local_strategies(strategy)
    _refuse_other_strategies()


def _lend_multiworker(strategy):
    """Make the class of multi-worker strategies give this one."""
    kind = tf.distribute.MultiWorkerMirroredStrategy
    lenders = (kind, tf.distribute.experimental.MultiWorkerMirroredStrategy)
    make, initialize = object.__new__, kind.__init__

    def lend(cls, *args, **kwargs):
        if cls not in lenders:  # a class of the script's own
            return make(cls)
        _unset_default()
        return strategy

    def skip(self, *args, **kwargs):
        if self is not strategy:
            initialize(self, *args, **kwargs)

    kind.__new__, kind.__init__ = lend, skip


def _lend_set_strategy(strategy):
    """Let the script set another default strategy."""
    set_strategy = tf.distribute.experimental_set_strategy

    def set_other(other):
        if other is not strategy:
            _warn_alone(strategy, "sets another default strategy")
        _default.clear()
        set_strategy(other)

    tf.distribute.experimental_set_strategy = set_other
    _default["unset"] = lambda: set_strategy(None)


def _unset_default():
    """Take the default strategy back, once; inside its scope no other can be entered."""
    _default.pop("unset", lambda: None)()


def _warn_of_local_strategies(strategy):
    """Make the strategies of one machine work beside the multi-worker one."""
    mirrored = tf.distribute.MirroredStrategy
    initialize_mirrored, num_made = mirrored.__init__, 0

    def make_mirrored(self, devices=None, cross_device_ops=None):
        nonlocal num_made
        num_made += 1
        # By default it would take the devices of all workers. Its collectives must be numbered
        # apart from those of other strategies and other workers.
        self._collective_key_base = 1_000_000 * (shard_of(strategy).worker + 1) + 1_000 * num_made
        own = [name.rpartition("/device:")[2] for name in strategy.extended.worker_devices]
        _check_devices(devices or own, strategy)
        initialize_mirrored(self, devices or own, cross_device_ops)

    mirrored.__init__ = make_mirrored
    central = tf.distribute.experimental.CentralStorageStrategy
    for kind in (mirrored, tf.distribute.OneDeviceStrategy, central):
        kind.__init__ = _warning_first(kind, strategy)


def _warning_first(kind, strategy):
    """Return the initializer of a class, with a warning in front."""
    initialize = kind.__init__

    @functools.wraps(initialize)
    def warn_and_initialize(self, *args, **kwargs):
        _unset_default()
        _warn_alone(strategy, f"makes a {kind.__name__}")
        initialize(self, *args, **kwargs)

    return warn_and_initialize


def _warn_alone(strategy, what):
    """Say once that the workers do not train together."""
    shard = shard_of(strategy)
    if shard.num_workers > 1 and shard.worker == 0 and not _said:
        print(
            f"warning: The script {what}, so each of the {shard.num_workers} workers trains "
            "alone. To train together use tf.distribute.MultiWorkerMirroredStrategy(), or no "
            "strategy.",
            file=sys.stderr,
            flush=True,
        )
    _said.append(what)


def _check_devices(devices, strategy):
    """Refuse devices that this worker has not; a collective over them would wait forever."""
    here = tf.DeviceSpec.from_string(strategy.extended.worker_devices[0])
    known = [tf.DeviceSpec.from_string(d.name) for d in tf.config.list_logical_devices()]
    own = {
        (d.device_type, d.device_index) for d in known if (d.job, d.task) == (here.job, here.task)
    }
    for device in devices:
        asked = tf.DeviceSpec.from_string(str(device))
        if (asked.device_type, asked.device_index) not in own:
            names = ", ".join(sorted(f"{kind}:{index}" for kind, index in own))
            raise ValueError(
                "MirroredStrategy must be made of devices that the worker has. "
                f"Received: {device!r}, where there are {names}. Use those, or run the script "
                "without tfscale.launch."
            )


def _refuse_other_strategies():
    """Refuse the strategies that cannot be beside a multi-worker one."""
    kinds = [
        (home, name)
        for home in (tf.distribute, tf.distribute.experimental)
        for name in ("ParameterServerStrategy", "TPUStrategy")
    ]
    for home, name in kinds:

        def refuse(self, *args, name=name, **kwargs):
            raise ValueError(
                "The workers of tfscale.launch train synchronously on CPUs and GPUs. "
                f"Received: {name}. Use tf.distribute.MultiWorkerMirroredStrategy(), or run the "
                "script without tfscale.launch."
            )

        getattr(home, name).__init__ = refuse


_default = {}  # how to "unset" the default strategy, while it is set
_said = []  # warnings
