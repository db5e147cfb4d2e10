"""Turns of a graph's loop over batches: a number of them, or up to the end, or to a bad one.

What is done with a batch is the affair of `functions.py`.
"""

import tensorflow as tf


def take(iterator, num_steps, add, totals, watch, open_ended):
    """Take turns in the graph.

    Args:
        iterator: gives an element a turn.
        num_steps: an int32 scalar.
        add: a function `(element, totals, watched)` that returns the totals after a turn.
        totals: a dict of tensors, before the first one. Where it has "bad", an int32 scalar, the
            turn that makes that greater than 0 is the last.
        watch: a function of the turn's number that is called as it begins, for `watched`.
        open_ended: the iterator may end at any turn, a Python bool.

    Returns:
        The number of turns, and the totals.
    """

    def goes_on(number, totals):
        more = number < num_steps
        return more & (totals["bad"] == 0) if "bad" in totals else more

    def turn(number, totals):
        watched = watch(number)
        return number + 1, add(next(iterator), totals, watched)

    def turn_if_any(number, more, totals):
        watched = watch(number)
        optional = iterator.get_next_as_optional()
        return tf.cond(
            optional.has_value(),
            lambda: (number + 1, True, add(optional.get_value(), totals, watched)),
            lambda: (number, False, totals),
        )

    if not open_ended:
        return tf.while_loop(goes_on, turn, (tf.constant(0), totals))
    number, _, totals = tf.while_loop(
        lambda number, more, totals: more & goes_on(number, totals),
        turn_if_any,
        (tf.constant(0), tf.constant(True), totals),
    )
    return number, totals
