"""How long a training will take: said once it can be told, then now and then where no progress bar is shown."""

import sys
import time

from cli.script import say

FIRST = 10.0  # seconds of training before the first estimate, and so many steps
EVERY = 60.0  # seconds between two lines in a log


class Pace:
    """total: steps of the whole run; done: those that were taken before (by the run that goes on here).

    epochs: what the whole run is called, "10 epochs". The estimate is from the steps per second so far, measuring and
    saving included.
    """

    def __init__(self, total, done, epochs):
        self.total, self.before, self.epochs = total, done, epochs
        self.start = self.told = time.monotonic()
        self.estimated = False

    def left(self, step):
        """Seconds to the end of the run, or None where it is too early to tell."""
        taken, seconds = step - self.before, time.monotonic() - self.start
        if taken < FIRST or seconds < FIRST:
            return None
        return (self.total - step) * seconds / taken

    def tell(self, step, loss):
        """Say what there is to say after a step, if it is time."""
        left, now = self.left(step), time.monotonic()
        if left is None:
            return
        if not self.estimated:
            self.estimated, self.told = True, now
            say(f"about {in_words(left)} for {self.epochs} (step {step} of {self.total})")
        elif now - self.told >= EVERY and not sys.stderr.isatty():  # else the bar shows it
            self.told = now
            say(f"step {step} of {self.total}, loss {loss:.4f}: about {in_words(left)} left")


def in_words(seconds):
    """3 h 40 min, 12 min or 45 s."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if seconds >= 90 else f"{max(1, round(seconds))} s"
