"""What a person sees of a search while it runs, and when it is over.

On a terminal the table is drawn again in its place; into a pipe goes a line for each event. The
files (`results.csv`, TensorBoard's HPARAMS, the pictures) follow along. Nothing here steers the
search, and a view that cannot be written does not end it.
"""

import shutil
import sys
import time

from tfscale.search import plots, results, table, trials
from tfscale.search.hparams import HParams

_LOOK_SECONDS = 0.25  # between two looks at the records
_DRAW_SECONDS = 1.0  # between two drawings of the live table
_SHARE_OF_TIME = 0.01  # that pictures may take of the search
_MOST_ROWS = 40  # of the last table
_ROWS_AROUND = 5  # of a terminal, which the live table leaves


class Views:
    """The views of one search.

    Args:
        facts: the `SearchFacts`.
        stream: where the text goes.
        is_interactive: whether that is a terminal, on which the table is drawn again.
    """

    def __init__(self, facts, stream, is_interactive):
        self._facts, self._stream, self._is_interactive = facts, stream, is_interactive
        self._hparams = HParams(facts)
        self._seen = None  # id -> what was last said of a trial
        self._has_news = False
        self._lines_drawn = 0
        self._looked = self._drawn = float("-inf")
        self._began = self._pictured = time.monotonic()
        self._picture_seconds = 0.0
        self._warned = set()

    def update(self, records):
        """Show what has changed; cheap, and does nothing most of the times it is called.

        Args:
            records: all trials.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        news = self._news(records)
        if self._has_news:
            self._write_files(records)
        if self._is_interactive:
            if news or now - self._drawn >= _DRAW_SECONDS:
                self._drawn = now
                self._draw(self._live(records))
        else:
            self._say(news)
        if any(record.state != trials.RUNNING for record in records):
            self._draw_pictures(records, at_once=False)

    def finish(self, records):
        """Show the last table, the best trial, the time, and where things are.

        Args:
            records: all trials.
        """
        news = self._news(records)
        if not self._is_interactive:
            self._say(news)
        self._write_files(records)
        self._draw_pictures(records, at_once=True)
        shown = table.ranked(self._facts, records)[:_MOST_ROWS]
        width = shutil.get_terminal_size().columns if self._is_interactive else 160
        lines = table.lines(self._facts, records, width, shown)
        if len(records) > len(shown):
            lines.append(f"   and {len(records) - len(shown)} more, in results.csv")
        self._draw([])
        self._say(["", *lines, "", *table.closing(self._facts, records, *self._times())])

    def _news(self, records):
        """Return a line for each event since the last look.

        What an earlier life of the search has said is not said again.
        """
        first, self._has_news = self._seen is None, False
        seen, self._seen = self._seen or {}, {}
        news = []
        for record in records:
            mark = (record.state, record.reason, bool(record.history))
            self._seen[record.id] = mark
            before = seen.get(record.id)
            if before == mark:
                continue
            self._has_news = True
            if before is not None and before[:2] == mark[:2]:
                continue  # its first epoch, which is news for TensorBoard alone
            if before is None and not (first and record.state != trials.RUNNING):
                news.append(table.begun(self._facts, record))
            elif before is not None and record.state == trials.RUNNING and record.reason:
                news.append(table.retried(record))
            if record.state != trials.RUNNING and not first:
                news.append(table.ended(self._facts, records, record))
        ended = [record for record in records if record.state != trials.RUNNING]
        if first and ended:
            news.insert(0, f"going on: {table.counts(ended)}")
        return news

    def _live(self, records):
        """Return the lines of the live table, as many as fit on the terminal."""
        size = shutil.get_terminal_size()
        room = max(size.lines - _ROWS_AROUND, 4)
        shown = records
        if len(records) > room:
            running = [r for r in records if r.state == trials.RUNNING]
            best = table.ranked(self._facts, [r for r in records if r not in running])
            shown = (running + best)[:room]
        head = table.headline(self._facts, records, self._times()[0])
        lines = [head[: size.columns], *table.lines(self._facts, records, size.columns, shown)]
        if len(records) > len(shown):
            lines.append(f"   and {len(records) - len(shown)} more, in results.csv"[: size.columns])
        return lines

    def _times(self):
        """Return how long this life of the search has lasted, and the seconds since 1970."""
        return time.monotonic() - self._began, time.time()

    def _draw(self, lines):
        """Put lines in the place of those that were drawn last."""
        above = f"\x1b[{self._lines_drawn}F\x1b[J" if self._lines_drawn else ""
        self._lines_drawn = len(lines)
        self._say(lines, above)

    def _say(self, lines, above=""):
        """Write lines; nothing more once nobody reads them."""
        text = above + "".join(f"{line}\n" for line in lines)
        if not text or self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None

    def _write_files(self, records):
        path = self._facts.run_dir / "results.csv"
        self._try("results.csv", results.write, self._facts, records, path)
        self._try("TensorBoard's HPARAMS", self._hparams.update, records)

    def _draw_pictures(self, records, at_once):
        """Draw the pictures, seldom enough to take a hundredth of the time."""
        since = time.monotonic() - self._pictured
        if not at_once and since < max(self._picture_seconds / _SHARE_OF_TIME, 30):
            return
        start = time.monotonic()
        self._try("pictures", plots.draw, self._facts, records, self._facts.run_dir)
        self._pictured = time.monotonic()
        self._picture_seconds = self._pictured - start

    def _try(self, what, write, *arguments):
        """Write a view; what cannot be written is said once, and tried at the next occasion."""
        try:
            write(*arguments)
        except Exception as error:  # of a library, of the disk: a view does not end a search
            if what not in self._warned:
                self._warned.add(what)
                print(f"warning: {what} could not be written: {error}", file=sys.stderr, flush=True)
