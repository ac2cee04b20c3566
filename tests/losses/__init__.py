"""Conformance of every exported loss, and the numbers of each."""
