"""Faults on demand: which ones there are, and which of them meet a given request. Pure, no clock.

A fault is ``{"kind": …}`` and, all optional, when it strikes: ``times`` (how often; ``null``, the default, is for
ever), ``operation`` (only this one, e.g. ``send_pushed_message``), ``after`` (spare the first so many requests
that match), ``share`` (strike with this probability, drawn from ``seed``). The kinds and their own parameters:

=================================  ======================  =======================================================
kind                               parameters, defaults    what the caller sees
=================================  ======================  =======================================================
latency                            seconds=1.0             the answer comes late; the work was done at once
error_json                         status=500,             an error, 5xx or any other, with a JSON body; with
                                   store=false, body=null  ``store`` the work was done all the same
error_html                         status=502,             the error page of a proxy, in HTML
                                   store=false
too_many_requests_without_headers                          429 without any rate header; uses no quota
hang_up_before                                             the connection closes, nothing was done; uses no quota
hang_up_during                                             the work was done; the connection closes in the middle
                                                           of the answer
hang_up_after                                              the work was done; the connection closes before the
                                                           answer's first byte
never_answer                       store=true              the connection stays open, without an answer
extra_fields                                               messages come with fields nobody documented, and with
                                                           files under new and under old names
no_rate_headers                                            the answer lacks the quota headers
garbage                            store=true              200 with a body that is not JSON
ip_blocked                                                 the 401 of an unauthorised IP address; uses no quota
permission                                                 the 403 of a key that lacks the permission
=================================  ======================  =======================================================

``latency``, ``extra_fields`` and ``no_rate_headers`` add to whatever else strikes; of the others the first one
given wins. Faults strike only requests that have a known route, a valid key and a place in the quota.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

#: Every kind of fault, with its own parameters and their defaults.
KINDS: dict[str, dict[str, Any]] = {
    "latency": {"seconds": 1.0},
    "error_json": {"status": 500, "store": False, "body": None},
    "error_html": {"status": 502, "store": False},
    "too_many_requests_without_headers": {},
    "hang_up_before": {},
    "hang_up_during": {},
    "hang_up_after": {},
    "never_answer": {"store": True},
    "extra_fields": {},
    "no_rate_headers": {},
    "garbage": {"store": True},
    "ip_blocked": {},
    "permission": {},
}
_ADDITIVE = frozenset({"latency", "extra_fields", "no_rate_headers"})
_WHEN: dict[str, Any] = {"times": None, "operation": None, "after": 0, "share": 1.0, "seed": 0}


@dataclass(slots=True)
class Fault:
    """Keep one fault and how often it has met a request and struck.

    Made by :func:`fault_from`, which checks the values.
    """

    kind: str
    params: dict[str, Any]
    times: int | None
    operation: str | None
    after: int
    share: float
    seed: int
    random: Random
    met: int = 0
    struck: int = 0

    @property
    def spent(self) -> bool:
        """Tell whether it has struck as often as it was to."""
        return self.times is not None and self.struck >= self.times

    @property
    def is_additive(self) -> bool:
        """Tell whether it adds to another fault instead of taking its place."""
        return self.kind in _ADDITIVE

    def strikes(self, operation: str) -> bool:
        """Decide whether a request for `operation` is struck, and count it.

        :param operation: the operation's name, one of `airflow_provider_sib.sandbox.state.OPERATIONS`.
        :return: whether the fault strikes.
        """
        if self.spent or self.operation not in (None, operation):
            return False
        self.met += 1
        if self.met <= self.after or (self.share < 1 and self.random.random() >= self.share):
            return False
        self.struck += 1
        return True

    def as_json(self) -> dict[str, Any]:
        """Give the fault and its counts as plain JSON values."""
        return {
            "kind": self.kind,
            **self.params,
            "times": self.times,
            "operation": self.operation,
            "after": self.after,
            "share": self.share,
            "seed": self.seed,
            "struck": self.struck,
        }


@dataclass(slots=True)
class Struck:
    """Say what meets one request: the additive faults, and at most one that decides the answer."""

    latency_seconds: float = 0.0
    extra_fields: bool = False
    no_rate_headers: bool = False
    kind: str | None = None
    params: dict[str, Any] = field(default_factory=dict)


NOTHING = Struck()


def fault_from(values: dict[str, Any], operations: frozenset[str]) -> Fault:
    """Check a fault as it was asked for, and make it.

    :param values: ``{"kind": …}`` with the parameters of the module's docstring.
    :param operations: the operations that may be named.
    :raises ValueError: in one sentence that names what is wrong.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; it is {kind!r}.")
    known = {**KINDS[kind], **_WHEN}
    unknown = values.keys() - known.keys() - {"kind"}
    if unknown:
        names = ", ".join(sorted(map(str, unknown)))
        raise ValueError(f"The fault {kind} has no parameter {names}; it has {', '.join(known)}.")
    given = {**known, **{name: value for name, value in values.items() if name != "kind"}}
    if given["operation"] is not None and given["operation"] not in operations:
        raise ValueError(
            f"operation must be one of {', '.join(sorted(operations))}; it is {given['operation']!r}."
        )
    for name, low, high in (
        ("times", 1, None),
        ("after", 0, None),
        ("status", 400, 599),
        ("seed", None, None),
    ):
        _require_int(given, name, low=low, high=high)
    for name, top in (("share", 1.0), ("seconds", float("inf"))):
        value = given.get(name, 0.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= top:
            raise ValueError(f"{name} must be a number from 0 to {top:g}; it is {value!r}.")
    if not isinstance(given.get("store", False), bool):
        raise ValueError(f"store must be true or false; it is {given['store']!r}.")
    return Fault(
        kind=kind,
        params={name: given[name] for name in KINDS[kind]},
        **{name: given[name] for name in _WHEN},
        random=Random(given["seed"]),  # noqa: S311  a repeatable draw is wanted, not a secret
    )


def _require_int(given: dict[str, Any], name: str, *, low: int | None, high: int | None) -> None:
    value = given.get(name)
    if value is None and (name == "times" or name not in given):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be a whole number; it is {value!r}.")
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(
            f"{name} must be {low} or more{f' and at most {high}' if high else ''}; it is {value}."
        )


def strike(faults: list[Fault], operation: str) -> Struck:
    """Find what meets a request, count it, and drop the faults that are spent.

    :param faults: those in force, in the order given; changed in place.
    :param operation: the operation's name.
    """
    if not faults:
        return NOTHING
    struck = Struck()
    for fault in faults:
        if not fault.is_additive and struck.kind is not None:
            continue
        if not fault.strikes(operation):
            continue
        match fault.kind:
            case "latency":
                struck.latency_seconds += fault.params["seconds"]
            case "extra_fields":
                struck.extra_fields = True
            case "no_rate_headers":
                struck.no_rate_headers = True
            case _:
                struck.kind = fault.kind
                struck.params = fault.params
    faults[:] = [fault for fault in faults if not fault.spent]
    return struck
