"""What saving costs: boundary to durable, and training time with a save every 2 s against none.

In one process, in turn: the same steps of the same network with a checkpoint falling due every 2 s, and with none.
Processor seconds, over all threads of the process, say what saving takes where others use the machine too.
What `auto` costs is too little to be seen in a run of that length: it follows from what one save costs, by the clock
and by what the saver itself counts, and from the interval that `auto` chooses for that.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time

from loop_overhead import Baton, build
from measure import machine, ratio, scratch, spread

from trainer.cadence import PRIOR_S, Cadence, best_interval_s
from trainer.machine import compute_exactly, thread_count
from trainer.startup import put_off_compiler


class Durations(logging.Handler):
    """Collects what the saver's debug lines tell."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seconds: list[float] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "durable after" in str(record.msg) and isinstance(record.args, tuple):
            self.seconds.append(float(record.args[1]))  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0, help="of training in each measurement")
    options = parser.parse_args()
    put_off_compiler()
    compute_exactly(thread_count())
    durations = Durations()
    logging.getLogger("baton.saver").addHandler(durations)
    logging.getLogger("baton.saver").setLevel(logging.DEBUG)
    with scratch() as folder:
        baton = Baton(*build(options.preset), folder)
        rate = baton.run(10)
        steps = max(1, round(options.seconds * rate))
        figures: dict[str, list[float]] = {"every 2 s": [], "none": []}
        processor: dict[str, list[float]] = {"every 2 s": [], "none": []}
        for number in range(-1, options.rounds):
            for name in ("every 2 s", "none") if number % 2 else ("none", "every 2 s"):
                baton.attempt.cadence = Cadence.parse("2s" if name == "every 2 s" else "100000s")
                begun = time.process_time(), time.perf_counter()
                baton.run(steps)
                ended = time.process_time(), time.perf_counter()
                if number >= 0:
                    processor[name].append(ended[0] - begun[0])
                    figures[name].append(ended[1] - begun[1])
        attempt = baton.attempt
        stall, saves = attempt._stall_s, attempt._saves
        counted_s = (stall + attempt.saver.busy_s / thread_count()) / saves
        baton.watch.close()
    print(f"cifar10 {options.preset}, {machine()}, {steps} steps a measurement")
    print(f"no saving:            {spread(figures['none'])} s")
    print(f"a save every 2 s:     {spread(figures['every 2 s'])} s")
    print(f"ratio:                {ratio(figures['every 2 s'], figures['none'])}")
    print(f"in processor seconds: {ratio(processor['every 2 s'], processor['none'])}")
    print(f"as counted:           {100 * counted_s / 2:.2f} % of training time, where a clock can't tell")
    print(f"stall of training:    {1000 * stall / saves:.2f} ms a save")
    milliseconds = [1000 * seconds for seconds in durations.seconds]
    tail = statistics.quantiles(milliseconds, n=10)[-1]
    print(f"boundary to durable:  {spread(milliseconds, '.1f')} ms; 90 % within {tail:.1f} ms")
    each = saves / (options.rounds + 1)  # of one measurement; the first round does not count
    clocked_s = statistics.median(a - b for a, b in zip(figures["every 2 s"], figures["none"], strict=True)) / each
    interval = best_interval_s(counted_s, max(durations.seconds), PRIOR_S)
    shares = [
        f"{100 * seconds / interval:.3f} % {by}"
        for seconds, by in ((clocked_s, "by the clock"), (counted_s, "as counted"))
    ]
    print(f"with auto:            a save every {interval:.0f} s, which takes {' or '.join(shares)} of training time")


if __name__ == "__main__":
    main()
