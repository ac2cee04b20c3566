"""Checkpoints that earlier code wrote, what was trained when it did, and where that training ended."""
