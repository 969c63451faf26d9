"""Rate limits as an operator writes them: what each form means, and what is wrong with others."""

import json
import os

import pytest

from fastpump import ratelimit
from fastpump.errors import ConfigError
from fastpump.ratelimit import (
    MAX_REFILL_MS,
    MAX_TOKENS,
    NO_LIMITS,
    RateLimiter,
    RateLimits,
    TokenBucket,
    emit,
    parse,
    show,
)


def tx(size, refill_ms, once=0):
    return RateLimits(tx=RateLimiter(TokenBucket(size, refill_ms, once)))


def rx_ops(size, refill_ms, once=0):
    return RateLimits(rx=RateLimiter(ops=TokenBucket(size, refill_ms, once)))


def both(*buckets):
    return RateLimits(RateLimiter(*buckets), RateLimiter(*buckets))


# What is said; what it means; how it is written again.
ITEMS = [
    ("off", NO_LIMITS, None), (" OFF ", NO_LIMITS, "off"),
    # 50 ms of the rate, at least 3000 bytes or one packet.
    ("tx=1gbit", tx(6_250_000, 50), None),
    ("tx=480kbit", tx(3000, 50), None),
    ("tx=100kbit", tx(3000, 240), None),
    ("tx=8bit", tx(3000, 3_000_000), None),
    ("rx-ops=100k", rx_ops(5000, 50), None),
    ("rx-ops=20", rx_ops(1, 50), None),
    ("rx-ops=1", rx_ops(1, 1000), None),
    # All units, and decimals.
    ("tx=8000bit,burst=1000b", tx(1000, 1000), "tx=8kbit,burst=1kb"),
    ("tx=10mbit,burst=1mb", tx(10 ** 6, 800), None),
    ("tx=2.5gbit,burst=10mb", tx(10 ** 7, 32), None),
    ("tx=1000kb/s,burst=1000", tx(1000, 1), "tx=8mbit,burst=1kb"),
    ("TX=10MB/s, Burst = 1GB", tx(10 ** 9, 100_000), "tx=80mbit,burst=1gb"),
    ("tx=1gb/s,burst=10mb", tx(10 ** 7, 10), "tx=8gbit,burst=10mb"),
    ("tx=8192kbit,burst=64kib", tx(65536, 64), None),
    ("tx=8192kbit,burst=1mib", tx(1 << 20, 1024), None),
    ("tx=0.016777216gbit,burst=1gib", tx(1 << 30, 512_000), "tx=16777216bit,burst=1gib"),
    ("rx-ops=1.5k,burst=3k", rx_ops(3000, 2000), None),
    ("rx-ops=2m,burst=2m", rx_ops(2_000_000, 1000), None),
    # A rate alone is for both directions.
    ("100mbit", RateLimits(tx(625_000, 50).tx, tx(625_000, 50).tx), "both=100mbit"),
    ("10mbit, burst=1mb", RateLimits(tx(10 ** 6, 800).tx, tx(10 ** 6, 800).tx),
     "both=10mbit,burst=1mb"),
    # As much larger as whole milliseconds and the rate want it.
    ("tx=1gbit,burst=64kb", tx(125_000, 1), "tx=1gbit,burst=125kb"),
    ("tx=3gbit,burst=10mb", tx(10_125_000, 27), "tx=3gbit,burst=10125kb"),
    ("rx-ops=30", rx_ops(3, 100), None),
    ("rx-ops=7", rx_ops(1, 143), None),
    ("rx-ops=100003", rx_ops(5000, 50), "rx-ops=100k"),
    # Several.
    ("both=1mbit", both(TokenBucket(6250, 50)), None),
    ("tx=1mbit,rx=1mbit", both(TokenBucket(6250, 50)), "both=1mbit"),
    ("both-ops=500,burst=1k,both=8mbit,burst=1mb",
     both(TokenBucket(10 ** 6, 1000), TokenBucket(1000, 2000)),
     "both=8mbit,burst=1mb,both-ops=500,burst=1k"),
    ("rx-ops=1k,tx=8mbit,burst=1mb,rx=1gbit",
     RateLimits(RateLimiter(TokenBucket(10 ** 6, 1000)),
                RateLimiter(TokenBucket(6_250_000, 50), TokenBucket(50, 50))),
     "tx=8mbit,burst=1mb,rx=1gbit,rx-ops=1k"),
    ("tx=60kb/s", tx(3000, 50), "tx=480kbit"),
    # The buckets themselves.
    ("tx.bandwidth.size=125000000,tx.bandwidth.refill-time=1000", tx(125_000_000, 1000),
     "tx=1gbit,burst=125mb"),
    ("tx.bandwidth.one-time-burst=5,tx.bandwidth.refill-time=50,tx.bandwidth.size=6250000",
     tx(6_250_000, 50, 5),
     "tx.bandwidth.size=6250000,tx.bandwidth.refill-time=50,tx.bandwidth.one-time-burst=5"),
    (f"rx.ops.size={MAX_TOKENS},rx.ops.refill-time=1,rx.ops.one-time-burst={MAX_TOKENS}",
     rx_ops(MAX_TOKENS, 1, MAX_TOKENS), None),
    (f"rx.ops.size=1,rx.ops.refill-time={MAX_REFILL_MS}", rx_ops(1, MAX_REFILL_MS), None),
    ("both.ops.size=5,both.ops.refill-time=3,tx=1gbit",
     RateLimits(RateLimiter(TokenBucket(6_250_000, 50), TokenBucket(5, 3)),
                RateLimiter(None, TokenBucket(5, 3))),
     "tx=1gbit,both-ops=1667,burst=5"),
]


@pytest.mark.parametrize(("text", "limits", "again"), ITEMS, ids=[text for text, _, _ in ITEMS])
def test_items(text, limits, again):
    assert parse(text) == limits
    assert emit(limits) == (again or text)
    assert parse(emit(limits)) == limits


BAD = [
    ("", "invalid rate limit '': must be off, or items like "),
    ("fast", "invalid rate limit 'fast': must be off, or items like"),
    ("tx=1gbit,", "invalid rate limit "), ("1k", "invalid rate limit "),
    ("off,tx=1gbit", "invalid rate limit "), ("up=1gbit", "invalid rate limit "),
    ("tx.size=1", "invalid rate limit "), ("tx-burst=1mb", "invalid rate limit "),
    ("tx=1", "invalid rate '1': must be at least 8bit, with one of the units gbit, mbit"),
    ("tx=1gb", "invalid rate "), ("tx=1mbps", "invalid rate "), ("tx=", "invalid rate "),
    ("tx=off", "invalid rate "), ("tx=0gbit", "invalid rate "), ("tx=7bit", "invalid rate "),
    ("tx=-1gbit", "invalid rate "), ("tx=1e9bit", "invalid rate "), ("tx=nanbit", "invalid rate "),
    ("tx=infgbit", "invalid rate "), ("tx=\u0661gbit", "invalid rate "),
    ("tx=.5gbit", "invalid rate "),
    ("tx=" + "9" * 19 + "gbit", "invalid rate "), ("tx=" + "9" * 5000 + "bit", "invalid rate "),
    ("tx-ops=0", "invalid number of packets per second '0': must be at least 1"),
    ("tx-ops=1kbit", "packets per second"), ("tx-ops=0.5", "packets per second"),
    ("burst=1mb", "must follow the item"), ("tx=1gbit,burst=1mb,burst=1mb", "must follow the item"),
    ("tx.ops.size=1,burst=5,tx.ops.refill-time=1", "must follow the item"),
    ("tx=1gbit,burst=0", "invalid burst '0': must be a whole number of bytes from 1, .* gb, mb"),
    ("tx=1gbit,burst=1.5", "invalid burst "), ("tx=1gbit,burst=1gbit", "invalid burst "),
    ("tx=1gbit,burst=10k", "invalid burst "),
    ("tx-ops=9,burst=1kb", "a whole number of packets from 1, perhaps with .* units m, k"),
    ("tx=8bit,burst=4kb", "a bucket of 4000 takes more than an hour to fill"),
    ("tx=1gbit,tx=1gbit", "tx is limited twice"),
    ("tx=1gbit,both=1gbit", "the bandwidth of tx is limited twice"),
    ("rx-ops=1,rx.ops.size=1,rx.ops.refill-time=1", "the ops of rx is limited twice"),
    ("tx.ops.size=1,tx.ops.size=1", "tx.ops.size is limited twice"),
    ("tx.ops.size=1",
     r"tx\.ops is incomplete: must have tx\.ops\.size=N and tx\.ops\.refill-time=MS"),
    ("tx.ops.refill-time=1", "is incomplete"), ("tx.ops.one-time-burst=1", "is incomplete"),
    ("tx.ops.size=1k,tx.ops.refill-time=1",
     "invalid tx.ops.size '1k': must be a whole number without"),
    ("tx.ops.size=1.5", "a whole number without a unit"), ("tx.ops.size=-1", "a whole number"),
    ("tx.ops.size=0,tx.ops.refill-time=1",
     "invalid size of a bucket 0: must be 1 to 4611686018427387904; leave the bucket out for no "
     "limit"),
    ("tx.ops.size=1,tx.ops.refill-time=0", "invalid refill time in milliseconds 0: .* leave the"),
    ("tx.ops.size=1,tx.ops.refill-time=3600001", "must be 1 to 3600000$"),
    (f"tx.ops.size={MAX_TOKENS + 1},tx.ops.refill-time=1", "invalid size of a bucket "),
    (f"tx.ops.size=1,tx.ops.refill-time=1,tx.ops.one-time-burst={MAX_TOKENS + 1}",
     "invalid one-time burst .*: must be 0 to "),
    (f"tx=1gb/s,burst={MAX_TOKENS}", "more than an hour"),
    ("{", "invalid JSON of rate limits: must be"), ("[" * 100_000, "invalid JSON"),
    ('{"size": NaN}', "invalid network interface in the JSON"),
    ("{} x", "invalid JSON"),
    ("{}", "invalid network interface in the JSON: .*rx_rate_limiter"),
    ('{"tx_ratelimiter": {}}', "invalid network interface"), ("[1]", "invalid network interface"),
    ("[]", "has 0 network interfaces: must be exactly one"),
    ('{"network-interfaces": [{"iface_id": "a"}, {"iface_id": "b"}]}', "has 2 network interfaces"),
    ('{"tx_rate_limiter": 5}', 'invalid "tx_rate_limiter": must be an object with'),
    ('{"tx_rate_limiter": {"bandwith": null}}', 'invalid "tx_rate_limiter"'),
    ('{"tx_rate_limiter": {"ops": 5}}', 'invalid "tx_rate_limiter.ops"'),
    ('{"rx_rate_limiter": {"ops": {"size": 5}}}', 'invalid "rx_rate_limiter.ops"'),
    *((f'{{"rx_rate_limiter": {{"ops": {{"size": {size}, "refill_time": 9}}}}}}',
       'invalid "rx_rate_limiter.ops": .* whole numbers from 0')
      for size in ("1.5", "true", '"9"', "null", "-1", "NaN", "1e400", "[]")),
    *((f'{{"rx_rate_limiter": {{"ops": {{"size": {size}, "refill_time": 9}}}}}}',
       "invalid size of a bucket ") for size in (MAX_TOKENS + 1, "9" * 4000)),
    ('{"rx_rate_limiter": {"ops": {"size": 1, "refill_time": 18446744073709551615}}}',
     "invalid refill time "),
    ('{"rx_rate_limiter": {"ops": {"size": 1, "refill_time": 1, "one_time_burst": -1}}}',
     'invalid "rx_rate_limiter.ops"'),
]


@pytest.mark.parametrize(("text", "complaint"), BAD, ids=[text[:40] for text, _ in BAD])
def test_complaints_say_what_is_expected(text, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse(text)
    assert " must " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (-1, 1), (1, 1, -1), (MAX_TOKENS + 1, 1),
                                     (10 ** 5000, 1), (1, MAX_REFILL_MS + 1)])
def test_no_bucket_is_out_of_range(numbers):
    with pytest.raises(ConfigError, match=r"must be [01] to [0-9]*"):
        TokenBucket(*numbers)


BUCKET = {"size": 1024, "one_time_burst": 1048576, "refill_time": 1000}
INTERFACE = {"iface_id": "iface_1", "host_dev_name": "fctap1", "guest_mac": "06:00:c0:a8:34:02",
             "rx_rate_limiter": {"bandwidth": BUCKET},
             "tx_rate_limiter": {"bandwidth": None, "ops": {"size": 2000, "refill_time": 1000}}}
MEANS = RateLimits(RateLimiter(ops=TokenBucket(2000, 1000)),
                   RateLimiter(TokenBucket(1024, 1000, 1048576)))

FIRECRACKER = [
    (INTERFACE, MEANS), ([INTERFACE], MEANS),
    ({"boot-source": {}, "network-interfaces": [INTERFACE]}, MEANS),
    ({"iface_id": "1"}, NO_LIMITS),
    ({"rx_rate_limiter": None, "tx_rate_limiter": {}}, NO_LIMITS),
    ({"rx_rate_limiter": {"bandwidth": {"size": 0, "refill_time": 1000}}}, NO_LIMITS),
    ({"rx_rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 0}}}, NO_LIMITS),
    ({"rx_rate_limiter": {"ops": {"size": 0, "refill_time": 0, "one_time_burst": 5}}}, NO_LIMITS),
    ({"rx_rate_limiter": {"ops": {"size": 5, "refill_time": 6, "one_time_burst": None,
                                  "more": 1}}}, rx_ops(5, 6)),
]


@pytest.mark.parametrize(("value", "limits"), FIRECRACKER, ids=[str(row[0]) for row in FIRECRACKER])
def test_the_json_of_firecracker(value, limits, tmp_path):
    assert parse(json.dumps(value)) == limits
    path = tmp_path / "interface.json"
    path.write_text(json.dumps(value, indent=2))
    assert parse(f"@{path}") == limits
    assert parse(json.dumps(limits.to_firecracker())) == limits


def test_what_firecracker_is_given():
    assert MEANS.to_firecracker() == {
        "rx_rate_limiter": {"bandwidth": BUCKET},
        "tx_rate_limiter": {"ops": {"size": 2000, "one_time_burst": 0, "refill_time": 1000}}}
    assert NO_LIMITS.to_firecracker() == {"rx_rate_limiter": {}, "tx_rate_limiter": {}}


def test_strange_files_are_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "big").write_bytes(b" " * (ratelimit.MAX_FILE_LEN + 1))
    (tmp_path / "binary").write_bytes(b"{\xff\0")
    (tmp_path / "items").write_text("tx=1gbit")
    for name, complaint in (("missing", "cannot read .*: No such file"), ("", "regular file"),
                            ("x" * 300, "cannot read .*: File name too long"),
                            ("\0", "not a file name"), ("fifo", "regular file"),
                            ("big", "at most 1 MiB"), ("binary", "binary: invalid JSON"),
                            ("items", "items: invalid JSON")):
        with pytest.raises(ConfigError, match=complaint):
            parse(f"@{tmp_path}/{name}")


def test_a_file_is_not_read_where_it_must_not_be(tmp_path):
    path = tmp_path / "interface.json"
    path.write_text(json.dumps(INTERFACE))
    with pytest.raises(ConfigError, match="cannot read rate limits from another file here"):
        parse(f"@{path}", may_read=False)


def test_the_way_through_the_control_socket():
    for limits in (NO_LIMITS, MEANS, *(row[1] for row in ITEMS)):
        assert RateLimits.from_json(json.loads(json.dumps(limits.to_json()))) == limits
    assert MEANS.to_json() == {
        "tx": {"bandwidth": None, "ops": {"size": 2000, "one_time_burst": 0, "refill_time": 1000}},
        "rx": {"bandwidth": BUCKET, "ops": None}}
    for bad in (None, [], 5, {"up": {}}, {"tx": []}, {"tx": {"ops": {}}}):
        with pytest.raises(ConfigError, match="must "):
            RateLimits.from_json(bad)


@pytest.mark.parametrize(("text", "words"), [
    ("off", "no limits"),
    ("tx=1gbit,burst=10mb", "tx 1 Gbit/s (10 MB at once)"),
    ("rx=100kbit,rx-ops=5k", "rx 100 kbit/s (3 kB at once), 5000 packets/s (250 at once)"),
    ("tx=8bit,rx-ops=2.5", "tx 8 bit/s (3 kB at once); rx 2.5 packets/s (1 at once)"),
    ("tx.bandwidth.size=64,tx.bandwidth.refill-time=1,tx.bandwidth.one-time-burst=9000",
     "tx 512 kbit/s (64 B at once, 9 kB more once)"),
])
def test_words_for_a_person(text, words):
    assert show(parse(text)) == words


def test_only_no_limits_are_empty():
    assert NO_LIMITS.is_empty and RateLimits(RateLimiter(None, None)).is_empty
    assert not MEANS.is_empty
