"""keras-tuner's oracles: what to try next, and what they are told of what came out.

They forget when a process dies, so a search that goes on asks a new one the same questions in
the same order and tells it the same answers (`Asker`). All that is private to keras-tuner and
has to be touched is touched here.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import warnings

TUNERS = ("random", "grid", "bayesian", "hyperband")
_OWN = "tuner/"  # keras-tuner's prefix of values that are not hyperparameters
_NO_BOUND = 10**9
_MOST_COUNTED = 10**4  # combinations of parents


@dataclasses.dataclass(frozen=True)
class Asked:
    """What an oracle said when it was asked for a trial.

    Args:
        kind: "trial", "idle" (ask again when a trial has ended), or "exhausted".
        id: of the trial, "0000".
        values: its active hyperparameters by name.
        parent: id of the trial that it continues, "" if none.
        epochs: epochs it is to have in all; 0 where the oracle does not say.
    """

    kind: str
    id: str = ""
    values: dict = dataclasses.field(default_factory=dict)
    parent: str = ""
    epochs: int = 0


def build(tuner, space, objective, direction, seed, max_epochs=0, factor=3, repeats=False):
    """Make one of keras-tuner's oracles.

    Args:
        tuner: one of `TUNERS`.
        space: the `keras_tuner.HyperParameters`.
        objective: name of the metric.
        direction: "max" or "min".
        seed: a whole number of at least 0.
        max_epochs: hyperband: epochs of the longest trials.
        factor: hyperband: of so many trials one goes on, for so many times the epochs.
        repeats: hyperband: begin anew after its last bracket, without end.

    Returns:
        A `keras_tuner.Oracle`. How many trials there are is up to who asks it.
    """
    import keras_tuner

    shared = {
        "objective": keras_tuner.Objective(objective, direction),
        "hyperparameters": space.copy(),
        "seed": seed + 1,  # keras-tuner takes 0 for none
        "max_consecutive_failed_trials": _NO_BOUND,
    }
    if tuner == "hyperband":
        return keras_tuner.oracles.HyperbandOracle(
            max_epochs=max_epochs,
            factor=factor,
            hyperband_iterations=_NO_BOUND if repeats else 1,
            **shared,
        )
    oracle = {
        "random": keras_tuner.oracles.RandomSearchOracle,
        "grid": keras_tuner.oracles.GridSearchOracle,
        "bayesian": keras_tuner.oracles.BayesianOptimizationOracle,
    }[tuner]
    return oracle(max_trials=_NO_BOUND, **shared)


def num_trials(oracle):
    """Return how many trials an oracle has in all, 0 where that cannot be counted.

    Args:
        oracle: a `keras_tuner.Oracle` whose space is known.
    """
    if hasattr(oracle, "_brackets"):
        one = sum(
            oracle._get_size(bracket, rung)
            for bracket in range(oracle._get_num_brackets())
            for rung in range(oracle._get_num_rounds(bracket))
        )
        iterations = oracle.hyperband_iterations
        return one * iterations if iterations < _NO_BOUND else 0
    return _size_of_grid(oracle.hyperparameters) if hasattr(oracle, "_populate_next") else 0


def _size_of_grid(space):
    """Count combinations: those of the parents one by one, the others multiplied."""
    parents = {condition.name for hp in space.space for condition in hp.conditions}
    chosen = [{}]
    for hp in [hp for hp in space.space if hp.name in parents]:  # parents of them come first
        longer = []
        for values in chosen:
            is_there = all(condition.is_active(values) for condition in hp.conditions)
            own = dict.fromkeys((hp.default, *hp.values)) if is_there else ()
            longer += [values | {hp.name: value} for value in own] or [values]
        chosen = longer
        if len(chosen) > _MOST_COUNTED:
            return 0
    sizes = [(hp, len({hp.default, *hp.values})) for hp in space.space if hp.name not in parents]
    return sum(
        math.prod(n for hp, n in sizes if all(c.is_active(values) for c in hp.conditions))
        for values in chosen
    )


def note_seeds():
    """Have oracles that are made from now on remember whether they were given a seed.

    keras-tuner draws one where they are given none, and does not say so.
    """
    import keras_tuner

    make = keras_tuner.Oracle.__init__
    if hasattr(make, "notes_seeds"):
        return
    signature = inspect.signature(make)

    @functools.wraps(make)
    def make_and_note(oracle, *args, **kwargs):
        make(oracle, *args, **kwargs)
        given = signature.bind(oracle, *args, **kwargs).arguments
        oracle.given_seed = given.get("seed") or None  # 0 is none

    make_and_note.notes_seeds = True
    keras_tuner.Oracle.__init__ = make_and_note


def given_seed(oracle):
    """Return the seed that an oracle was given, None for one that has drawn its own."""
    return getattr(oracle, "given_seed", None)


def reseed(oracle, seed):
    """Give an oracle that nobody has asked yet the seed of an earlier one.

    Args:
        oracle: a `keras_tuner.Oracle`, which draws a seed of its own where it was given none.
        seed: its new seed.
    """
    import numpy as np

    oracle.seed = oracle._seed_state = seed
    if hasattr(oracle, "gpr"):
        oracle._random_state = np.random.RandomState(seed)
        oracle.gpr = oracle._make_gpr()


def keep_no_files(oracle):
    """Have an oracle write none: they are not crash-safe, and say no more than the journal."""
    oracle.save = oracle._save_trial = lambda *_: None


def check_same(asked, before, path):
    """Refuse to go on where an oracle does not say again what it said before.

    Args:
        asked: the `Asked` of now.
        before: that of then.
        path: the journal that has it.

    Raises:
        ValueError: with what differs.
    """
    now, then = dataclasses.asdict(asked), dataclasses.asdict(before)
    other = [name for name in now if now[name] != then[name]]
    if other:
        raise ValueError(
            "A search goes on with the trials that its oracle chooses again. Received: "
            f"{', '.join(f'{name} {now[name]!r}' for name in other)} where the journal has "
            f"{', '.join(f'{name} {then[name]!r}' for name in other)} ({path}). The space, the "
            "tuner or keras-tuner's version has changed: go back to those, or search in another "
            "folder."
        )


class Asker:
    """Asks an oracle for trials and tells it how they ended.

    Args:
        oracle: a `keras_tuner.Oracle` that nobody has asked yet.
    """

    def __init__(self, oracle):
        self._oracle = oracle
        self._ids = {}  # ours -> keras-tuner's
        self._worst = None
        self._lost = set()  # keras-tuner's ids of trials that a Hyperband must not go on with
        oracle.verbose = 0
        keep_no_files(oracle)

    @property
    def objectives(self):
        """Names and directions of what the oracle is told, as a dict."""
        objective = self._oracle.objective
        several = getattr(objective, "name_to_direction", None)
        return dict(several) if several else {objective.name: objective.direction}

    def ask(self):
        """Return what to try next, as an `Asked`."""
        with _quickly(self._oracle):
            trial = self._oracle.create_trial(f"ask-{len(self._ids)}")
            while trial.hyperparameters.values.get("tuner/trial_id") in self._lost:
                self._end_as_lost(trial)
                trial = self._oracle.create_trial(f"ask-{len(self._ids)}")
        if trial.status != "RUNNING":
            return Asked("idle" if trial.status == "IDLE" else "exhausted")
        id = f"{len(self._ids):04d}"
        self._ids[id] = trial.trial_id
        if hasattr(self._oracle, "_populate_next"):
            # A grid is known as soon as it is begun: keras-tuner waits for each trial's end, in
            # case it has found new dimensions, and so never has more than two at once.
            self._oracle._populate_next.append(trial.trial_id)
        values = {name: _plain(value) for name, value in trial.hyperparameters.values.items()}
        parent = values.get("tuner/trial_id")
        return Asked(
            "trial",
            id,
            {name: value for name, value in values.items() if not name.startswith(_OWN)},
            next((own for own, theirs in self._ids.items() if theirs == parent), ""),
            values.get("tuner/epochs", 0),
        )

    def ask_again(self, values):
        """Ask as an earlier process did, which got these values; return what comes now.

        A Gaussian process takes seconds to ask, so it is not asked: it gets the values, its
        random state goes on as it did, and it learns from what it knew then, which it needs
        where trials were running.
        """
        oracle = self._oracle
        if not hasattr(oracle, "gpr") or not values:
            return self.ask()
        completed = [t for t in oracle.trials.values() if t.status == "COMPLETED"]
        initial = oracle.num_initial_points or max(3 * len(oracle.hyperparameters.space), 3)
        if len(completed) < initial:
            return self.ask()

        def populate_space(trial_id):
            import numpy as np

            bounds = oracle._get_hp_bounds()
            oracle._random_state.uniform(bounds[:, 0], bounds[:, 1], size=(50, len(bounds)))
            x, y = oracle._vectorize_trials()
            oracle.gpr.fit(
                np.nan_to_num(x, posinf=0, neginf=0), np.nan_to_num(y, posinf=0, neginf=0)
            )
            return {"status": "RUNNING", "values": dict(values)}

        oracle.populate_space = populate_space
        try:
            return self.ask()
        finally:
            del oracle.populate_space

    def tell(self, id, history, state):
        """Tell how a trial ended.

        One that diverged or had not enough memory counts as the worst that was seen, so that an
        oracle that learns keeps away from there; one that failed in another way does not count.
        For Hyperband all of these are the last of their round, and none goes on.

        Args:
            id: of the trial.
            history: one dict of metrics an epoch, with "epoch" from 1.
            state: one of `trials.STATES`.
        """
        from tfscale.search import trials

        trial = self._oracle.get_trial(self._ids[id])
        if state not in trials.SCORED and hasattr(self._oracle, "_brackets"):
            self._end_as_lost(trial)
            return
        names = self.objectives
        told = [
            {name: record[name] for name in names} | {"epoch": record["epoch"]}
            for record in history
            if all(_is_finite(record.get(name)) for name in names)
        ]
        if state in (trials.DIVERGED, trials.OUT_OF_MEMORY):
            told = [self._worst] if self._worst else []
        elif state not in trials.SCORED:
            told = []
        for record in told:
            metrics = {name: record[name] for name in names}
            self._oracle.update_trial(trial.trial_id, metrics, step=record["epoch"])
            if self._worst is None or self._is_worse(record, self._worst):
                self._worst = record
        trial.status = "COMPLETED" if told else "FAILED"
        with _quickly(self._oracle):
            self._oracle.end_trial(trial)

    def _end_as_lost(self, trial):
        """Have Hyperband take a trial for worse than any other.

        A round drops a fixed number of trials, of those that have not failed. So failed ones, told
        as such, would keep good ones from going on.
        """
        worst = {n: -math.inf if how == "max" else math.inf for n, how in self.objectives.items()}
        self._oracle.update_trial(trial.trial_id, worst)
        trial.status = "COMPLETED"
        self._lost.add(trial.trial_id)
        self._oracle.end_trial(trial)

    def _is_worse(self, a, b):
        cost = [
            sum(-r[name] if how == "max" else r[name] for name, how in self.objectives.items())
            for r in (a, b)
        ]
        return cost[0] > cost[1]


@contextlib.contextmanager
def _quickly(oracle):
    """Keep keras-tuner from what costs time or says nothing.

    A Gaussian process of a few trials is evaluated thousands of times: threads for its small
    matrices, and checks of what goes in, take several times as long as the rest.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # names of threads, bounds of a fit
        if hasattr(oracle, "gpr"):
            import sklearn
            import threadpoolctl

            stack.enter_context(threadpoolctl.threadpool_limits(1))
            stack.enter_context(
                sklearn.config_context(assume_finite=True, skip_parameter_validation=True)
            )
        yield


def _is_finite(value):
    return isinstance(value, (int, float)) and math.isfinite(value)


def _plain(value):
    """A Python number for NumPy's."""
    return value.item() if hasattr(value, "item") else value
