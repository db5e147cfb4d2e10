"""A run that goes on in its folder: what is read there again, what is shown, what may fail."""

import json
import pathlib

import pytest
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.data import provider
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from tfscale import fit, observation
from tfscale.monitor.run_files import RunFiles

SMALL = (
    "--config.model.arguments.filters=(4,)",
    "--config.model.arguments.dense_units=(8,)",
    "--config.data.global_batch_size=256",
    "--config.log.inputs=0",
    "--config.log.measures=false",
    "--config.log.graph=false",
    "--config.log.test_examples=0",
)


def train(path, epochs, *argv):
    assert fit.main([*SMALL, f"--run_dir={path}", f"--config.train.epochs={epochs}", *argv]) == 0


@pytest.fixture(scope="module")
def gone_on(tmp_path_factory):
    """A run whose first life did not tell of its end, with damage in its files, and a second."""
    path = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
        train(path, 1)
        events = path / "events.jsonl"
        events.write_bytes(events.read_bytes().splitlines(keepends=True)[0])
        for name in ("events.jsonl", "metrics.jsonl"):
            with open(path / name, "ab") as file:
                file.write(b"\xff\xfe\n")
        train(path, 2, "--strategy=mirrored", "--num_replicas=2")
    return path


def test_run_goes_on_over_damaged_lines_in_its_files(gone_on):
    run = RunFiles(gone_on)
    assert [event["event"] for event in run.events] == ["begin", "begin", "end"]
    steps = [record["step"] for record in run.records if "train" in record]
    assert steps == sorted(set(steps)) and run.step == 2 * run.begun["steps_per_epoch"]
    assert run.restarts == 1 and (run.summary["epochs"], run.summary["restarts"]) == (2, 1)


def hparams(logdir):
    """What TensorBoard's page HPARAMS has: the columns of metrics, and the sessions."""
    curves = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(logdir))
    source = data_provider.MultiplexerDataProvider(curves.Reload(), str(logdir))
    own = backend_context.Context(base_plugin.TBContext(data_provider=source))
    asking, nothing = context.RequestContext(), provider.ListHyperparametersResult([], [])
    written = own.hparams_metadata(asking, "")
    experiment = own.experiment_from_metadata(asking, "", True, written, nothing)
    request = api_pb2.ListSessionGroupsRequest(
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_RUNNING], slice_size=9
    )
    groups = list_session_groups.Handler(asking, own, "", request).run().session_groups
    return {info.name.group for info in experiment.metric_infos}, list(groups)


def test_page_of_choices_has_those_of_the_last_life_and_no_columns_of_marks(gone_on):
    columns, [group] = hparams(gone_on.parent)
    assert columns == {"train", "test", "best"}
    chosen = {name: value.number_value for name, value in group.hparams.items()}
    assert (chosen["train.epochs"], chosen["num_replicas"]) == (2, 2)
    [session] = group.sessions
    assert session.status == api_pb2.STATUS_SUCCESS
    assert [path.parent for path in gone_on.glob("**/events.out*")].count(gone_on / "restarts") == 1


def test_training_ends_well_where_its_course_cannot_be_read(gone_on, monkeypatch):
    def broken(path):
        raise ZeroDivisionError("a curve")

    monkeypatch.setattr(observation, "RunFiles", broken)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "2")
    train(gone_on, 3)
    summary = json.loads((gone_on / "summary.json").read_text())
    assert summary["epochs"] == 3 and "best" not in summary and "test" in summary


SUMMARY = {"steps": 30, "wall_seconds": 2.0, "examples_per_second": 900.0, "train": {"loss": 0.5}}


@pytest.mark.parametrize(
    ("value", "split", "told"),
    [
        (0.98614, "validation", "best    validation accuracy 0.9861 at step 20, epoch 2"),
        (0.98614, "training", "best    training accuracy 0.9861 at step 20, epoch 2"),
        (0.00001234, "training", "best    training accuracy 1.234e-05 at step 20, epoch 2"),
    ],
)
def test_closing_table_tells_the_best_step_of_any_split(value, split, told):
    best = {"name": "accuracy", "value": value, "step": 20, "epoch": 2, "split": split}
    table = fit._ending(SUMMARY | {"best": best}, pathlib.Path("runs/mine")).splitlines()
    assert told in table


def test_closing_table_counts_what_went_wrong():
    def trouble(**counts):
        table = fit._ending(SUMMARY | counts, pathlib.Path("runs/mine")).splitlines()
        return [line for line in table if line.startswith("trouble")]

    assert trouble(restarts=1, bad_steps=0) == ["trouble 1 restart, 0 bad steps"]
    assert trouble(restarts=2, bad_steps=1) == ["trouble 2 restarts, 1 bad step"]
    assert trouble(restarts=0, bad_steps=0) == []
