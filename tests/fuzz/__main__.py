"""Hostile and random input for whatever listens: checks that a case's seed repeats.

Each check takes a random.Random, makes its own small world from it and asserts what must hold
whatever comes; what it fed in is told with the failure. tests/fuzz/test_fuzz.py runs a few seconds
of each with the suite; a soak runs them for as long as wanted:

    PYTHONPATH=.:tests python -m fuzz --cases 1000000 --jobs 2
    PYTHONPATH=.:tests python -m fuzz --seed SEED --first NUMBER --cases 1     # one again

The keys that handshakes make are the system's randomness: they differ from run to run.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import multiprocessing
import random
import secrets
import sys
import time
import traceback

from fuzz.admission import check_admission
from fuzz.conffile import check_conffile
from fuzz.frames import check_frames
from fuzz.handshakes import check_handshakes
from fuzz.lanelife import check_lanelife
from fuzz.lanes import check_egress, check_lanes
from fuzz.ratelimit import check_ratelimit
from fuzz.sharedmemory import check_sharedmemory
from fuzz.timers import check_timers
from fuzz.uapi import check_uapi
from fuzz.wgfiles import check_wgfiles

CHECKS = {check.__name__.removeprefix("check_"): check for check in (
    check_uapi, check_conffile, check_handshakes, check_admission, check_timers,
    check_lanes, check_egress, check_frames, check_ratelimit, check_wgfiles, check_lanelife,
    check_sharedmemory)}
SHARES = {"uapi": 20, "conffile": 17, "handshakes": 2, "admission": 20, "timers": 8, "lanes": 18,
          "egress": 6, "frames": 4, "ratelimit": 5, "lanelife": 0.02, "sharedmemory": 0.1,
          "wgfiles": 0}     # needs wg: only by --check

LONG = {"lanelife", "sharedmemory"}
"""Up to a quarter of a second each: tests/unit/test_lane_schedules.py and test_shared_memory.py run
some with the suite."""


def run_case(seed, number, only=None):
    """One case, by its number; the name of its check."""
    rng = random.Random(seed << 40 | number)
    (name,) = rng.choices(list(SHARES), list(SHARES.values()))
    name = only or name
    CHECKS[name](rng)
    return name


class Formatter(logging.Handler):
    """Whatever is logged is put into words, and nobody sees it."""

    def emit(self, record):
        record.getMessage()


def soak(options, job, done):
    """The cases of one process."""
    faulthandler.enable()
    logging.basicConfig(level=logging.DEBUG, handlers=[Formatter()])
    counts, spent = done[job]
    for number in range(options.first + job, options.first + options.cases, options.jobs):
        counts[-1] = number
        begin = time.perf_counter()
        try:
            name = run_case(options.seed, number, options.check)
        except BaseException:
            traceback.print_exc()
            sys.exit(1)
        place = list(CHECKS).index(name)
        counts[place] += 1
        spent[place] += time.perf_counter() - begin


def totals(done):
    counts = [sum(counts[place] for counts, _ in done) for place in range(len(CHECKS))]
    return counts, [sum(spent[place] for _, spent in done) for place in range(len(CHECKS))]


def main():
    parser = argparse.ArgumentParser(description="Feed random input to what listens.")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--check", choices=list(CHECKS), help="only this one")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    context = multiprocessing.get_context("fork")
    done = [(context.RawArray("q", len(CHECKS) + 1), context.RawArray("d", len(CHECKS)))
            for _ in range(options.jobs)]
    processes = [context.Process(target=soak, args=(options, job, done))
                 for job in range(options.jobs)]
    print(f"seed {options.seed}", flush=True)
    begin = time.monotonic()
    for process in processes:
        process.start()
    failed, shown = None, begin
    while failed is None and any(process.is_alive() for process in processes):
        time.sleep(0.2)
        if time.monotonic() - shown >= 10:
            shown = time.monotonic()
            count = sum(totals(done)[0])
            print(f"{count} cases, {count / (shown - begin):.0f} a second", flush=True)
        failed = next((job for job, process in enumerate(processes)
                       if process.exitcode not in (None, 0)), None)
    failed = next((job for job, process in enumerate(processes)
                   if process.exitcode not in (None, 0)), failed)
    if failed is not None:
        for process in processes:
            if process.is_alive():
                process.terminate()
        only = f" --check {options.check}" if options.check else ""
        print(f"failed (exit {processes[failed].exitcode}); again: python -m fuzz --seed "
              f"{options.seed} --first {done[failed][0][-1]} --cases 1{only}")
        return 1
    seconds = time.monotonic() - begin
    for name, count, spent in zip(CHECKS, *totals(done), strict=True):
        if count:
            print(f"{name:12}{count:10} cases {1e6 * spent / count:8.0f} us each")
    count = sum(totals(done)[0])
    print(f"{count} cases in {seconds:.0f} s, {count / seconds:.0f} a second: no failure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
