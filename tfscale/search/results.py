"""`results.csv`: one row a trial, for a spreadsheet or pandas."""

import csv
import io
import json

from tfscale.training import checkpoint

_COLUMNS = ("id", "state", "score", "best_epoch", "epochs", "seconds", "parent", "reason")


def write(facts, records, path):
    """Write all trials into a file, which is whole at each moment.

    A parameter has a column under its full name, empty in the row of a trial in which its
    condition did not hold. What is not a number, a word or a boolean is JSON.

    Args:
        facts: the `SearchFacts`.
        records: all trials.
        path: the file.
    """
    names = [parameter.name for parameter in facts.parameters]
    names += sorted({name for record in records for name in record.values} - set(names))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *names])
    for record in records:
        facts_of_it = [getattr(record, column) for column in _COLUMNS]
        facts_of_it[_COLUMNS.index("seconds")] = round(record.seconds, 3)
        chosen = [_cell(record.values[n]) if n in record.values else "" for n in names]
        writer.writerow([*facts_of_it, *chosen])
    checkpoint.write_whole(path, text.getvalue())


def _cell(value):
    return value if isinstance(value, (str, int, float)) else json.dumps(value)
