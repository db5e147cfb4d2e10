"""The calls of `fit` of one program: each has checkpoints of its own, by its number.

When the program runs again, its first call finds the checkpoints of the first, and so on: a call
that had ended returns its History with the weights it ended with, an interrupted one goes on. An
interrupted call that the same process makes again with the same model, as in a notebook, keeps
its number.
"""

import weakref
from pathlib import Path

from absl import logging

from tfscale import strategy as strategy_lib
from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training import random_state
from tfscale.training.saver import Saver


class Fits:
    """Numbers calls of `fit`, and opens the checkpoints of each.

    Args:
        folder: holds a folder for each call, `1`, `2`, ...; visible to all workers.
        keep_last: checkpoints to keep of each call, at least 1.
        **save_every: `save_every_steps`, `save_every_seconds` and `save_every_epochs`, as for
            `saver.Saver`, of calls that do not say otherwise.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, folder, keep_last=2, **save_every):
        self.folder, self.number, self._last, self._model = Path(folder), 0, None, None
        self._keep_last, self._save_every = keep_last, save_every
        self._open(0, save_every)  # refuses what is out of range

    def next(self, model, strategy, gives_same_again, **save_every):
        """Open the checkpoints of the next call; every worker calls this.

        A call that a callback makes, within another call, is not saved: it belongs to that one.

        Args:
            model: the `keras.Model` to train.
            strategy: that of the model.
            gives_same_again: tells whether its data give the same batches when read again.
            **save_every: as above, for this call.

        Returns:
            `(saver, saved)`: its `Saver`, and the `Checkpoint` to go on from, or None.

        Raises:
            ValueError: if a worker cannot read what the chief has chosen.
        """
        if self._last is not None and self._last.is_open:
            return Saver(), None
        is_again = self._last is not None and not self._last.has_ended and self._model() is model
        self.number += not is_again
        checkpoints, saver = self._open(self.number, save_every or self._save_every)
        self._last, self._model = saver, weakref.ref(model)
        is_chief = strategy_lib.shard_of(strategy).worker == 0
        saved = newest_of_all(strategy, checkpoints, is_chief)
        if saved is not None and is_chief:
            self._tell(saved, gives_same_again)
        return saver, saved

    @property
    def place(self):
        """The folder of the call that was opened last."""
        return self.folder / str(self.number)

    def _open(self, number, save_every):
        folder = self.folder / str(number) / "checkpoints"
        checkpoints = checkpoint_lib.Checkpoints(folder, self._keep_last)
        return checkpoints, Saver(checkpoints, saves_end=True, **save_every)

    def _tell(self, saved, gives_same_again):
        at = saved.facts["progress"]
        has_ended = saved.facts.get("finished")
        where = "had ended" if has_ended else f"goes on at step {at['position']}"
        epoch = at["epoch"] if has_ended else at["epoch"] + 1
        print(f"tfscale: fit {self.number} {where}, epoch {epoch}, with {saved.path}.", flush=True)
        if not has_ended and at["position"] and not gives_same_again():
            logging.warning(
                "Within an epoch a run goes on exactly with arrays, a PyDataset, or a dataset "
                "without Python code whose random numbers have seeds. Received: data that are "
                "drawn anew; those of this epoch's first %d steps are left out.",
                at["position"],
            )


def newest_of_all(strategy, checkpoints, is_chief, path=None):
    """Return the newest whole checkpoint, the chief's choice, read by every worker.

    Args:
        strategy: that of the run.
        checkpoints: the `checkpoint.Checkpoints`.
        is_chief: whether this worker chooses.
        path: a certain one instead.

    Returns:
        A `Checkpoint`, or None where there is none.

    Raises:
        ValueError: if a worker cannot read it.
    """
    if path is None:
        newest = None
        if is_chief:
            checkpoints.clean()
            newest = checkpoints.newest()
        choice = 0 if newest is None else newest + 1
        [choice] = strategy_lib.sum_over_workers(strategy, [choice])
        if not choice:
            return None
        path = checkpoints.path(choice - 1)
    saved, refusal = None, None
    try:
        saved = checkpoint_lib.read(path)
    except ValueError as error:
        refusal = error
    [failed] = strategy_lib.sum_over_workers(strategy, [int(saved is None)])
    if failed:
        raise refusal or ValueError(
            f"All workers must be able to read {path}. Received: {failed} that cannot; their "
            "logs say why. Use a folder on a shared file system."
        )
    return saved


_of_folders = {}  # in this process
_script = {}  # the `Fits` of the script that this process runs


def of_folder(folder):
    """Return the `Fits` of a folder: all trainers of this process number their calls together."""
    path = Path(folder).resolve()
    return _of_folders.setdefault(path, Fits(path))


_unread = []  # of finished calls: their data, and what to do before these are read again


def leave_unread(given, pass_over):
    """Note that a finished call has not read its data.

    Args:
        given: the data, as the caller gave them.
        pass_over: a function that reads what the call read.
    """
    _unread.append((weakref.ref(given), pass_over))


def read_what_was_left(given):
    """Read what finished calls had read of these data; called before they are given to another.

    Random states are what they were: finished calls have put back theirs.
    """
    living = [(data, pass_over) for data, pass_over in _unread if data() is not None]
    mine = [pass_over for data, pass_over in living if data() is given]
    _unread[:] = [(data, pass_over) for data, pass_over in living if data() is not given]
    if mine:
        before = random_state.read()
        for pass_over in mine:
            pass_over()
        random_state.restore(before)


def begin_script(fits):
    """From now on, the calls of a repaired `keras.Model.fit` in this process are these fits."""
    _script["fits"] = fits


def of_script():
    """Return the `Fits` of the script that this process runs, or None."""
    return _script.get("fits")
