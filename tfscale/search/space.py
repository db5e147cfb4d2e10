"""The space of a search: hyperparameters that are named as fields of the configuration.

Owns what a `search_space(hp)` may say, checked before any trial starts, and the configuration of
one trial. Which values are tried is the oracles' affair.
"""

import ast
import copy
import dataclasses
import itertools
import typing

from tfscale.names import closest
from tfscale.search.trials import Parameter

# What no trial may choose, because scores would not compare, or the search itself needs it.
_DATA = "all trials are compared on the same data"
_SEARCH = "the search sets it"
_KEPT = {
    "data.name": _DATA,
    "data.data_dir": _DATA,
    "data.train_split": _DATA,
    "data.validation_split": _DATA,
    "data.test_split": _DATA,
    "data.validation_fraction": _DATA,
    "data.num_classes": _DATA,
    "data.label_column": _DATA,
    "data.seed": "it chooses which examples are held out, and " + _DATA,
    "metrics": "all trials report the same metrics",
    "checkpoint": _SEARCH,
    "log": "it changes no score",
    "schedule.epochs": _SEARCH,
    "train.validate_every": _SEARCH,
}
_HELD_OUT = 0.2
_MOST_PROBES = 5000  # calls of a user's function


def define(search_space):
    """Return the `keras_tuner.HyperParameters` that a user's function defines.

    Args:
        search_space: a function of a `keras_tuner.HyperParameters`.

    Raises:
        ValueError: if it fails, defines nothing that can vary or a name under two conditions, or
            has a branch that is not a conditional scope.
    """
    import keras_tuner

    space = keras_tuner.HyperParameters()
    _call(search_space, space)
    if not [p for p in parameters(space) if p.kind != "fixed"]:
        raise ValueError(
            "search_space(hp) must define at least one hyperparameter. Received: none. For "
            'example: hp.Float("optimizer.learning_rate", 1e-4, 1e-1, sampling="log").'
        )
    for name, wheres in defined_twice(space).items():
        raise ValueError(
            "search_space(hp) must define a hyperparameter once; of one with two conditions "
            f"keras-tuner loses the value. Received: {name!r} {' and '.join(wheres)}. Its name is "
            "that of a field, so give it one range that holds both, in front of the conditional "
            "scopes or in one with the values of both."
        )
    known = described(space)
    for chosen in itertools.islice(_probes(space), _MOST_PROBES):
        again = keras_tuner.HyperParameters()
        again.values.update(chosen)
        _call(search_space, again)
        new = [name for name in described(again) if name not in known]
        there = {hp.name for hp in again.space}
        left = [hp.name for hp in space.space if again.is_active(hp) and hp.name not in there]
        if new or left:
            raise _branches(new, left, chosen, space)
    return space


def defined_twice(space):
    """Return the conditions of each name that a space has under several, in words by name."""
    found = {}
    for hp in space.space:
        found.setdefault(hp.name, []).append(_where(hp) or "without a condition")
    return {name: wheres for name, wheres in found.items() if len(wheres) > 1}


def parameters(space):
    """Return the dimensions of a `keras_tuner.HyperParameters` as a list of `Parameter`."""
    found = {}
    for hp in space.space:
        kind = type(hp).__name__.lower()
        if kind in ("float", "int"):
            found.setdefault(
                hp.name, Parameter(hp.name, kind, hp.min_value, hp.max_value, (), hp.sampling)
            )
            continue
        choices = (hp.value,) if kind == "fixed" else tuple(hp.values)
        if hp.name in found:  # the same one under another condition
            choices = tuple(dict.fromkeys((*found[hp.name].choices, *choices)))
        found[hp.name] = Parameter(hp.name, kind, choices=choices)
    return list(found.values())


def described(space):
    """Return a space as a dict that fits into JSON, by name and condition."""
    found = {}
    for hp in space.space:
        fields = {"type": type(hp).__name__, **hp.get_config()}
        del fields["name"], fields["conditions"]
        found[" ".join(filter(None, (hp.name, _where(hp))))] = fields
    return found


def check(space, config, check_types):
    """Refuse a space that names what a configuration does not have, or gives it a wrong type.

    Args:
        space: the `keras_tuner.HyperParameters`.
        config: the base `RunConfig`.
        check_types: a function that refuses a `RunConfig` with a value of a wrong type.

    Raises:
        ValueError: naming the nearest field, or the type.
    """
    for parameter in parameters(space):
        ends = (parameter.low, parameter.high) if not parameter.choices else parameter.choices
        for value in ends:
            value = int(value) if parameter.kind == "int" else value
            try:
                check_types(apply(config, {parameter.name: value}))
            except ValueError as error:
                raise ValueError(f"search_space(hp), {parameter.name!r}: {error}") from None


def extremes(space):
    """Yield what may be chosen at most: nothing, each choice, the ends of each range.

    Args:
        space: the `keras_tuner.HyperParameters`.

    Yields:
        Dicts by name, with what a choice needs to be active.
    """
    yield {}
    for hp in space.space:
        for value in _extremes(hp):
            yield _reaching(hp, value)


def filled(space, chosen):
    """Return the values of a trial for which some were chosen; the others are defaults.

    Args:
        space: the `keras_tuner.HyperParameters`.
        chosen: some values by name.

    Returns:
        All active hyperparameters, a dict by name.
    """
    hps = space.copy()
    hps.values = {}
    for hp in space.space:  # parents come first
        if hps.is_active(hp):
            hps.values[hp.name] = chosen.get(hp.name, hp.default)
    return hps.values


def apply(config, values):
    """Return a copy of a configuration in which fields have other values.

    A word that is written like a tuple, "(16, 32)", is one, as on the command line; for a list of
    words "a,b" is enough.

    Args:
        config: a `RunConfig`.
        values: what the fields get, by "section.field" or "section.arguments.NAME".

    Raises:
        ValueError: at a name that is no field, or one that a search may not change.
    """
    config = copy.deepcopy(config)
    for name, value in values.items():
        section, field, rest = _split(config, name)
        kind = next(f.type for f in dataclasses.fields(section) if f.name == field)
        if typing.get_origin(kind) is dict:
            holder = getattr(section, field)
            for key in rest[:-1]:
                holder = holder.setdefault(key, {})
                if not isinstance(holder, dict):
                    raise ValueError(
                        f"A hyperparameter must name an argument. Received: {name!r}, where {key} "
                        f"is {holder!r} and has no arguments of its own. Leave out what follows."
                    )
            holder[rest[-1]] = _literal(value)
        elif typing.get_origin(kind) is tuple and isinstance(value, str):
            parts = _literal(value)
            parts = parts if isinstance(parts, tuple) else value.split(",")
            setattr(section, field, tuple(part for part in parts if part))
        else:
            setattr(section, field, value)
    return config


def trial_config(config, values, objective, direction, epochs, schedule_epochs):
    """Return the configuration of one trial.

    It never sees the test split, is scored on data that is held out from the training split
    where there is no validation split, ends when its loss is not finite, and keeps the checkpoint
    of its best epoch.

    Args:
        config: the base `RunConfig`.
        values: the trial's values by field.
        objective: the metric that is compared.
        direction: "max" or "min".
        epochs: epochs to train.
        schedule_epochs: epochs that the learning rate's schedule spans.
    """
    config = apply(config, values)
    data, train, checkpoint = config.data, config.train, config.checkpoint
    data.test_split = ""
    if not data.validation_split and not data.validation_fraction:
        data.validation_fraction = _HELD_OUT
    train.epochs, config.schedule.epochs = epochs, schedule_epochs
    train.validate_every = 1
    train.on_bad_loss = train.on_bad_loss or "stop"
    checkpoint.keep_best, checkpoint.best_mode = objective, direction
    return config


def winner_config(config, values, epochs):
    """Return the configuration that trains a winner: the base's data, and its own values."""
    config = apply(config, values)
    config.train.epochs = epochs
    return config


def _call(search_space, hp):
    try:
        search_space(hp)
    except (Exception, SystemExit) as error:  # a user's own function may fail in any way
        raise ValueError(
            "search_space(hp) must define a space. Received: one that fails: "
            f"{type(error).__name__}: {str(error).rstrip('.')}. Mend it."
        ) from None


def _where(hp):
    """Return the conditions of a hyperparameter in words, "" without any."""
    conditions = [c.get_config() for c in hp.conditions]
    where = " and ".join(f"{c['name']} in {c['values']}" for c in conditions)
    return f"where {where}" if where else ""


def _extremes(hp):
    """Return the values of a choice, or the first and the last one of a range."""
    if not hasattr(hp, "min_value"):
        return list(hp.values)
    if hp.step is None:
        return [hp.min_value, hp.max_value]
    values = list(hp.values)
    return [values[0], values[-1]]


def _reaching(hp, value):
    """Return values with which a hyperparameter is active and has a value."""
    return {c.name: c.values[0] for c in hp.conditions} | {hp.name: value}


def _probes(space):
    """Yield values, by name, that may lead into a branch: extremes, and pairs of choices."""
    choices = [hp for hp in space.space if not hasattr(hp, "min_value")]
    yield from extremes(space)
    for one, other in itertools.combinations(choices, 2):
        for value, with_it in itertools.product(one.values, other.values):
            yield _reaching(one, value) | _reaching(other, with_it)


def _branches(new, left, chosen, space):
    """Return the error for hyperparameters that are there with some values and not with others."""
    is_there = "there" if new else "not there"
    when = " and ".join(f"{name} is {value!r}" for name, value in chosen.items())
    scopes = []
    for hp in space.space:
        if hp.name in chosen and not hasattr(hp, "min_value"):
            value = chosen[hp.name]
            values = [value] if new else [one for one in hp.values if one != value]
            scopes.append(f"`with hp.conditional_scope({hp.name!r}, {values}):`")
    way = f"Write {' and '.join(scopes)} around it."
    if not scopes:
        way = "Let a hp.Choice or a hp.Boolean decide, with `with hp.conditional_scope(...):`."
    return ValueError(
        "search_space(hp) must define the same hyperparameters each time; one that is not always "
        f"there belongs into a conditional scope. Received: {(new or left)[0]!r}, which is "
        f"{is_there} when {when}{' and not otherwise' if new else ''}. {way}"
    )


def _split(config, name):
    """Return the section that holds a field, the field's name, and what follows in a dict."""
    words = name.split(".")
    sections = [field.name for field in dataclasses.fields(config)]
    if words[0] not in sections:
        raise _unknown(name, words[0], sections, "")
    section = getattr(config, words[0])
    fields = [field.name for field in dataclasses.fields(section)]
    if len(words) == 1:
        raise ValueError(
            f"A hyperparameter must name a field. Received: {name!r}, which is a section. It has: "
            f"{', '.join(fields)}."
        )
    if words[1] not in fields:
        raise _unknown(name, words[1], fields, f"{words[0]}.")
    for kept in (words[0], f"{words[0]}.{words[1]}"):
        if kept in _KEPT:
            raise ValueError(
                f"A search does not change {kept}: {_KEPT[kept]}. Received: {name!r}. Set it in "
                "get_config()."
            )
    is_dict = isinstance(getattr(section, words[1]), dict)
    if is_dict != (len(words) > 2):
        way = f"Name an argument: {words[0]}.{words[1]}.NAME" if is_dict else "It has no arguments"
        raise ValueError(f"A hyperparameter must name a field. Received: {name!r}. {way}.")
    return section, words[1], words[2:]


def _unknown(name, word, known, where):
    near = closest(word, known)
    hint = f" Did you mean {where}{near}?" if near else ""
    return ValueError(
        "A hyperparameter is named as a field of the configuration, such as "
        f"optimizer.learning_rate. Received: {name!r}.{hint} Known: "
        f"{', '.join(where + one for one in known)}."
    )


def _literal(value):
    if isinstance(value, str) and value[:1] in ("(", "["):
        try:
            return tuple(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            return value
    return value
