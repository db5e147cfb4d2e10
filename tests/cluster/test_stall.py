"""How long nobody has made a step: counted while the launcher itself runs."""

import dataclasses

from tfscale.cluster.pulse import RESTING, Beat
from tfscale.cluster.stall import Quiet

TRAINS = Beat(1, 1, True, False, False, 5, 0, 0.0, "train")


def test_quiet_time_begins_anew_with_every_beat_of_any_worker():
    quiet = Quiet()
    assert quiet.look([TRAINS, TRAINS], 10.0) == 0.0
    assert quiet.look([TRAINS, TRAINS], 10.5) == 0.5
    assert quiet.look([TRAINS, TRAINS], 11.0) == 1.0
    assert quiet.look([TRAINS, dataclasses.replace(TRAINS, number=2)], 11.5) == 0.0


def test_a_machine_that_was_paused_is_not_quiet():
    quiet = Quiet()
    quiet.look([TRAINS], 10.0)
    assert quiet.look([TRAINS], 5000.0) == 1.0


def test_nobody_is_quiet_who_is_not_expected_to_beat():
    quiet = Quiet()
    idle = [dataclasses.replace(TRAINS, phase=phase) for phase in RESTING]
    for now in range(10):
        assert quiet.look(idle, float(now)) == 0.0


def test_nobody_is_quiet_whose_script_has_caught_an_exception():
    quiet = Quiet()
    caught = dataclasses.replace(TRAINS, let_go=True)
    for now in range(10):
        assert quiet.look([caught], float(now)) == 0.0
    assert quiet.look([caught, TRAINS], 10.0) == 0.0
    assert quiet.look([caught, TRAINS], 11.0) == 1.0  # the other waits for it
