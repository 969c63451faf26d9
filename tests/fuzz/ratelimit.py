"""Any text as rate limits, and any rate limits as text."""

from __future__ import annotations

import json
from fractions import Fraction

from fastpump import ratelimit
from fastpump.errors import ConfigError
from fastpump.ratelimit import RateLimiter, RateLimits, TokenBucket
from fuzz.common import mutated, telling

# Of a second: (unit, bytes); independent of the product's tables.
RATES = (("bit", Fraction(1, 8)), ("kbit", Fraction(125)), ("mbit", Fraction(125_000)),
         ("gbit", Fraction(125_000_000)), ("kb/s", Fraction(1000)), ("mb/s", Fraction(10 ** 6)),
         ("gb/s", Fraction(10 ** 9)))
SIZES = (("", 1), ("b", 1), ("kb", 1000), ("kib", 1024), ("mb", 10 ** 6), ("mib", 1 << 20))
PIECES = ("tx=1gbit", "rx=2.5GBIT", "both=100kb/s", "burst=10mb", "tx-ops=1.5k", "both-ops=2m",
          "burst=1", " rx-ops = 7", "tx.bandwidth.size=3000", "tx.bandwidth.refill-time=20",
          "tx.bandwidth.one-time-burst=9", "rx.ops.size=4611686018427387905",
          "rx.ops.refill-time=3600000", "tx=0bit", "tx=1gb", "burst=1.5", "burst=0.5kib", "off",
          "", "tx-ops=\u0663", "tx=1e9bit", "tx.size=1", "burst", "@/dev/null",
          "tx=" + "9" * 40 + "bit")


def log_uniform(rng, low, high):
    return min(high, max(low, int(2 ** rng.uniform(low.bit_length() - 1, high.bit_length()))))


def random_bucket(rng):
    if rng.random() < 0.4:
        return None
    size = log_uniform(rng, 1, ratelimit.MAX_TOKENS)
    return TokenBucket(
        size, rng.choice((50, 1000, log_uniform(rng, 1, ratelimit.MAX_REFILL_MS))),
        rng.choice((0, 0, size, ratelimit.MAX_TOKENS)))


def random_limits(rng):
    """Mostly none, since emitting them takes its time."""
    if rng.random() < 0.5:
        return RateLimits()
    tx, rx = (RateLimiter(random_bucket(rng), random_bucket(rng)) for _ in range(2))
    return RateLimits(tx, rng.choice((tx, rx)))


def check_round_trips(limits):
    text = ratelimit.emit(limits)
    assert ratelimit.parse(text) == limits, text
    assert ratelimit.emit(ratelimit.parse(text)) == text
    assert not set(text) & set("#\n\0 ") and limits.is_empty == (text == "off")
    assert RateLimits.from_json(json.loads(json.dumps(limits.to_json()))) == limits
    assert ratelimit.parse(json.dumps(limits.to_firecracker())) == limits
    assert ratelimit.show(limits)


def check_text(text):
    try:
        limits = ratelimit.parse(text, may_read=False)
    except ConfigError as error:
        assert str(error)
        return
    check_round_trips(limits)


def check_bucket_is_what_was_said(rng):
    """The rate within a thousandth; at least the burst, and not much more."""
    unit, factor = rng.choice(RATES)
    number = log_uniform(rng, 1, 10 ** 6)
    text, rate = f"rx={number}{unit}", number * factor
    size_unit, size_factor = rng.choice(SIZES)
    burst = log_uniform(rng, 1, 10 ** 6)
    asked = burst * size_factor
    text += f",burst={burst}{size_unit}"
    if rate < 1 or asked > rate * 3600:
        return
    bucket = ratelimit.parse(text).rx.bandwidth
    assert abs(Fraction(bucket.size, bucket.refill_ms) * 1000 / rate - 1) <= Fraction(1, 1000), text
    assert asked <= bucket.size <= max(asked, 500) + rate / 1000 + 1, text


def json_value(rng, depth=0):
    """What Firecracker's JSON is made of, here and there something else."""
    if rng.random() < 0.08 or depth > 3:
        return rng.choice((None, True, 0, -1, 1.5, "x", [], {}, 2 ** 62, 2 ** 64, 10 ** 30))
    if depth == 0:
        names = ("rx_rate_limiter", "tx_rate_limiter", "iface_id", "guest_mac")
    elif depth == 1:
        names = ("bandwidth", "ops") + (("extra",) if rng.random() < 0.1 else ())
    elif depth == 2:
        names = ("size", "refill_time", "one_time_burst", "extra")
    else:
        return rng.choice((0, 1, 1000, 1_000_000, 3_600_000, 2 ** 62))
    return {name: json_value(rng, depth + 1) for name in names if rng.random() < 0.8}


def check_ratelimit(rng):
    """No text breaks the parser; what was read, or made, is written and read again."""
    what = rng.random()
    if what < 0.3:
        limits = random_limits(rng)
        with telling([limits]):
            check_round_trips(limits)
        return
    if what < 0.5:
        check_bucket_is_what_was_said(rng)
        return
    if what < 0.7:
        value = json_value(rng)
        value = rng.choice((value, value, [value], {"network-interfaces": [value]}))
        text = json.dumps(value)
    else:
        text = ",".join(rng.choices(PIECES, k=rng.randint(1, 4)))
    inputs = [text]
    with telling(inputs):
        check_text(text)
        for _ in range(rng.randrange(3)):
            inputs.append(mutated(rng, text.encode()).decode("utf-8", "replace"))
            check_text(inputs[-1])
