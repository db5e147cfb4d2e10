"""What a run does when its numbers go wrong: when it stops, skips, goes back, or compares weights.

Owns the events of a run, over all its lives, and the batches that are left out. Whether a step was
bad is found in the graph (`bad_steps.py`), the same on all workers; who has other weights than the
others in `weight_sums.py`. The loop asks here what to do.
"""

import math

from absl import logging

from tfscale.names import check_known
from tfscale.training import bad_steps, weight_sums

ACTIONS = ("stop", "skip", "rollback")
_NUM_SHOWN = 16  # examples of a bad batch that a message lists


class BadNumbers(ValueError):
    """Ends a run whose loss or weights have gone wrong, on all workers at the same step."""


class Health:
    """Looks at the numbers of one call of `fit`; every worker has one, and all decide alike.

    Args:
        on_bad_loss: what a bad step does: "stop" ends the run; "skip" undoes the step and goes on
            with the next batch; "rollback" goes back to the last checkpoint and takes the steps
            since then again, without the bad batch; "" looks at no step.
        max_loss: a step with a loss above it is bad, as one whose loss or weights are not finite
            is; None for no bound.
        max_bad_steps: bad steps that a run may have, over all its lives, before the next ends it.
        check_weights_every_steps: steps between two comparisons of the replicas' weights, which
            are compared before each checkpoint, too; 0 for none.

    Raises:
        ValueError: if an argument is unknown or out of range.
    """

    def __init__(self, on_bad_loss="", max_loss=None, max_bad_steps=3, check_weights_every_steps=0):
        if on_bad_loss:
            check_known("`on_bad_loss`", [on_bad_loss], ACTIONS)
        if max_loss is not None and not (on_bad_loss and math.isfinite(max_loss)):
            raise ValueError(
                "`max_loss` must be a number, beside `on_bad_loss`. Received: "
                f"max_loss={max_loss} with on_bad_loss={on_bad_loss!r}. "
                'Give on_bad_loss="stop", "skip" or "rollback", or leave max_loss out.'
            )
        for name, value in (
            ("max_bad_steps", max_bad_steps),
            ("check_weights_every_steps", check_weights_every_steps),
        ):
            if value < 0:
                raise ValueError(
                    f"`{name}` must be at least 0. Received: {name}={value}. Use 0 or more."
                )
        self._action, self._max_bad_steps = on_bad_loss, max_bad_steps
        self._every, self._compared = check_weights_every_steps, None
        self._events, self._saved_step = [], None
        self.is_bad = False
        self.bounds = None
        if on_bad_loss:
            highest = math.inf if max_loss is None else float(max_loss)
            self.bounds = bad_steps.Bounds(highest, undoes=on_bad_loss == "skip")

    @property
    def goes_back(self):
        """Whether the step just taken asks for the last checkpoint."""
        return self.is_bad and self._action == "rollback"

    @property
    def needs_checkpoint(self):
        """Whether there must be a checkpoint before the first step."""
        return self._action == "rollback"

    def check(self, saver, data):
        """Refuse to go back where there is nothing to go back to.

        Args:
            saver: the run's `Saver`.
            data: the run's `Batches`.

        Raises:
            ValueError: if a run that is to go back has no checkpoints, or data whose order does
                not come again.
        """
        if self._action != "rollback":
            return
        if not saver.saves:
            raise ValueError(
                '`on_bad_loss="rollback"` goes back to a checkpoint. Received: a run that saves '
                "none. Give `checkpoints` or a `run_dir` (in front of a script: --run_dir=DIR), or "
                'on_bad_loss="skip".'
            )
        if not data.reads_again():
            raise ValueError(
                '`on_bad_loss="rollback"` takes steps again, on the same batches. Received: data '
                "that come in another order each time they are read. Give arrays, a dataset whose "
                'shuffles have reshuffle_each_iteration=False, or on_bad_loss="skip".'
            )

    def leaves_out(self, at):
        """Say whether the batch at this place was bad in an earlier try, and is left out."""
        return (at.epoch, at.position) in self._left_out()

    def steps_until_due(self, at):
        """Return the steps until the loop has to look here again, at least 1; None for never."""
        places = [p - at.position for e, p in self._left_out() if e == at.epoch]
        limits = [max(steps, 1) for steps in places if steps >= 0]
        if self._every:
            limits.append(self._every - at.step % self._every)
        return min(limits, default=None)

    def took(self, at, data, steps, bad=0, loss=0.0):
        """Note how an execution ended, before its steps are counted.

        Args:
            at: the loop's `Progress`, before it.
            data: the run's `Batches`.
            steps: batches taken, the bad one included.
            bad: what was bad about the last one, of `bad_steps`; 0 for nothing.
            loss: the loss of that one.

        Returns:
            The event, a dict that fits into JSON, or None where nothing was bad.
        """
        self.is_bad = bad > 0
        if not self.is_bad:
            return None
        position = at.position + steps - 1
        event = {
            "step": at.step + steps,
            "epoch": at.epoch,
            "position": position,
            "examples": data.examples_of(at.epoch, position),
            "loss": loss if math.isfinite(loss) else str(loss),
            "bad": "weights" if bad == bad_steps.WEIGHTS else "loss",
            "action": self._action if len(self._events) < self._max_bad_steps else "stop",
        }
        self._events.append(event)
        return event

    def act(self, event, is_chief):
        """Say what happened, and end the run if it may not go on.

        Raises:
            BadNumbers: if this step ends the run.
        """
        what = self._described(event)
        if event["action"] != "stop":
            does = {
                "skip": "The step is undone, and the batch left out",
                "rollback": "Going back to the last checkpoint, to leave the batch out",
            }[event["action"]]
            if is_chief:
                number = f"bad step {len(self._events)} of at most {self._max_bad_steps}"
                logging.warning("%s. %s: %s.", what, does, number)
            return
        raise BadNumbers(f"{what}. {self._way_out()} {self._last_checkpoint()}")

    def compares(self, at):
        """Say whether the replicas' weights are to be compared after this step."""
        return bool(self._every) and at.step % self._every == 0 and self._compared != at.step

    def compares_before_saving(self, at):
        """Say whether they are to be compared before a checkpoint of this step."""
        return bool(self._every) and self._compared != at.step

    def compare(self, step, table, paths, shard):
        """Take note of a comparison of weights, and end the run if they differ.

        Args:
            step: updates so far.
            table: checksums of shape (replicas, variables), the same on all workers.
            paths: of the variables.
            shard: the `data.shards.Shard` of this process.

        Raises:
            BadNumbers: if a variable has other bits on one replica than on another.
        """
        self._compared = step
        found = weight_sums.differences(table, paths, shard)
        if found:
            raise BadNumbers(
                "Weights, optimizer and seeds must be the same bits on all replicas. Received: "
                f"after step {step}, others of {'; '.join(found)}. A callback on one worker or a "
                "step on one replica may change them by itself, or a memory cell or a processor "
                f"may be bad there. {self._last_checkpoint()} Go on from there, without that "
                "callback or that machine."
            )

    def saved(self, step):
        """Note the step of the newest checkpoint."""
        self._saved_step = step

    def to_save(self):
        """Return what a later life needs to know: the events."""
        return {"events": self._events}

    def go_on_from(self, facts, step):
        """Take over what an earlier life noted, beside what this one has.

        Args:
            facts: what `to_save` returned; empty for a checkpoint without it.
            step: of the checkpoint.
        """
        earlier = facts.get("events", [])
        self._events = earlier + [event for event in self._events if event not in earlier]
        self._saved_step, self._compared, self.is_bad = step, None, False

    def forget(self, epoch):
        """Let no batch of an epoch be left out, because it comes in another order."""
        for event in self._events:
            if event["epoch"] == epoch and event["action"] == "rollback":
                event["action"] = "forgotten"

    def _left_out(self):
        """Places of batches that are not trained on, as pairs of epoch and position."""
        return {(e["epoch"], e["position"]) for e in self._events if e["action"] == "rollback"}

    def _described(self, event):
        """What was bad, and where."""
        limit = self.bounds.max_loss
        rule = "finite" if limit == math.inf else f"finite and at most {limit:g}"
        loss = f"loss {event['loss']}"
        received = loss if event["bad"] == "loss" else f"weights that are not finite, {loss}"
        indices = event["examples"]
        batch = f"batch {event['position'] + 1} of epoch {event['epoch'] + 1}"
        if indices is not None:
            more = f" and {len(indices) - _NUM_SHOWN} more" if len(indices) > _NUM_SHOWN else ""
            batch += f", the examples {', '.join(map(str, indices[:_NUM_SHOWN]))}{more}"
        return (
            f"The loss of a step must be {rule}, and its weights finite. Received: {received}, "
            f"at step {event['step']}, {batch}"
        )

    def _way_out(self):
        before = [e["step"] for e in self._events[:-1]]
        if self._action != "stop":
            listed = ", ".join(map(str, before)) or "none"
            return (
                f"max_bad_steps={self._max_bad_steps} allows no more; those before were at steps "
                f"{listed}. Look at this batch, lower the learning rate, clip gradients, or raise "
                "max_bad_steps: a bad batch counts in each epoch."
            )
        return (
            "Look at these examples, lower the learning rate, or clip gradients; "
            'on_bad_loss="skip" or "rollback" goes on without the batch.'
        )

    def _last_checkpoint(self):
        if self._saved_step is None:
            return "There is no checkpoint."
        return f"The last checkpoint is of step {self._saved_step}."
