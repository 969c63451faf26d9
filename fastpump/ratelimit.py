"""Rate limits of an interface and of peers, as the operator writes them.

The model is Firecracker's: each direction has a bucket of bytes and a bucket of operations
(packets), or no limit. A bucket is full at first with `size` tokens, and fills up evenly within
`refill_ms`: size / refill is the rate, and size is what may pass at once after a pause. A
one-time burst is used up before anything else, and never comes back.

tx is what leaves the interface's host into the tunnel, rx what comes from the tunnel to the
interface. Firecracker names directions as the guest sees them; for a guest behind the interface
that is the same.

    off                             no limits
    ITEM,ITEM...                    DIRECTION is tx, rx or both
      DIRECTION=RATE[,burst=SIZE]       bytes; RATE 100kbit, 2.5gbit, 10mb/s; SIZE 64kib, 10mb
      DIRECTION-ops=N[,burst=N]         packets per second; N 500, 1.5k, 2m
      DIRECTION.bandwidth.size=N        the bucket itself; size and refill-time (milliseconds)
      DIRECTION.ops.refill-time=N       are required, one-time-burst is not
      RATE                              short for both=RATE
    {...}                           Firecracker's JSON: a network interface, an array of one, or
                                    a configuration with one
    @FILE                           a file with that

A bucket of a RATE or N holds at least the burst, and is larger where whole tokens and whole
milliseconds would otherwise miss the rate by more than a thousandth. `emit` writes items, those
of the bucket itself where no RATE or N gives just that.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, NoReturn

from fastpump.errors import ConfigError, invalid, is_like_key

MAX_TOKENS = 2 ** 62
MAX_REFILL_MS = 3_600_000
MAX_FILE_LEN = 1 << 20      # bytes
DEFAULT_BURST_MS = 50
"""A bucket whose size is not given holds what the rate gives in this time, but at least these:"""
MIN_DEFAULT_BURST = {"bandwidth": 3000, "ops": 1}   # two packets of the usual size; one packet

EXPECTED = ("off, or items like tx=1gbit,burst=10mb or rx-ops=100k (tx, rx or both; RATE in bit, "
            "kbit, mbit, gbit, kb/s, mb/s, gb/s; 1gbit alone is both=1gbit), or the JSON of a "
            "Firecracker network interface, or @FILE with that")
DIRECTIONS = {"tx": ("tx",), "rx": ("rx",), "both": ("tx", "rx")}
KINDS = ("bandwidth", "ops")

# Bytes per second, bytes, and operations; `emit` prefers the first of equally short ones.
_BIT_RATES = {"gbit": Fraction(10 ** 9, 8), "mbit": Fraction(10 ** 6, 8),
              "kbit": Fraction(1000, 8), "bit": Fraction(1, 8)}
_RATES = {**_BIT_RATES, "gb/s": Fraction(10 ** 9), "mb/s": Fraction(10 ** 6),
          "kb/s": Fraction(1000)}
_SIZES = {"gb": Fraction(10 ** 9), "mb": Fraction(10 ** 6), "kb": Fraction(1000),
          "gib": Fraction(1 << 30), "mib": Fraction(1 << 20), "kib": Fraction(1 << 10),
          "b": Fraction(1), "": Fraction(1)}
_COUNTS = {"m": Fraction(10 ** 6), "k": Fraction(1000), "": Fraction(1)}

_NUMBER = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)([a-z/]*)")
_WHOLE = re.compile(r"[0-9]{1,19}")
_SHORT = re.compile(r"(tx|rx|both)(-ops)?")
_LONG = re.compile(r"(tx|rx|both)\.(bandwidth|ops)\.(size|refill-time|one-time-burst)")


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """`size` tokens (bytes or packets), of which it gets `size` every `refill_ms`;
    `one_time_burst` more at the start. ConfigError for numbers out of range."""

    size: int
    refill_ms: int
    one_time_burst: int = 0

    def __post_init__(self) -> None:
        for what, value, low, high in (
                ("size of a bucket", self.size, 1, MAX_TOKENS),
                ("refill time in milliseconds", self.refill_ms, 1, MAX_REFILL_MS),
                ("one-time burst", self.one_time_burst, 0, MAX_TOKENS)):
            if not low <= value <= high:
                said = str(value) if abs(value) < 10 ** 20 else "a number of that length"
                hint = "" if value else "; leave the bucket out for no limit"
                raise ConfigError(f"invalid {what} {said}: must be {low} to {high}{hint}")


@dataclass(frozen=True, slots=True)
class RateLimiter:
    """One direction; None: no limit. `bandwidth` counts bytes, `ops` packets."""

    bandwidth: TokenBucket | None = None
    ops: TokenBucket | None = None


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Both directions of an interface or a peer: `tx` into the tunnel, `rx` out of it."""

    tx: RateLimiter = RateLimiter()
    rx: RateLimiter = RateLimiter()

    @property
    def is_empty(self) -> bool:
        """Whether there is no limit at all."""
        return self == NO_LIMITS

    def to_firecracker(self) -> dict[str, Any]:
        """The rate limiters of a Firecracker network interface."""
        return {f"{direction}_rate_limiter": {
            kind: _bucket_to_dict(bucket) for kind, bucket in _buckets(limiter)
            if bucket is not None} for direction, limiter in (("rx", self.rx), ("tx", self.tx))}

    def to_json(self) -> dict[str, Any]:
        """{"tx": {"bandwidth": BUCKET or None, "ops": ...}, "rx": ...}, a BUCKET with size,
        refill_time (milliseconds) and one_time_burst."""
        return {direction: {kind: None if bucket is None else _bucket_to_dict(bucket)
                            for kind, bucket in _buckets(limiter)}
                for direction, limiter in (("tx", self.tx), ("rx", self.rx))}

    @classmethod
    def from_json(cls, value: Any) -> RateLimits:
        """The reverse; ConfigError."""
        if not isinstance(value, dict) or not set(value) <= {"tx", "rx"}:
            raise ConfigError('invalid rate limits: must be an object with "tx" and "rx"')
        return cls(_limiter_from_dict(value.get("tx"), "tx"),
                   _limiter_from_dict(value.get("rx"), "rx"))


NO_LIMITS = RateLimits()


def parse(text: str, *, may_read: bool = True) -> RateLimits:
    """Rate limits in any of their forms; ConfigError. Without `may_read` there is no @FILE."""
    text = text.strip()
    if text.lower() == "off":
        return NO_LIMITS
    if text.startswith("@"):
        if not may_read:
            raise ConfigError("cannot read rate limits from another file here: must be its text, "
                              "in one line")
        return _from_file(text[1:])
    if text.startswith(("{", "[")):
        return _from_firecracker(_load(text))
    return _from_items(text)


# -- items

def _from_items(text: str) -> RateLimits:
    """ITEM,ITEM..."""
    short: dict[tuple[str, str], tuple[Fraction, Fraction | None]] = {}
    long: dict[tuple[str, str], dict[str, int]] = {}
    before: tuple[str, str] | None = None       # the short item that a burst may follow
    for item in text.split(","):
        name, equals, value = (part.strip().lower() for part in item.partition("="))
        if not equals and _number(name, _RATES) is not None:
            name, value = "both", name
        elif not equals:
            _raise_invalid(text)
        if name == "burst":
            if before is None or short[before][1] is not None:
                raise ConfigError("misplaced burst=SIZE: must follow the item whose bucket it is "
                                  "for, once, like tx=1gbit,burst=10mb or tx-ops=100k,burst=5k")
            short[before] = short[before][0], _burst(value, before[1])
        elif match := _SHORT.fullmatch(name):
            before = match[1], "ops" if match[2] else "bandwidth"
            if before in short:
                _raise_twice(name)
            short[before] = _rate(value, before[1]), None
        elif match := _LONG.fullmatch(name):
            before = None
            fields = long.setdefault((match[1], match[2]), {})
            if match[3] in fields:
                _raise_twice(name)
            fields[match[3]] = _whole(name, value)
        else:
            _raise_invalid(text)
    found: dict[tuple[str, str], TokenBucket] = {}
    buckets = [(key, _bucket(key[1], *values)) for key, values in short.items()]
    buckets += [(key, _long_bucket(key, fields)) for key, fields in long.items()]
    for (directions, kind), bucket in buckets:
        for direction in DIRECTIONS[directions]:
            if (direction, kind) in found:
                _raise_twice(f"the {kind} of {direction}")
            found[direction, kind] = bucket
    return RateLimits(*(RateLimiter(*(found.get((direction, kind)) for kind in KINDS))
                        for direction in ("tx", "rx")))


def _raise_invalid(text: str) -> NoReturn:
    raise invalid("rate limit", text, EXPECTED)


def _raise_twice(what: str) -> NoReturn:
    raise ConfigError(f"{what} is limited twice: must be one limit of bytes and one of packets in "
                      "each direction")


def _number(value: str, units: dict[str, Fraction]) -> Fraction | None:
    match = _NUMBER.fullmatch(value)
    if match is None or match[2] not in units:
        return None
    return Fraction(match[1]) * units[match[2]]


def _rate(value: str, kind: str) -> Fraction:
    """Bytes or packets per second."""
    rate = _number(value, _RATES if kind == "bandwidth" else _COUNTS)
    if rate is None or not 1 <= rate <= MAX_TOKENS:
        if kind == "ops":
            raise invalid("number of packets per second", value, "at least 1, like 500, 1.5k or 2m")
        raise invalid("rate", value,
                      f"at least 8bit, with one of the units {', '.join(_RATES)}")
    return rate


def _burst(value: str, kind: str) -> Fraction:
    """Bytes or packets."""
    units = _SIZES if kind == "bandwidth" else _COUNTS
    burst = _number(value, units)
    if burst is None or not 1 <= burst <= MAX_TOKENS or burst.denominator != 1:
        raise invalid("burst", value,
                      f"a whole number of {'bytes' if kind == 'bandwidth' else 'packets'} from 1, "
                      f"perhaps with one of the units {', '.join(filter(None, units))}")
    return burst


def _whole(name: str, value: str) -> int:
    if not _WHOLE.fullmatch(value):
        raise invalid(name, value, "a whole number without a unit")
    return int(value)


def _bucket(kind: str, rate: Fraction, burst: Fraction | None) -> TokenBucket:
    size, refill_ms = _size_and_refill_ms(kind, rate, burst)
    if refill_ms > MAX_REFILL_MS:
        raise ConfigError(f"a bucket of {size} takes more than an hour to fill at that rate: must "
                          "have a smaller burst, or a higher rate")
    return TokenBucket(size, refill_ms)


def _size_and_refill_ms(kind: str, rate: Fraction, burst: Fraction | None) -> tuple[int, int]:
    """Of the smallest bucket of at least `burst` that has the rate within a thousandth."""
    rate /= 1000    # from here on per millisecond
    if burst is None:
        burst = max(rate * DEFAULT_BURST_MS, Fraction(MIN_DEFAULT_BURST[kind]))
    refill_ms = ceil(burst / rate)
    # Ends: a size of 500 misses by less than that, whatever is rounded.
    while True:
        exact = rate * refill_ms
        size = (2 * exact.numerator + exact.denominator) // (2 * exact.denominator)
        if abs(size - exact) * 1000 <= exact:
            return size, refill_ms
        refill_ms += 1


def _long_bucket(key: tuple[str, str], fields: dict[str, int]) -> TokenBucket:
    if "size" not in fields or "refill-time" not in fields:
        name = ".".join(key)
        raise ConfigError(f"{name} is incomplete: must have {name}.size=N and "
                          f"{name}.refill-time=MS")
    return TokenBucket(fields["size"], fields["refill-time"], fields.get("one-time-burst", 0))


# -- JSON

def _from_file(name: str) -> RateLimits:
    try:
        # Not blocking: a FIFO would wait for its writer.
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            is_regular = stat.S_ISREG(os.fstat(fd).st_mode)
            data = b""
            if is_regular:
                with os.fdopen(fd, "rb", closefd=False) as file:
                    data = file.read(MAX_FILE_LEN + 1)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        said = "(a key)" if is_like_key(name) else repr(name)
        raise ConfigError(f"cannot read the rate limits in {said}: {reason}") from None
    if not is_regular or len(data) > MAX_FILE_LEN:
        raise invalid("file of rate limits", name, "a regular file of at most 1 MiB")
    try:
        return _from_firecracker(_load(data.decode("utf-8", "replace")))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError("invalid JSON of rate limits: must be that of a Firecracker network "
                          "interface") from None


def _from_firecracker(value: Any) -> RateLimits:
    """A network interface, an array of one, or a microVM's configuration with one."""
    if isinstance(value, dict) and "network-interfaces" in value:
        value = value["network-interfaces"]
    if isinstance(value, list):
        if len(value) != 1:
            raise ConfigError(f"the JSON has {len(value)} network interfaces: must be exactly "
                              "one, whose rate limits to use")
        value = value[0]
    # Without this check, a misspelt limiter would mean no limit.
    if not isinstance(value, dict) or not {
            "iface_id", "rx_rate_limiter", "tx_rate_limiter"} & set(value):
        raise ConfigError("invalid network interface in the JSON: must be an object with "
                          '"rx_rate_limiter", "tx_rate_limiter" or both')
    return RateLimits(*(_limiter_from_dict(value.get(name), name)
                        for name in ("tx_rate_limiter", "rx_rate_limiter")))


def _limiter_from_dict(value: Any, name: str) -> RateLimiter:
    if value is None:
        return RateLimiter()
    if not isinstance(value, dict) or not set(value) <= set(KINDS):
        raise ConfigError(f'invalid "{name}": must be an object with "bandwidth", "ops" or both')
    return RateLimiter(*(_bucket_from_dict(value.get(kind), f"{name}.{kind}") for kind in KINDS))


def _bucket_from_dict(value: Any, name: str) -> TokenBucket | None:
    """As Firecracker takes it: null, or a size or refill time of zero, is no limit, and what
    else is in the object is ignored."""
    if value is None:
        return None
    said = value if isinstance(value, dict) else {}
    once = said.get("one_time_burst")
    fields: list[Any] = [said.get("size"), said.get("refill_time"), 0 if once is None else once]
    if not all(type(field) is int and field >= 0 for field in fields):      # no bool
        raise ConfigError(f'invalid "{name}": must have "size", "refill_time" in milliseconds and '
                          'perhaps "one_time_burst", whole numbers from 0')
    return TokenBucket(*fields) if fields[0] and fields[1] else None


def _bucket_to_dict(bucket: TokenBucket) -> dict[str, int]:
    return {"size": bucket.size, "one_time_burst": bucket.one_time_burst,
            "refill_time": bucket.refill_ms}


# -- text

def _buckets(limiter: RateLimiter) -> tuple[tuple[str, TokenBucket | None], ...]:
    return ("bandwidth", limiter.bandwidth), ("ops", limiter.ops)


def emit(limits: RateLimits) -> str:
    """Text that `parse` turns back into the same limits."""
    items: list[str] = []
    for (kind, tx), (_, rx) in zip(_buckets(limits.tx), _buckets(limits.rx), strict=True):
        for direction, bucket in (("both", tx),) if tx == rx else (("tx", tx), ("rx", rx)):
            if bucket is not None:
                items += _emit_bucket(direction, kind, bucket)
    return ",".join(items) or "off"


def _emit_bucket(direction: str, kind: str, bucket: TokenBucket) -> Iterator[str]:
    """Its items: a rate with as few digits as will do, and a burst if it is not the default;
    or all that the bucket has."""
    rates, sizes = (_BIT_RATES, _SIZES) if kind == "bandwidth" else (_COUNTS, _COUNTS)
    for burst in () if bucket.one_time_burst else (None, Fraction(bucket.size)):
        exact = Fraction(1000 * bucket.size, bucket.refill_ms)
        for rate in _near(exact, 1 / min(rates.values())):
            text = _unparse(rate, rates)
            if text is None or not 1 <= rate <= MAX_TOKENS:
                continue
            if _size_and_refill_ms(kind, rate, burst) == (bucket.size, bucket.refill_ms):
                yield f"{direction}{'-ops' if kind == 'ops' else ''}={text}"
                if burst is not None:
                    yield f"burst={_unparse(burst, sizes)}"
                return
    yield f"{direction}.{kind}.size={bucket.size}"
    yield f"{direction}.{kind}.refill-time={bucket.refill_ms}"
    if bucket.one_time_burst:
        yield f"{direction}.{kind}.one-time-burst={bucket.one_time_burst}"


def _near(value: Fraction, scale: Fraction) -> Iterator[Fraction]:
    """A value whose multiple by `scale` has ever more digits, and at last itself."""
    magnitude = len(str(int(value * scale)))
    for digits in range(1, 10):
        step = Fraction(10) ** (magnitude - digits) / scale
        yield round(value / step) * step
    yield value


def _unparse(value: Fraction, units: dict[str, Fraction]) -> str | None:
    """As short as it can be with at most three decimals; None if it needs more."""
    texts = []
    for unit, factor in units.items():
        thousandths = value / factor * 1000
        if value >= factor and thousandths.denominator == 1:
            whole, rest = divmod(thousandths.numerator, 1000)
            if whole < 10 ** 19:
                texts.append(f"{whole}{f'.{rest:03}'.rstrip('0') if rest else ''}{unit}")
    return min(texts, key=len, default=None)


def show(limits: RateLimits) -> str:
    """In words: tx 1 Gbit/s (10 MB at once), 5000 packets/s (250 at once); rx ..."""
    parts = []
    for direction, limiter in (("tx", limits.tx), ("rx", limits.rx)):
        words = [f"{_show_rate(kind, bucket)} ({_show_burst(kind, bucket)})"
                 for kind, bucket in _buckets(limiter) if bucket is not None]
        if words:
            parts.append(f"{direction} {', '.join(words)}")
    return "; ".join(parts) or "no limits"


def _show_rate(kind: str, bucket: TokenBucket) -> str:
    rate = 1000 * bucket.size / bucket.refill_ms
    return f"{_amount(8 * rate)}bit/s" if kind == "bandwidth" else f"{_count(rate)} packets/s"


def _show_burst(kind: str, bucket: TokenBucket) -> str:
    def words(tokens: int) -> str:
        return f"{_amount(tokens)}B" if kind == "bandwidth" else str(tokens)

    once = f", {words(bucket.one_time_burst)} more once" if bucket.one_time_burst else ""
    return f"{words(bucket.size)} at once{once}"


def _amount(value: float) -> str:
    """About four digits, a space, and a prefix for the unit behind it."""
    for prefix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{_count(value / factor)} {prefix}"
    return f"{_count(value)} "


def _count(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"
