"""The `train` pass: one run that trains every width."""
