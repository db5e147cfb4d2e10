"""What a class derived from `Tuner` may override, as one derived from `keras_tuner.Tuner` may.

All but `on_search_begin` and `on_search_end` is called in the processes of a trial.
"""


class Hooks:
    """The part of a `Tuner` that may be overridden."""

    trial_here = None  # the `script_trial.ScriptTrial` that this process has been given

    def overridden(self, names):
        """Return those of some methods that a class of the user's own has."""
        return [n for n in names if getattr(type(self), n) is not getattr(Hooks, n)]

    def run_trial(self, trial, *fit_args, **fit_kwargs):
        """Build the model of a trial and fit it; in the trial's process. May be overridden.

        Args:
            trial: the `keras_tuner.engine.trial.Trial`, with `hyperparameters` and `trial_id`.
            *fit_args: what `search` was given.
            **fit_kwargs: the same, by name.

        Returns:
            The objective as a number, a dict of metrics, a History, or a list of these, over
            which the mean is taken.
        """
        if self.trial_here is None:
            raise ValueError(
                "`run_trial` runs in the process of a trial. Received: a call of it beside a "
                "search. Call `search`, or `hypermodel.build` and `fit`."
            )
        return self.trial_here.train(trial, fit_args, fit_kwargs)

    def on_search_begin(self):
        """Called when `search` begins, in its process. May be overridden, as those that follow."""

    def on_search_end(self):
        """Called when the search has ended, in its process."""

    def on_trial_begin(self, trial):
        """Called in the process of a trial, in front of `run_trial`."""

    def on_trial_end(self, trial):
        """Called in the process of a trial whose `run_trial` has ended well; it has its score."""

    def on_epoch_begin(self, trial, model, epoch, logs=None):
        """Called by the `run_trial` that is here, as are the three that follow."""

    def on_batch_begin(self, trial, model, batch, logs=None):
        """Called in front of a batch; where several run in one graph, of those."""

    def on_batch_end(self, trial, model, batch, logs=None):
        """Called behind a batch; where several run in one graph, behind those."""

    def on_epoch_end(self, trial, model, epoch, logs=None):
        """Called behind an epoch.

        A `run_trial` with a loop of its own may call it: the epoch then counts, and the weights of
        the best one are kept.

        Args:
            trial: the `keras_tuner.engine.trial.Trial`.
            model: the `keras.Model`.
            epoch: from 0.
            logs: metrics by name.
        """
        if self.trial_here is not None:
            self.trial_here.note_epoch(model, epoch, logs)
