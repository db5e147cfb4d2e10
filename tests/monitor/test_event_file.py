"""TensorBoard's event files, read back with TensorBoard's own reader; pictures; the graph."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from tfscale.monitor import charts, model_graph, pictures
from tfscale.monitor.event_file import EventFile


def read(folder, tag):
    events = EventAccumulator(str(folder)).Reload().Tensors(tag)
    return [(event.step, tf.make_ndarray(event.tensor_proto)) for event in events]


def test_scalars_of_a_life_that_goes_on_take_the_place_of_those_that_were_lost(tmp_path):
    first = EventFile(tmp_path)
    for step in (5, 10, 15):
        first.scalars(step, {"x": step / 2})
    first.close()
    second = EventFile(tmp_path, first_step=10)
    second.scalars(15, {"x": 99})
    second.close()
    assert [(s, float(v)) for s, v in read(tmp_path, "x")] == [(5, 2.5), (10, 5.0), (15, 99.0)]


def test_points_are_there_while_the_file_is_open(tmp_path):
    file = EventFile(tmp_path)
    file.scalars(1, {"x": 1.0})
    assert len(read(tmp_path, "x")) == 1
    file.close()


def test_histogram_has_its_bins(tmp_path):
    file = EventFile(tmp_path)
    file.histogram(3, "h", -1.0, 2.0, [1, 0, 5])
    file.close()
    [(step, table)] = read(tmp_path, "h")
    assert step == 3
    np.testing.assert_allclose(table, [[-1, 0, 1], [0, 1, 0], [1, 2, 5]])


def test_curve_of_precision_over_recall_is_counted_right(tmp_path):
    file = EventFile(tmp_path)
    counts = [np.array(c) for c in ([4, 2, 0], [6, 1, 0], [0, 5, 6], [0, 2, 4])]
    file.precision_recall(3, "p", counts)
    file.close()
    [(_, table)] = read(tmp_path, "p")
    np.testing.assert_allclose(table[4], [0.4, 2 / 3, 0], rtol=1e-5)
    np.testing.assert_allclose(table[5], [1, 0.5, 0], rtol=1e-5)


def test_record_becomes_curves_of_each_worker_and_of_all():
    times = {"input": [0.001, 0.002], "compute": [0.003] * 2, "host": [0.0] * 2}
    record = {
        "train": {"loss": 0.5, "per_class": [0.25, 0.75], "step_seconds": 0.25},
        "goodput": 0.5,
        "bytes_sent": 2_000_000,
        "seconds": {"compute": 0.003},
        "workers": times | {"exchange": [0.001] * 2},
    }
    found = charts.curves("train", record)
    assert found["train"] == {
        "1 learning/loss": 0.5,
        "1 learning/per_class/0": 0.25,
        "1 learning/per_class/1": 0.75,
        "3 a step in ms/all": 250,
        "2 speed and health/goodput": 0.5,
        "4 norms and bytes/megabytes sent by a replica": 2,
        "3 a step in ms/compute": 3,
    }
    assert found["worker-1"] == {
        "3 a step in ms/before the reduction, by worker": pytest.approx(5),
        "2 speed and health/slow worker, times the others": pytest.approx(5 / 4),
    }


def test_grid_shows_each_image_in_its_place_over_the_whole_range():
    images = np.zeros([9, 4, 4, 1], np.float32)
    images[8] = 2.5
    png, size = pictures.grid(images, ["1 as 2"] * 9)
    page = np.asarray(Image.open(io.BytesIO(png)))
    assert page.shape == (size[1], size[0], 3)
    width, height = size[0] // 8, size[1] // 2
    assert page[20, 20].max() == 0  # the first one is black, the ninth begins the second row
    assert page[height + 20, 20].min() == 255
    assert page[height + 20, width + 20].min() == 255  # nothing there but paper


@pytest.mark.parametrize("classes", [2, 10, 300])
def test_confusion_matrix_is_blue_where_it_is_right_and_red_where_it_is_not(classes):
    counts = np.eye(classes, dtype=int) * 9
    counts[0, 1] = 3
    png, size = pictures.confusion(counts)
    page = np.asarray(Image.open(io.BytesIO(png))).astype(int)
    cell = (size[0] - 52) // classes
    right, wrong = page[44, 44], page[44, 44 + cell]
    assert right[2] > right[0] and wrong[0] > wrong[2]


def layer(kind, name, *sources):
    tensors = [{"class_name": "__keras_tensor__", "config": {"keras_history": [s, 0, 0]}}
               for s in sources]  # fmt: skip
    inbound = [{"args": [tensors], "kwargs": {}}] if sources else []
    return {"class_name": kind, "config": {"name": name, "units": 3}, "inbound_nodes": inbound}


def edges(graph):
    return {node.name: list(node.input) for node in graph.node}


def test_graph_has_the_layers_and_what_leads_to_them():
    inside = {"name": "inside", "layers": [{"class_name": "Dense", "config": {"name": "a"}}]}
    config = {
        "layers": [
            layer("InputLayer", "x"),
            layer("Dense", "left", "x"),
            {"class_name": "Sequential", "config": inside,
             "inbound_nodes": layer("", "", "x")["inbound_nodes"]},
            layer("Add", "sum", "left", "inside"),
        ]
    }  # fmt: skip
    graph = model_graph.graph_of(config)
    assert edges(graph) == {
        "x": [], "left": ["x"], "inside/a": ["x"], "sum": ["left", "inside/a"],
    }  # fmt: skip
    assert graph.node[1].attr["units"].s == b"3"


def test_graph_of_keras_own_configurations():
    import keras

    chain = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="a")])
    assert edges(model_graph.graph_of(chain.get_config()))["a"]
    x = keras.Input((4,), name="x")
    y = keras.layers.Add(name="y")([keras.layers.Dense(4, name="d")(x), x])
    assert edges(model_graph.graph_of(keras.Model(x, y).get_config())) == {
        "x": [], "d": ["x"], "y": ["d", "x"],
    }  # fmt: skip
    assert model_graph.graph_of({"name": "own"}) is None
