"""What a checkpoint of a run holds besides the model, and how a run takes it over.

Facts that fit into JSON: progress, history, callbacks, random states, the epoch's reports and the
versions; arrays of callbacks. The variables are the affair of `state.py`, files of `checkpoint.py`.
"""

import functools
import importlib.metadata
import platform

import keras
from absl import logging

from tfscale.training import callback_state, fits, random_state, state

_PACKAGES = ("tensorflow", "keras", "tensorflow-datasets", "numpy")


@functools.cache
def versions():
    """Return the versions that a run's numbers depend on, by name."""
    packages = {name: importlib.metadata.version(name) for name in _PACKAGES}
    from tfscale import __version__

    return {"tfscale": __version__, "python": platform.python_version(), **packages}


def to_save(loop, run):
    """Return `(facts, arrays)`: what a later life needs besides the variables of the model.

    Args:
        loop: the `Loop`.
        run: its `FitRun`.
    """
    callbacks, arrays = callback_state.read(run.callbacks.callbacks)
    facts = {
        "progress": loop.progress.to_save(),
        "history": {"epoch": run.history.epoch, "history": run.history.history},
        "callbacks": callbacks,
        "random": random_state.read(),
        "reports": run.reports,
        "logs": run.logs,
        "steps_per_epoch": run.steps_per_epoch,
        "num_workers": loop.shard.num_workers,
        "stopped": run.stopped,
        "finished": run.is_finished,
        "versions": versions(),
        "health": run.health.to_save(),
    }
    return facts, arrays


def is_end(saved, run):
    """Say whether a checkpoint is of a call of `fit` that had ended, as far as this one goes."""
    facts = saved.facts
    ran_out = facts["progress"]["epoch"] >= run.epochs
    return bool(facts.get("finished")) and (ran_out or facts["stopped"])


def take_over_end(loop, run, saved):
    """Put back how a finished call of `fit` ended; its callbacks are not called again.

    What it did to its data is done again, where the next call on them depends on it: at once, or,
    where that means to read them, as soon as there is such a call.
    """
    callback_state.check(run.callbacks.callbacks, saved.facts["callbacks"], saved.path)
    _take_over(loop, run, saved)
    fed = run.data.feed(loop.shard, run.first_epoch)
    pass_over = functools.partial(fed.pass_over, saved.facts["progress"]["epoch"])
    if fed.reads_to_pass_over:
        fits.leave_unread(run.given, pass_over)
    else:
        pass_over()
    if not fed.passes_over_surely and loop.is_chief:
        logging.warning(
            "A call of fit that had ended is not run again. Received: a shuffle that is repeated, "
            "so that another call on the same data may get another order than it would have got. "
            "Shuffle with reshuffle_each_iteration=False, or make the data anew for that call."
        )
    random_state.restore(saved.facts["random"])
    loop.model.stop_training = saved.facts["stopped"]
    run.is_finished = run.stopped = run.saver.has_ended = True


def before_callbacks(run, saved, is_chief):
    """Do what must come before `on_train_begin` of a run that goes on.

    Raises:
        ValueError: if its callbacks are other ones than those that were saved.
    """
    facts = saved.facts.get("callbacks", [])
    callback_state.check(run.callbacks.callbacks, facts, saved.path)
    if is_chief:
        callback_state.before(run.callbacks.callbacks, facts, saved.facts["progress"])


def go_on_from(loop, run, saved):
    """Put a checkpoint's state back, after `on_train_begin`, to go on at its step.

    Raises:
        ValueError: if it is of another model, or of other data and within an epoch.
    """
    facts, at = saved.facts, loop.progress
    if facts["progress"]["position"]:
        # What callbacks do at its begin was done before the checkpoint, which undoes it here.
        at.go_on_from(facts["progress"])
        run.callbacks.on_epoch_begin(facts["progress"]["epoch"])
        run.epoch_is_begun = True
    _take_over(loop, run, saved)
    # EarlyStopping may have had its last word; of numbered calls of `fit`, any callback.
    was_stopped = run.saver.saves_end and facts.get("stopped", False)
    run.stopped = bool(loop.model.stop_training) or was_stopped
    run.go_on_from(facts, at.position)
    run.health.go_on_from(facts.get("health", {}), saved.step)
    if not run.data.same_order(loop.shard, facts["num_workers"]):
        logging.warning(
            "The data is a stream cut by file, whose order depends on the number of workers. "
            "Received: %d workers, and %d before. Epoch %d begins again.",
            loop.shard.num_workers,
            facts["num_workers"],
            at.epoch + 1,
        )
        at.position = 0
        run.reports = {}
        run.health.forget(at.epoch)
    if "random" in facts:
        run.restore_random = functools.partial(random_state.restore, facts["random"])
    changed = {
        name: f"{facts['versions'].get(name)} there, {version} here"
        for name, version in versions().items()
        if name in ("tensorflow", "keras")
        and facts.get("versions", {}).get(name, version) != version
    }
    if changed and loop.is_chief:
        logging.warning(
            "The checkpoint was written with other versions, so the run goes on to rounding only: "
            "%s.",
            changed,
        )
    logging.info("Going on from %s, at step %d.", saved.path, saved.step)


def go_back_to(loop, run, saved):
    """Put a checkpoint's state back in the middle of a run, to go on at its step.

    Callbacks get the state of then, without another `on_train_begin`; the run's time goes on.
    """
    earlier_seconds = loop.progress.earlier_seconds
    callbacks = run.callbacks.callbacks
    if loop.is_chief:
        tables = [c for c in callbacks if isinstance(c, keras.callbacks.CSVLogger)]
        for table in tables:
            table.csv_file.close()
        callback_state.before(callbacks, saved.facts["callbacks"], saved.facts["progress"])
        for table in tables:
            table.on_train_begin()
    go_on_from(loop, run, saved)
    loop.progress.earlier_seconds = earlier_seconds


def _take_over(loop, run, saved):
    """Variables, progress, history and callbacks."""
    facts = saved.facts
    arrays = {n: a for n, a in saved.arrays.items() if not n.startswith("callbacks/")}
    state.restore(loop.model, loop.strategy, arrays, saved.path)
    loop.progress.go_on_from(facts["progress"])
    run.history.epoch = facts["history"]["epoch"]
    run.history.history = facts["history"]["history"]
    run.logs = facts.get("logs")
    kept = {n: a for n, a in saved.arrays.items() if n.startswith("callbacks/")}
    callback_state.restore(run.callbacks.callbacks, facts.get("callbacks", []), kept, loop.model)
