"""What is written of one run of `tfscale.fit` for people, beside its results.

Owns what belongs to its beginning (the pages of text, inputs, the graph) and to its end (mistakes
on the test split). The curves are the affair of `monitor.run_log`. Nothing here changes a weight,
and what is not written does not end the run.
"""

import contextlib
import dataclasses
import datetime
import json

import tensorflow as tf

from tfscale.data import elements
from tfscale.data.shards import Shard
from tfscale.models import objectives
from tfscale.monitor import cadence, event_file, first_page, model_graph, pages, pictures, run_log
from tfscale.monitor.run_files import RunFiles
from tfscale.monitor.story import Story
from tfscale.training import checkpoint as checkpoint_lib
from tfscale.training import run_state, saver, tested
from tfscale.training.measures import Measures, unseen_times
from tfscale.training.profile import Profile


class Observation:
    """Watches one call of `Experiment.train`; every worker has one, and the chief writes.

    Args:
        experiment: the `Experiment`.
        folder: its `RunFolder`.
        saved: the checkpoint to go on from, or None.

    Raises:
        ValueError: if the steps to profile are not written as they must be.
    """

    def __init__(self, experiment, folder, saved):
        self._run, self._folder, config = experiment, folder, experiment.config
        self._first_step = saved.step if saved else 0
        trainer, steps = experiment.trainer, experiment.splits.train.steps_per_epoch
        every = config.log.every_steps or cadence.every_steps(steps)
        self.measures = None
        if config.log.measures:
            self.measures = Measures(every, config.log.histograms_every_steps)
        rank = trainer.shard.worker
        self.profile = None
        if config.log.profile_steps:
            self.profile = Profile(config.log.profile_steps, folder.tensorboard / f"worker-{rank}")
        self.callbacks, self._log, self._hparams = [], None, None
        if trainer.is_chief:
            tensorboard = folder.tensorboard if config.log.tensorboard else None
            self._log = run_log.ScalarLog(folder.metrics, tensorboard, self._first_step)
            self._log.forget_later_points()
            self._story = Story(folder.events)
            update_bytes = trainer.reduction.bytes_per_update(
                trainer.model.trainable_variables, trainer.strategy.num_replicas_in_sync
            )
            progress, story = trainer.progress, self._story
            own = run_log.RunLog(self._log, progress, every, self.measures, story, update_bytes)
            self.callbacks.append(own)

    def begin(self):
        """Write what is known before the first step."""
        if self._log is None:
            return
        run, trainer = self._run, self._run.trainer
        facts = first_page.facts(
            trainer,
            run.splits.train.steps_per_epoch,
            run.config.train.epochs,
            run_state.versions(),
            self._unseen_times(),
        )
        names = run.strategy_name, facts["num_workers"], facts["num_replicas"]
        facts["strategy"] = run.strategy_name
        facts["command"] = pages.command(self._folder.path, *names, run.deterministic)
        validates = bool(run.config.train.validate_every and run.splits.validation is not None)
        facts |= saver.what_is_best(trainer.model, self._folder.checkpoints, validates)
        self._story.begin(self._first_step, **facts, **self._log.seen)
        config = dataclasses.asdict(run.config)
        self._page = first_page.FirstPage(self._log, self._story, self._folder.path)
        self._page.begin(self._first_step, config)
        if self._log.events("train") is not None:
            first_page.guarded("the choices", self._write_hparams, config, facts)
        first_page.guarded("the graph of the model", self._draw_graph)
        first_page.guarded("the inputs", self._draw_inputs)

    def ended_by(self, error):
        """Note what ended the training before its end; for an `except`."""
        if self._log is None:
            return
        with contextlib.suppress(OSError):  # a full disk, of which the error itself tells
            self._story.tell_error(self._run.trainer.progress.step, error)
            self._story.close()
            self._log.close()

    def scored(self, scores):
        """Write what the test split has given: loss and metrics, or None."""
        if self._log is not None and scores is not None:
            self._log.write("test", self._run.trainer.progress.step, scores)

    def end(self, test):
        """Write how the run has ended, whose results are on the disk; every worker calls this.

        Args:
            test: the `Batches` of the test split, or None.
        """
        if self._log is not None:
            first_page.guarded("the end of the run", self._end)
        outputs = first_page.guarded("what the model says of the test split", self._outputs, test)
        if self._log is None:
            return
        if outputs is not None:
            first_page.guarded("the mistakes on the test split", self._draw_test, test, outputs)
        first_page.guarded("the last curves", self._log.close)

    def _end(self):
        step = self._run.trainer.progress.step
        self._story.tell("end", step)
        self._story.close()
        self._page.end(step)
        if self._hparams is not None:
            self._hparams.ended()
            self._hparams.close()

    def summary(self):
        """Return what the summary says of the run's course, {} if that fails; for the chief."""
        return first_page.guarded("the course of the run", self._course) or {}

    def _course(self):
        files = RunFiles(self._folder.path)
        best, slowest = files.best(), files.slowest()
        found = {"goodput": files.last("goodput"), "restarts": self._story.restarts}
        found |= {"stops": files.stops, "wall_seconds": round(files.seconds, 2)}
        found["bad_steps"] = self._story.count("bad step")
        if best is not None:
            names = ("name", "value", "step", "epoch", "split")
            found["best"] = dict(zip(names, best, strict=True))
        if slowest is not None:
            found["slowest_worker"] = slowest.words()
        return found

    def _unseen_times(self):
        if self.measures is None:
            return "--config.log.measures is off"
        return unseen_times(self._run.trainer.strategy.extended.worker_devices)

    def _draw_graph(self):
        events = self._log.events("train")
        if events is None or not self._run.config.log.graph:
            return
        try:
            config = self._run.trainer.model.get_config()
        except NotImplementedError:  # a class of the user's own
            return
        graph = model_graph.graph_of(config)
        if graph is not None:
            events.graph(graph)

    def _draw_inputs(self):
        """Draw the first images of the first batch, as the model sees them."""
        number = self._run.config.log.inputs
        spec = self._run.splits.train.element_spec
        if not number or not isinstance(spec, tuple) or len(spec) < 2:
            return
        if getattr(spec[0], "shape", None) is None or spec[0].shape.rank != 4:
            return
        [element] = self._run.splits.train.dataset(Shard()).take(1)
        share, _ = elements.with_count(element)
        x, y = tf.nest.map_structure(lambda part: part[:number], share[:2])
        if pictures.are_images(x):
            splits = self._run.splits
            captions = tested.captions(y, splits.num_classes, splits.class_names)
            self._show("inputs", pictures.grid(x.numpy(), captions), self._first_step)

    def _show(self, name, drawn, step, description=""):
        """Keep a picture in the folder, and show it in TensorBoard."""
        png, size = drawn
        self._folder.pictures.mkdir(exist_ok=True)
        path = self._folder.pictures / f"{name.replace(' ', '_')}.png"
        checkpoint_lib.write_whole(path, png)
        events = self._log.events("train")
        if events is not None:
            events.picture(step, name, png, size, description)

    def _outputs(self, test):
        """The model's probabilities for the test split; None where they are not wanted.

        All workers decide alike, because all of them predict.
        """
        config, classes = self._run.config, self._run.splits.num_classes
        if test is None or not classes or not test.num_examples:
            return None
        if test.num_examples > config.log.test_examples:
            return None
        arguments = objectives.with_logits(config.loss.name, config.loss.arguments)
        are_logits = bool(arguments.get("from_logits", False))
        return tested.probabilities(self._run.trainer, test, classes, are_logits)

    def _draw_test(self, test, outputs):
        """Draw the worst mistakes, the confusion matrix, and precision over recall."""
        step, names = self._run.trainer.progress.step, self._run.splits.class_names
        result = tested.Tested(test, outputs, names)
        self._show("confusion matrix", result.confusion(), step)
        worst = result.worst()
        if worst is not None:
            text = "The true class, and the one that the model took it for; the worst first."
            self._show("worst mistakes", worst, step, text)
        events = self._log.events("train")
        for label, counts in result.counts() if events is not None else ():
            events.precision_recall(step, f"class {label}", counts)

    def _write_hparams(self, config, facts):
        if (self._folder.path.parent.parent / "search.json").exists():
            return  # a trial, whose search does this
        names = {
            "data": ("name", "global_batch_size", "seed"),
            "model": ("name", "arguments"),
            "optimizer": ("name", "learning_rate", "arguments"),
            "schedule": ("name", "warmup_steps"),
            "train": ("epochs", "seed", "mixed_precision"),
        }
        values = {f"{s}.{n}": config[s][n] for s, fields in names.items() for n in fields}
        values |= {name: facts[name] for name in ("strategy", "num_workers", "num_replicas")}
        # Of several files with choices in a folder TensorBoard shows those of the first.
        earlier = list(self._folder.tensorboard.glob("events.out.tfevents.*"))
        self._hparams = event_file.EventFile(self._folder.tensorboard)
        plain = (bool, int, float, str)
        chosen = {n: v if isinstance(v, plain) else json.dumps(v) for n, v in values.items()}
        began = datetime.datetime.fromtimestamp(self._story.events[0]["time"])
        # Of two runs of the same name TensorBoard would make one.
        self._hparams.chosen(f"{self._folder.path.name} {began:%Y-%m-%d %H:%M:%S}", chosen)
        for path in earlier:
            path.unlink(missing_ok=True)
