"""The plan of the house: which way imports point, what loads TensorFlow, which private names."""

import ast
import functools
import inspect
import pathlib
import subprocess
import sys

import pytest

from tfscale import config
from tfscale.__main__ import COMMANDS

PACKAGE = pathlib.Path(__file__).parents[1] / "tfscale"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("tensorflow", "keras", "numpy", "tensorflow_datasets", "ml_dtypes", "absl")

# From the root of the arrows to the doors. A room may import those in front of it and itself.
ROOMS = (
    {"config", "names", "cluster", "data/shards"},
    {"strategy", "testing"},
    {"data", "models", "optimizers", "monitor"},
    {"training", "parallel", "search"},
    {"config_files", "lending"},
    {"command_line", "run_folder", "script_folder", "tune_flags", "observation"},
    {"experiment"},
    {"scoring", "tune_checks", "tune_folder"},
    {*COMMANDS, "run_script", "__main__"},
)
# Within one line of ROOMS, besides a room and itself.
NEIGHBOURS = {("fit", "evaluate"), ("search", "training")}
PRIVATE_NAMES_LIVE_IN = (
    "strategy",
    "training/callback_state",
    "training/guards",
    "training/share",
    "training/seeds",
    "training/losses",
    "training/reduction",
    "training/accumulation",
    "training/keras_data",
    "training/keras_methods",
    "search/oracles",
)
DOCUMENTED = ("os._exit",)  # public, in spite of its underscore


def room_of(name):
    """The room of a module, given as "training/step" without the package in front."""
    return name if name == "data/shards" else name.split("/")[0]


def rank_of(room):
    found = [rank for rank, rooms in enumerate(ROOMS) if room in rooms]
    assert found, f"tfscale/{room} has no place in the plan: add it to ROOMS"
    return found[0]


def module_name(path):
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    return name.removesuffix("/__init__")


def imports_of(tree, name):
    """Modules of tfscale that a module imports, anywhere in its text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: imports are written out from tfscale on"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for module in found:
            path = module.split(".")
            if path[0] != "tfscale" or len(path) == 1:
                continue
            while not is_module(path[1:]) and len(path) > 1:
                path.pop()  # what is left of "tfscale.config.RunConfig" is the module
            if len(path) > 1:
                yield "/".join(path[1:])


def is_module(path):
    place = PACKAGE.joinpath(*path)
    return place.with_suffix(".py").is_file() or place.is_dir()


def wrong_arrows(source, name):
    room = room_of(name)
    for imported in imports_of(ast.parse(source), name):
        target = room_of(imported)
        if target == room or (room, target) in NEIGHBOURS:
            continue
        if target == "data/shards" and room == "data":
            continue
        if rank_of(target) >= rank_of(room):
            yield f"{name} imports {imported}"


def defined_names(tree):
    """Names of functions, classes and attributes that a module itself defines."""
    own = {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    return own | {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute)
        and isinstance(n.ctx, ast.Store)
        and isinstance(n.value, ast.Name)
        and n.value.id in ("self", "cls")
    }


@functools.cache
def names_of_the_package():
    return {name for path in MODULES for name in defined_names(ast.parse(path.read_text()))}


def private_names(source, name):
    """Private names of TensorFlow, Keras and others that a module uses.

    A leading underscore may follow a class or an object whose attributes of that name this module
    itself defines, as what is private to a module stays in it; and `self` or `cls` where a class
    of the package, not one of Keras that it is derived from, defines it.
    """
    tree = ast.parse(source)
    own = defined_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            used = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            used = [ast.unparse(node)]
            if node.attr.startswith("_") and not node.attr.startswith("__"):
                by_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                known = own | names_of_the_package() if by_self else own
                if node.attr not in known and used[0] not in DOCUMENTED:
                    yield f"{name}:{node.lineno} {used[0]}"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr"):
            if len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                attribute = str(node.args[1].value)
                if attribute.startswith("_") and not attribute.startswith("__"):
                    yield f"{name}:{node.lineno} {ast.unparse(node)}"
            continue
        else:
            continue
        for full in used:
            parts = full.split(".")
            private = [p for p in parts[1:] if p.startswith("_") and not p.startswith("__")]
            imported = not isinstance(node, ast.Attribute)
            if full.startswith(("tensorflow.python", "tf.python", "keras.src")) or (
                imported and private
            ):
                yield f"{name}:{node.lineno} {full}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_imports_point_one_way(path):
    assert list(wrong_arrows(path.read_text(), module_name(path))) == []


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_private_names_live_in_a_few_modules(path):
    name = module_name(path)
    if name not in PRIVATE_NAMES_LIVE_IN:
        assert list(private_names(path.read_text(), name)) == []


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("cluster/ports", "from tfscale import strategy"),
        ("strategy", "from tfscale.data import load"),
        ("data/load", "from tfscale.training.trainer import Trainer"),
        ("models/layers", "import tfscale.data.load"),
        ("training/step", "def late():\n    from tfscale import experiment"),
        ("experiment", "from tfscale.fit import main"),
    ],
)
def test_an_arrow_that_points_back_is_found(name, line):
    assert list(wrong_arrows(line, name))


@pytest.mark.parametrize(
    "line",
    [
        "from tensorflow.python.eager import context",
        "import keras.src.losses",
        "import keras\nkeras.src.backend.floatx()",
        "def f(optimizer):\n    return optimizer._lr",
        "def f(strategy):\n    return getattr(strategy, '_extended')",
        "from numpy import _core",
        "class A(Backup):\n    def f(self):\n        return self._weights_path",
    ],
)
def test_a_private_name_is_found(line):
    assert list(private_names(line, "data/load"))


def test_what_a_module_keeps_private_it_may_use_on_other_objects():
    source = "class A:\n    def __init__(self, other):\n        self._x = other._x"
    assert not list(private_names(source, "data/load"))


def run_fresh(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_tfscale_imports_nothing_heavy():
    code = (
        "import sys, tfscale\ntfscale.RunConfig()\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert run_fresh(code).strip() == "[]"


def test_public_names_are_there_and_listed():
    import tfscale

    assert all(getattr(tfscale, name) for name in tfscale.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Trainr'"):
        tfscale.Trainr  # noqa: B018


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_ends_well_without_tensorflow(command):
    code = (
        "import sys\nfrom tfscale.__main__ import main\n"
        f"assert main(['{command}', '--help']) == 0\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    assert "Flags:" in run_fresh(code)


def test_help_names_every_section_and_field():
    shown = run_fresh("import sys\nfrom tfscale import fit\nsys.exit(fit.main(['--help']))")
    sections, current = {}, None
    for line in shown.partition("Configuration, ")[2].splitlines()[1:]:
        if line.startswith("    "):
            sections[current].add(line.split()[0])
        elif line.strip():
            current = line.split(":")[0].strip()
            sections[current] = set()
    run = config.RunConfig()
    assert sections == {section: set(vars(getattr(run, section))) for section in vars(run)}


class TestPrivateNamesOfKeras:
    """What losses, seeds and reductions build on; a new Keras that moves it fails here by name."""

    @pytest.mark.parametrize(
        ("function", "parameters"),
        [
            ("scale_loss_for_distribution", ["value"]),
            ("unscale_loss_for_distribution", ["value"]),
            (
                "reduce_weighted_values",
                ["values", "sample_weight", "mask", "reduction", "dtype"],
            ),
            ("squeeze_or_expand_to_same_rank", ["x1", "x2", "expand_rank_1"]),
        ],
    )
    def test_loss_function_has_the_parameters_we_pass(self, function, parameters):
        from keras.src.losses import loss

        from tfscale.training import losses

        replaced = {
            "scale_loss_for_distribution": losses._keras_scale,
            "unscale_loss_for_distribution": losses._keras_unscale,
            "reduce_weighted_values": losses._keras_reduce,
        }
        original = replaced.get(function) or getattr(loss, function)
        assert original.__module__.startswith("keras.src.losses")
        assert list(inspect.signature(original).parameters) == parameters

    def test_losses_reduce_through_the_function_we_replace(self, monkeypatch):
        import keras
        from keras.src.losses import loss

        monkeypatch.setattr(loss, "reduce_weighted_values", lambda *_, **__: keras.ops.ones(()))
        assert float(keras.losses.MeanSquaredError()([[5.0]], [[0.0]])) == 1.0

    def test_loss_trackers_unscale_through_the_function_we_replace(self):
        from keras.src.backend.tensorflow import trainer
        from keras.src.trainers import compile_utils

        for module in (trainer, compile_utils):
            assert "loss_module.unscale_loss_for_distribution(" in inspect.getsource(module)

    def test_optimizer_sums_gradients_where_we_replace_it(self):
        import keras

        optimizer = keras.optimizers.SGD()
        method = type(optimizer)._all_reduce_sum_gradients
        assert list(inspect.signature(method).parameters) == ["self", "grads_and_vars"]

    def test_seed_generator_has_the_parameters_we_pass(self):
        from tfscale.training import seeds

        parameters = list(inspect.signature(seeds._keras_next_seed).parameters)
        assert parameters == ["self", "ordered"]
