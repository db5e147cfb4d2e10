"""What every trial with some choice would be refused for, found out before a trial starts."""

import dataclasses
import json

from tfscale import experiment
from tfscale.data import checks, load, shards
from tfscale.search import space as space_lib
from tfscale.training import reduction


def check_trials(space, make_config, num_replicas):
    """Refuse a configuration that cannot be run, and choices with which no trial could.

    Each choice, and each end of a range, is tried beside the defaults of the others; where that
    does not fit, beside each extreme of another one too. Nothing is trained.

    Args:
        space: the `keras_tuner.HyperParameters`.
        make_config: a function from a trial's values to its `RunConfig`.
        num_replicas: replicas of a trial at least.

    Raises:
        ValueError: with the choice, and what is wrong with it.
    """
    tries = _Tries(num_replicas)
    tries.run(make_config({}))
    extremes = list(space_lib.extremes(space))

    def refusal(chosen):
        """Return why a trial with this cannot be run, None if it can."""
        try:
            tries.run(make_config(space_lib.filled(space, chosen)))
        except (ValueError, TypeError) as error:
            return error
        return None

    for chosen in extremes:
        error = refusal(chosen)
        if error is None or any(refusal({**other, **chosen}) is None for other in extremes):
            continue
        words = ", ".join(f"{name}={value!r}" for name, value in chosen.items())
        raise ValueError(f"search_space(hp), with {words or 'its defaults'}: {error}") from None


class _Tries:
    """Builds what a run of a configuration would, as little of it again as possible."""

    def __init__(self, num_replicas):
        self._shard = shards.Shard(num_workers=num_replicas)
        self._splits = {}  # section of the data, as JSON -> Splits
        self._models = set()  # sections, as JSON, of which a model was built

    def run(self, config):
        """Raise a `ValueError` if a run of this configuration would."""
        experiment.check(config)
        reduction.build_reduction(config.reduction.name, config.reduction.arguments)
        checks.check_enough_replicas(config.data.global_batch_size, self._shard)
        data = _text(config.data)
        if data not in self._splits:
            self._splits = {}  # one at a time: they may be large
            self._splits[data] = load.load(config.data)
        splits = self._splits[data]
        parts = (data, *map(_text, (config.model, config.loss, config.metrics)))
        if parts not in self._models:
            experiment.compiled_model(config, splits)
            self._models.add(parts)
        else:
            experiment.optimizer(config, splits)


def _text(section):
    return json.dumps(dataclasses.asdict(section), default=repr)
