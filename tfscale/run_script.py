"""One worker of `tfscale.launch`: it prepares this process and then runs the script in it.

Run by path, `python run_script.py SETTINGS script.py args...` or `SETTINGS -m module args...`,
where SETTINGS is JSON from `launch`. The script finds what Python itself would give it: its
arguments, its folder to import from, tracebacks and exit codes of its own.
"""

import atexit
import errno
import functools
import json
import os
import re
import runpy
import secrets
import signal
import socket
import sys
import time
import zipfile
from pathlib import Path

_STARTED = time.time()
_OWN_FILES = (__file__, "<frozen runpy>")
_OTHER_COLLECTIVE = r"Collective instance \d+ expected|Shape mismatch in the collective instance"
_LOOP = os.path.join("tfscale", "training", "loop.py")


def main(argv):
    """Run a script as this worker.

    Args:
        argv: the settings, a JSON object with `seed` (None: the chief chooses), `keras_fit`,
            `start_timeout_seconds`, `private_network`, `deterministic`, `run_dir` ("" for none),
            `save` (what `training.fits.Fits` takes) and `health` (what `enable_keras_fit`
            takes); then the script, or `-m` and a module; then its arguments.

    Returns:
        The exit code: 0, 1 after an exception that the script did not catch, 2 for what cannot
        be run, 130 after Ctrl-C. The script's `sys.exit` passes through.
    """
    settings, target = json.loads(argv[0]), argv[1:]
    _be_python(target)
    ended_well = []
    try:
        _prepare(settings, target, ended_well)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    try:
        _run(target)
    except SystemExit as request:
        if request.code in (None, 0) and not _came_out_of_fit(request):
            ended_well.append(True)
        raise
    except BaseException as error:
        _show(error, settings)
        return 130 if isinstance(error, KeyboardInterrupt) else 1
    ended_well.append(True)
    return 0


def _be_python(target):
    """Set `sys.argv` and `sys.path` as Python does for the script or module."""
    root = str(Path(__file__).resolve().parents[1])
    is_module = target[0] == "-m"
    if not sys.flags.safe_path:  # what stands first is the folder of this file
        if is_module:
            sys.path[0] = os.getcwd()
        elif os.path.isdir(target[0]) or zipfile.is_zipfile(target[0]):
            del sys.path[0]  # runpy puts the folder or the archive there
        else:
            sys.path[0] = os.path.dirname(os.path.realpath(target[0]))
    if root not in sys.path:  # last, so that it hides nothing from the script
        sys.path.append(root)
    sys.argv[:] = target[1:] if is_module else target


def _prepare(settings, target, ended_well):
    """Meet the other workers, then set the strategy, the seeds and Keras' methods."""
    from tfscale import command_line
    from tfscale.cluster import pulse

    pulse.begin()  # before TensorFlow's import, in which a worker may hang as well
    with command_line.quiet_import():
        from tfscale import lending
        from tfscale import strategy as strategy_lib

        strategy_lib.find_gpus()
    strategy = strategy_lib.make_strategy(
        "multiworker",
        start_timeout_seconds=settings["start_timeout_seconds"],
        deterministic=settings["deterministic"],
    )
    atexit.register(_leave, strategy_lib, strategy, ended_well)
    seed = _seed(settings, target, strategy_lib, strategy)
    strategy_lib.set_seed(seed)
    if settings["run_dir"]:
        _save_fits(settings, seed, strategy_lib, strategy, ended_well)
    lending.lend_to_script(strategy)
    if settings["keras_fit"]:
        from tfscale.training.keras_fit import enable_keras_fit

        enable_keras_fit(**settings["health"])
    _accept_late_settings(strategy_lib.is_chief())
    if strategy_lib.shard_of(strategy).num_workers > 1:
        _make_folders_together()


def _seed(settings, target, strategy_lib, strategy):
    """Return the seed of all workers; without a launcher the chief chooses one and says so."""
    from tfscale import script_folder

    seed, is_chief, refusal = settings["seed"], strategy_lib.is_chief(), None
    if seed is not None and not settings["run_dir"]:
        return seed
    if is_chief and settings["run_dir"]:
        try:
            seed = script_folder.ScriptFolder(settings["run_dir"]).settle(target, seed)
        except ValueError as error:
            refusal = error
    if seed is None:
        seed = secrets.randbelow(script_folder.MAX_SEED + 1)
    mine = [seed * is_chief, int(refusal is not None)]
    [chosen, refused] = strategy_lib.sum_over_workers(strategy, mine)
    if refused:
        raise refusal or ValueError("The chief refused --run_dir; its log says why.")
    if is_chief and settings["seed"] is None:
        print(f"tfscale: seed {chosen} (--seed={chosen} repeats this run)", flush=True)
    return chosen


def _save_fits(settings, seed, strategy_lib, strategy, ended_well):
    """Have each call of `fit` saved, and signals make them save and leave."""
    from tfscale import script_folder
    from tfscale.cluster import shared_folder
    from tfscale.training import fits, preemption

    folder = script_folder.ScriptFolder(settings["run_dir"])
    seen = shared_folder.is_seen(folder.path, lambda: folder.is_visible(seed))
    [blind] = strategy_lib.sum_over_workers(strategy, [int(not seen)])
    if blind:
        raise ValueError(
            "--run_dir must be one folder that all workers see. Received: "
            f"{folder.path}, which {blind} worker(s) do not see as the chief does. "
            "Use a folder on a shared file system."
        )
    if strategy_lib.is_chief():
        folder.begin()
        atexit.register(folder.tell_end, ended_well)
    fits.begin_script(fits.Fits(folder.fits, **settings["save"]))
    preemption.listen()


def _came_out_of_fit(request):
    """Say whether a `sys.exit` broke off a call of `fit`, in which the others wait for this one.

    They must lose it then, as they lose one that is killed; at the end it would wait for them.
    """
    traceback = request.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename.endswith(_LOOP):
            return True
        traceback = traceback.tb_next
    return False


def _leave(strategy_lib, strategy, ended_well):
    """Leave together with the other workers, after a script that ended well."""
    if ended_well:
        from tfscale.cluster import pulse

        pulse.beat_done()
        # Python's own handlers wait as long as the workers do.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        strategy_lib.wait_for_workers(strategy)


def _accept_late_settings(is_chief):
    """Let settings of the runtime pass that a script makes at its start, when they are too late.

    The workers have met by then, and TensorFlow has its threads and devices: the launcher has
    divided cores and GPUs among the workers, and GPU memory grows as needed.
    """
    import tensorflow as tf

    said = set()

    def pass_late(home, name, is_harmless=lambda *args: True):
        function = getattr(home, name)

        def set_or_pass(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except RuntimeError:
                if not is_harmless(*args, *kwargs.values()):
                    raise
            if is_chief and name not in said:
                said.add(name)
                print(
                    f"warning: {name} comes after tfscale.launch has started TensorFlow, which "
                    "divides cores and GPUs among the workers. It is passed over.",
                    file=sys.stderr,
                    flush=True,
                )

        setattr(home, name, set_or_pass)

    def is_one_device(device, configurations):
        return len(configurations) == 1  # a bound on memory, and not a device more

    pass_late(tf.config.threading, "set_intra_op_parallelism_threads")
    pass_late(tf.config.threading, "set_inter_op_parallelism_threads")
    pass_late(tf.config, "set_visible_devices")
    pass_late(tf.config.experimental, "set_visible_devices")
    pass_late(tf.config.experimental, "set_memory_growth")
    pass_late(tf.config, "set_logical_device_configuration", is_one_device)
    pass_late(tf.config.experimental, "set_virtual_device_configuration", is_one_device)


def _make_folders_together():
    """Let a script make a folder that another worker of it has just made.

    Scripts look whether it is there and make it if not; another worker does so in between.
    """
    own = set()

    def tolerant(make):
        @functools.wraps(make)
        def make_or_share(path, *args, **kwargs):
            place = os.path.realpath(path)
            try:
                make(path, *args, **kwargs)
            except FileExistsError:
                is_new = os.path.isdir(place) and os.stat(place).st_ctime >= _STARTED
                if place in own or not is_new:
                    raise
            own.add(place)

        return make_or_share

    os.mkdir = tolerant(os.mkdir)  # which os.makedirs and Path.mkdir call


def _run(target):
    """Run the script or module as `__main__`."""
    if target[0] == "-m":
        runpy.run_module(target[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(target[0], run_name="__main__")


def _show(error, settings):
    """Show an exception as Python does, without the frames of this file, and what may help."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_code.co_filename in _OWN_FILES:
        traceback = traceback.tb_next
    sys.stdout.flush()
    sys.excepthook(type(error), error.with_traceback(traceback), traceback)
    advice = _advice(error, settings)
    if advice:
        print(f"tfscale: {advice}", file=sys.stderr)
    sys.stderr.flush()


def _advice(error, settings):
    """Return what a user can do about an exception that comes from running here, or ""."""
    while error is not None:
        unreachable = isinstance(error, socket.gaierror) or (
            isinstance(error, OSError) and error.errno == errno.ENETUNREACH
        )
        if unreachable and settings["private_network"]:
            return (
                "The network of the workers has loopback and nothing else. A script that needs "
                "another machine is started with --private_network=false."
            )
        if "not available outside the replica context" in str(error):
            return (
                "Gradients by the inputs are taken inside a tf.function. A training loop of one's "
                "own runs its step on the replicas, with tf.distribute.get_strategy().run(step, "
                "args=...) inside a tf.function; or use tfscale.Trainer(model, step=...)."
            )
        if re.search(_OTHER_COLLECTIVE, str(error)):
            return (
                "Workers met in different calls. fit, evaluate, predict and reading a metric are "
                "calls of all workers: make them on each, in the same order, and use what they "
                "return on the chief alone (tfscale.is_chief())."
            )
        error = error.__cause__ or error.__context__
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
