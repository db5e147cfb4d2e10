"""The best trial: its configuration in best.json while the search goes on, its test at the end."""

import json

from tfscale.search import space, trials
from tfscale.training import checkpoint as checkpoint_lib


class Winner:
    """The best of the trials that have ended.

    Args:
        config: the base `RunConfig`.
        facts: the `trials.SearchFacts`.
        journal: the `journal.Journal`, which remembers that a winner has been tested.
        epochs: to train it to the end, where its values do not say.
        to_json: a function from a `RunConfig` to the text of best.json.
    """

    def __init__(self, config, facts, journal, epochs, to_json):
        self._config, self._facts, self._journal = config, facts, journal
        self._epochs, self._to_json = epochs, to_json
        self.record = None
        self.path = facts.run_dir / "best.json"
        self._summary = facts.run_dir / "summary.json"

    def look_at(self, record):
        """Take in a trial that has ended; write best.json if it is the best so far."""
        before = self.record.score if self.record else None
        if record.state in trials.SCORED and self._facts.better(record.score, before):
            self.record = record
            epochs = record.values.get("train.epochs", self._epochs)
            config = space.winner_config(self._config, record.values, epochs)
            if self._summarized() != record.id:  # of another one, beside the new best.json
                self._summary.unlink(missing_ok=True)
            checkpoint_lib.write_whole(self.path, self._to_json(config) + "\n")

    def look_at_all(self, records):
        """Take in all trials, in their order, so that of equal ones the first is the best."""
        self.record = None
        for record in records:
            self.look_at(record)

    def test(self, config, score):
        """Score the checkpoint of the best epoch on the test split, which no trial has seen.

        A winner is tested once, however often its finished search is started again.

        Args:
            config: its `RunConfig` as a trial.
            score: a function from a `RunConfig` and the folder of a checkpoint to a dict.

        Returns:
            Loss and metrics by name; None where the base configuration has no test split.
        """
        for event in self._journal.events:
            if event["event"] == "tested" and event["trial"] == self.record.id:
                self._write_summary(event["scores"])
                return event["scores"]
        config.data.test_split = self._config.data.test_split
        if not config.data.test_split:
            return None
        checkpoints = checkpoint_lib.Checkpoints(self.record.path / "checkpoints")
        scores = score(config, checkpoints.path(trials.best_step(self.record.path)))
        self._journal.append({"event": "tested", "trial": self.record.id, "scores": scores})
        self._write_summary(scores)
        return scores

    def _write_summary(self, scores):
        summary = {"trial": self.record.id, "test": scores}
        checkpoint_lib.write_whole(self._summary, json.dumps(summary, indent=2) + "\n")

    def _summarized(self):
        """Return the trial whose score is in summary.json, None without any."""
        try:
            return json.loads(self._summary.read_text())["trial"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
