"""The Program: the lowered integer model that backends execute and artifacts store."""
