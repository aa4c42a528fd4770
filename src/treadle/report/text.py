"""Text for the page: escaping, and numbers as a person reads them."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from datetime import datetime

MISSING = "–"
_UNFIT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(value: object) -> str:
    """`value` as text without what has no place in a page.

    Control characters, which HTML forbids, halves of surrogate pairs, which file names may hold
    and UTF-8 cannot, and the marks that turn the direction of text, with which a name could
    disguise itself and what stands beside it, become the replacement character.
    """
    return _UNFIT.sub("\ufffd", str(value))


def esc(value: object) -> str:
    """`value`, cleaned, as text that is safe between tags and inside quoted attributes.

    >>> esc('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(clean(value), quote=True)


def number(value: object) -> str:
    """A number of the table: six decimals, as training prints it; whole numbers grouped.

    >>> number(0.25), number(12000), number(1.5e-7), number(None)
    ('0.250000', '12,000', '1.5e-7', '–')
    """
    if value is None:
        return MISSING
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if math.isfinite(value) and value != 0 and not 1e-4 <= abs(value) < 1e6:
        return general(value)
    return f"{value:.6f}"


def general(value: float) -> str:
    """At most four significant digits, and no idle zeros.

    >>> general(0.00001), general(0.25), general(123456.0)
    ('1e-5', '0.25', '1.235e5')
    """
    mantissa, _, exponent = f"{value:.4g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def headline(name: str, value: object) -> str:
    """A number in large print: three digits, and a share as a percentage.

    >>> headline("accuracy", 0.9421), headline("valid_loss", 0.2314)
    ('94.2\\u202f%', '0.231')
    """
    if not isinstance(value, float | int):
        return number(value)
    if is_share(name) and 0 <= value <= 1:
        return f"{100 * value:.1f}\u202f%"  # a thin, unbreakable space
    if 1e-2 <= abs(value) < 1e3:
        return f"{value:.3f}"
    return general(float(value))


def is_share(name: str) -> bool:
    """Whether a metric of that name is a share between 0 and 1."""
    return name.endswith(("accuracy", "error_rate"))


def seconds(value: object) -> float:
    """The seconds in a time of the table: a number, or text such as "4:05" or "1:02:03".

    >>> seconds("4:05"), seconds(12.5)
    (245.0, 12.5)
    """
    if isinstance(value, int | float):
        return float(value)
    total = 0.0
    for part in str(value).split(":"):
        total = 60 * total + float(part)
    return total


def duration(value: float) -> str:
    """Seconds as a clock shows them.

    >>> duration(245.0), duration(3723.0), duration(4.26)
    ('4:05', '1:02:03', '4.3 s')
    """
    if value < 10:
        return f"{value:.1f} s"
    minutes, secs = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def date(iso: str) -> str:
    """An ISO time in words; what is no ISO time stays as it is.

    >>> date("2026-01-31T12:05:00")
    '31 January 2026, 12:05'
    """
    try:
        when = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    return f"{when.day} {when:%B %Y, %H:%M}"


def flatten(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as dotted names with their text.

    >>> flatten({"opt": {"lr": 0.003}, "size": [128, 128]})
    [('opt.lr', '0.003'), ('size', '128, 128')]
    """
    flat: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            flat.append((f"{prefix}{key}", ", ".join(map(str, value))))
        else:
            flat.append((f"{prefix}{key}", str(value)))
    return flat
