"""Losses of language models and transformers: logits of tokens, hidden states, attention, relations of Q, K and V.

One file a method. ``divergences.py`` holds every divergence of two token distributions, and the others share it.
"""
