"""Passes, the properties they keep, and the pipeline that runs them."""

from mbqc.pipeline.context import Context, Note, Report
from mbqc.pipeline.passes import Pass, Property
from mbqc.pipeline.pipeline import Pipeline

__all__ = ["Context", "Note", "Pass", "Pipeline", "Property", "Report"]
