"""Numbers as text, alike on the page, in figures and on the terminal."""

from __future__ import annotations

import math

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def short(value: float, digits: int = 3) -> str:
    """A number with so many digits, with a power of ten where it is far from 1, and with a minus that is one.

    Example:
        >>> short(0.9071876), short(-1634.2), short(0.00012029), short(1e-6), short(math.nan)
        ('0.907', '−1634', '1.2 · 10⁻⁴', '10⁻⁶', 'not finite')
    """
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return _plain(value, digits).replace("-", "−")
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = f"10{str(int(exponent)).translate(_RAISED)}"
    factor = f"{float(mantissa):g}".replace("-", "−")
    return {"1": power, "−1": f"−{power}"}.get(factor, f"{factor} · {power}")


def _plain(value: float, digits: int) -> str:
    """All digits before the point, and no exponent."""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"
