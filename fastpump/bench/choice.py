"""Who takes part. A new contender is one file of contenders/, and its line here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fastpump.bench.contender import BARE, Contender
from fastpump.bench.contenders import (
    fastd,
    fastpump,
    n2n,
    nebula,
    openvpn,
    quicktun,
    tinc,
    vtun,
    wireguard,
)
from fastpump.errors import ConfigError

OTHERS = (*wireguard.CONTENDERS, nebula.CONTENDER, *openvpn.CONTENDERS, *(
    each.CONTENDER for each in (fastd, tinc, vtun, quicktun, n2n)))
RIVAL = wireguard.CONTENDERS[0].name
"""Whom ratios are to, if it takes part."""


def everybody(queues: Sequence[int], options: Sequence[str] = ()) -> list[Contender]:
    """In the order of the report: fastpump with each number of queues, and with more options of
    `fastpump tunnel`."""
    return [BARE, *fastpump.contenders(queues, options), *OTHERS]


def check_names(what: str, names: Iterable[str], known: Iterable[str]) -> None:
    """ConfigError if there is no such thing."""
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no {what} {name!r}; there are: {', '.join(known)}")


def choose(contenders: Sequence[Contender], only: Sequence[str] | None,
           programs: Mapping[str, str]) -> list[tuple[Contender, str]]:
    """Those who take part, with their programs. `only`: their names, or `fastpump` for all numbers
    of queues; None: whoever is there. `programs`: paths by the names of programs. ConfigError if
    somebody who was named cannot."""
    check_names("program", programs, [each.program for each in contenders if each.program])
    check_names("contender", only or (), dict.fromkeys(
        name for each in contenders for name in (_family(each), each.name)))
    chosen = []
    for each in contenders:
        is_named = only is not None and (each.name in only or _family(each) in only)
        path = each.find(programs)
        if path is None and (is_named or (each.program in programs and not each.modules)):
            where = each.program and f", or say where it is: --program {each.program}=PATH"
            raise ConfigError(f"{each.name} needs {each.wants}; install what is missing{where}")
        if path is not None and (only is None or is_named):
            chosen.append((each, path))
    return chosen


def _family(contender: Contender) -> str:
    """Its name without the number of queues."""
    return contender.name.partition(",")[0]


def baseline(wanted: str | None, names: Sequence[str]) -> str:
    """Whom ratios are to, of those who take part. None: wireguard-go, or the first tunnel."""
    if wanted is not None:
        check_names("contender", [wanted], names)
        return wanted
    tunnels = [name for name in names if name != BARE.name]
    return RIVAL if RIVAL in names else (*tunnels, *names)[0]
