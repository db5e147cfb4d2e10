"""Folders of runs made by hand, with known numbers in them; nothing here trains."""

import dataclasses
import json

from tfscale.config import RunConfig

BEGAN = 1_700_000_000.0


def write(path, records=(), events=(), **config):
    """Write the files of a run; `config` are fields such as `train__epochs=3`."""
    path.mkdir(parents=True)
    whole = dataclasses.asdict(RunConfig())
    for name, value in config.items():
        section, _, field = name.partition("__")
        whole[section][field] = value
    (path / "config.json").write_text(json.dumps(whole))
    for name, lines in (("metrics.jsonl", records), ("events.jsonl", events)):
        (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def times(*before):
    """The field `workers` of a record: these milliseconds before the reduction, of each worker."""
    count = len(before)
    exchange = [(max(before) - own + 1) / 1e3 for own in before]
    return {
        "input": [own / 1e3 - 0.001 for own in before],
        "compute": [0.001] * count,
        "exchange": exchange,
        "host": [0.0] * count,
    }


def record(step, loss, **more):
    """A record of training, one a second and step."""
    values = {"loss": loss, "learning_rate": 0.1, "step_seconds": 0.5, "examples_per_second": 64.0}
    return {"step": step, "epoch": (step - 1) // 10, "time": BEGAN + step, "train": values} | more


def validation(step, loss, accuracy):
    values = {"loss": loss, "accuracy": accuracy}
    return {"step": step, "epoch": (step - 1) // 10, "time": BEGAN + step, "validation": values}


def event(kind, step, seconds, **more):
    return {"event": kind, "step": step, "time": BEGAN + seconds, **more}


def begin(step, seconds, **more):
    facts = {"life": 1, "num_workers": 2, "steps_per_epoch": 10, "epochs": 3, "strategy": "x"}
    return event("begin", step, seconds, **facts | {"command": "python -m tfscale.fit"} | more)


def plain(path, **config):
    """A run that is finished; best at step 20."""
    records = [record(s, 3.0 / s) for s in range(1, 31)]
    scores = [(10, 0.5, 0.6), (20, 0.4, 0.9), (30, 0.45, 0.8)]
    for step, loss, accuracy in scores:
        at = next(i for i, r in enumerate(records) if r["step"] == step)
        records.insert(at + 1, validation(step, loss, accuracy))
    return write(path, records, [begin(0, 0), event("end", 30, 31)], **config)


def restarted(path, **config):
    """A run that failed at step 17, went on from step 10 a minute later, and goes on."""
    records = [record(s, 1.0, goodput=0.5, restarts=s > 10) for s in range(1, 16)]
    again = begin(10, 77, life=2, seen_step=17, seen_time=BEGAN + 17)
    bad = event("bad step", 12, 80, loss="nan", bad="loss", action="skip", examples=[1], epoch=1)
    return write(path, records, [begin(0, 0), again, bad], **config)


NOISE = "UnavailableError: Collective ops is aborted by: Connection reset by peer"
KILLED = "worker 1 failed first: signal SIGKILL (from outside) at step 17 (train, epoch 2)"


def killed(path):
    """A run whose worker 1 was killed at step 17, with the chief's word and the launcher's."""
    restarted(path)
    lines = (path / "events.jsonl").read_text().splitlines(keepends=True)
    lines.insert(1, json.dumps(event("failed", 17, 17, error=NOISE)) + "\n")
    (path / "events.jsonl").write_text("".join(lines))
    tell_failures(path, (19, KILLED))
    return path


def continued(path):
    """A run that was killed at step 17, went on from step 10, ended, and has more epochs."""
    killed(path)
    with open(path / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(record(s, 1.0)) + "\n" for s in range(16, 31))
    with open(path / "events.jsonl", "a") as file:
        more = [event("end", 30, 100), begin(30, 200, life=3, epochs=5)]
        file.writelines(json.dumps(one) + "\n" for one in more)
    return path


def tell_failures(path, *failures):
    """Leave a launcher's word in the folder of a run or of a script: pairs of seconds and text."""
    lines = [{"time": BEGAN + seconds, "life": 1, "text": text} for seconds, text in failures]
    (path / "logs").mkdir()
    (path / "logs/failures.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def slow(path, **config):
    """A run of three workers, of which number 2 waits for its input."""
    records = [record(s, 1.0, workers=times(5, 6, 12 + s % 3)) for s in range(1, 21)]
    return write(path, records, [begin(0, 0, num_workers=3), event("end", 20, 21)], **config)
