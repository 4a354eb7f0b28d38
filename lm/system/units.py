"""Sizes, times and numbers as people read them: three digits, or two units of time."""


def in_bytes(size: float) -> str:
    """Return a size in decimal units: 1_536_000_000 -> 1.54 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def duration(seconds: float) -> str:
    """Return a time in two units at most: 75 -> 1 min 15 s."""
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + f" {left} s" * bool(left)
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h" + f" {minutes} min" * bool(minutes)
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d" + f" {hours} h" * bool(hours)


def short(value: float) -> str:
    """Return a number in three digits: 1234567 -> 1.23M, 0.00012 -> 1.2e-4."""
    for power, sign in (12, "T"), (9, "B"), (6, "M"), (3, "k"):
        if 0.9995 * 10**power <= abs(value) < 1e15:
            return f"{value / 10**power:.3g}{sign}"
    if value and (abs(value) < 0.001 or abs(value) >= 1e15):
        digits, _, exponent = f"{value:.2e}".partition("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.3g}"
