"""What TensorBoard reads of a search, read back with TensorBoard's own reader."""

import time

import pytest
import records
from tensorboard.compat.proto import event_pb2
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from tfscale.search import hparams
from tfscale.search.hparams import HParams


def events(path):
    """Read an event file, checksums too."""
    reader = PyRecordReader_New(str(path))
    while True:
        try:
            reader.GetNext()
        except errors.OutOfRangeError:
            return
        yield event_pb2.Event.FromString(reader.record())


def read(folder):
    """Return {tag: [(step, value)]} of the files of a folder, in TensorBoard's order."""
    found = {}
    for path in sorted(folder.glob("*tfevents*")):
        for event in events(path):
            for value in event.summary.value:
                content = value.metadata.plugin_data.content
                if value.metadata.plugin_data.plugin_name == "hparams":
                    shown = plugin_data_pb2.HParamsPluginData.FromString(content)
                else:
                    shown = value.simple_value
                found.setdefault(value.tag, []).append((event.step, shown))
    return found


@pytest.fixture
def trials(tmp_path):
    return records.thirty(tmp_path)


def test_each_trial_has_its_values_its_end_and_its_best_so_far(tmp_path, trials):
    HParams(records.facts(tmp_path)).update(trials)
    found = read(trials[0].path / "tensorboard")
    [(_, start)] = found[metadata.SESSION_START_INFO_TAG]
    info = start.session_start_info
    assert info.group_name == "trial 0000" and info.start_time_secs == trials[0].started
    assert info.hparams["optimizer.name"].string_value == "adam"
    rate = info.hparams["optimizer.learning_rate"].number_value
    assert rate == trials[0].values["optimizer.learning_rate"]
    [(_, end)] = found[metadata.SESSION_END_INFO_TAG]
    assert end.session_end_info.status == 1  # a success
    score = trials[0].score
    assert found["best_val_accuracy"] == [
        (1, pytest.approx(score - 0.05)),
        (2, pytest.approx(score)),
        (3, pytest.approx(score)),
    ]


def test_an_epoch_that_was_not_finite_is_not_the_best(tmp_path):
    one = records.record(tmp_path, 0)
    one.history[0]["val_accuracy"] = float("nan")
    HParams(records.facts(tmp_path)).update([one])
    found = read(one.path / "tensorboard")["best_val_accuracy"]
    assert found == [(2, pytest.approx(0.9)), (3, pytest.approx(0.9))]


def test_what_failed_is_a_failure_and_what_runs_has_no_end(tmp_path, trials):
    HParams(records.facts(tmp_path)).update(trials)
    [(_, end)] = read(trials[7].path / "tensorboard")[metadata.SESSION_END_INFO_TAG]
    assert end.session_end_info.status == 2
    assert metadata.SESSION_END_INFO_TAG not in read(trials[29].path / "tensorboard")


def test_the_search_says_what_its_dimensions_are(tmp_path, trials):
    HParams(records.facts(tmp_path)).update(trials)
    [(_, data)] = read(tmp_path / "tensorboard")[metadata.EXPERIMENT_TAG]
    infos = {info.name: info for info in data.experiment.hparam_infos}
    assert infos["optimizer.learning_rate"].display_name == "learning_rate"
    assert infos["optimizer.learning_rate"].domain_interval.max_value == 0.1
    assert [v.string_value for v in infos["optimizer.name"].domain_discrete.values] == [
        "adam",
        "sgd",
    ]
    names = [(m.name.group, m.name.tag) for m in data.experiment.metric_infos]
    assert names == [("", "best_val_accuracy"), ("validation", "1 learning/accuracy")]


def test_nothing_is_written_twice_not_even_by_another_life(tmp_path, trials):
    HParams(records.facts(tmp_path)).update(trials)
    files = sorted(tmp_path.rglob("*tfevents*"))
    before = [path.stat().st_ino for path in files if "trials" in path.parts]
    time.sleep(0.01)
    again = HParams(records.facts(tmp_path))
    again.update(trials)
    again.update(trials)
    assert sorted(tmp_path.rglob("*tfevents*")) == files
    assert [path.stat().st_ino for path in files if "trials" in path.parts] == before


def test_a_parameter_that_a_script_meets_later_gets_its_column(tmp_path):
    facts = records.facts(tmp_path, parameters=[records.RATE])
    view = HParams(facts)
    running = records.record(tmp_path, 0, None, state="running")
    view.update([running])
    assert not (running.path / "tensorboard").exists()  # nobody knows yet what it will choose
    facts.parameters.append(records.FILTERS)
    view.update([records.record(tmp_path, 0)])
    [(_, data)] = read(tmp_path / "tensorboard")[metadata.EXPERIMENT_TAG]
    assert [i.name for i in data.experiment.hparam_infos] == [
        records.RATE.name,
        records.FILTERS.name,
    ]
    [(_, start)] = read(running.path / "tensorboard")[metadata.SESSION_START_INFO_TAG]
    assert start.session_start_info.hparams[records.FILTERS.name].number_value == 16


def test_values_that_tensorboard_has_no_kind_for_are_text(tmp_path):
    trial = records.record(tmp_path, 0, values={"model.arguments.units": [8, 4]})
    HParams(records.facts(tmp_path)).update([trial])
    [(_, start)] = read(trial.path / "tensorboard")[metadata.SESSION_START_INFO_TAG]
    assert start.session_start_info.hparams["model.arguments.units"].string_value == "[8, 4]"


def test_the_folder_of_a_tensorboard_callback_gets_the_values_and_the_end(tmp_path):
    board = tmp_path / "0001" / "execution0"
    hparams.write_chosen(board, {"units": 32, "shape": [1, 2]}, "trial 0001", 7.0)
    hparams.write_end(board)
    found = read(board)
    [(_, start)] = found[metadata.SESSION_START_INFO_TAG]
    values = start.session_start_info.hparams
    assert values["units"].number_value == 32 and values["shape"].string_value == "[1, 2]"
    [(_, end)] = found[metadata.SESSION_END_INFO_TAG]
    assert end.session_end_info.status == 1
