"""Moments as ISO 8601 in UTC, to the microsecond, so that they compare as text."""

from __future__ import annotations

from datetime import UTC, datetime


def iso_utc(moment: datetime | float) -> str:
    """Return an aware datetime, or seconds since 1970, as `2026-11-21T09:30:00.000000Z`.

    Raises `ValueError` or `OverflowError` outside of the years 1 to 9999.
    """
    try:
        aware = moment if isinstance(moment, datetime) else datetime.fromtimestamp(moment, UTC)
    except OSError as error:  # of the C library, for a year that it cannot hold
        raise ValueError(str(error)) from error
    return aware.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
