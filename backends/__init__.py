"""The backends of mbqc, one folder each."""
