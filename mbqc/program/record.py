"""What all stored parts of a Program have in common."""

from __future__ import annotations

import msgspec


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a Program that is stored as JSON; unknown or ill-typed fields are refused on reading."""


class Operation(Record, frozen=True, tag_field="op"):
    """Base of all operations."""
