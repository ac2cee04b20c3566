"""Networks whose attention is not behind transformers' interface, and what they attend to by hand."""

import math

import torch
from torch import nn
from torch.nn import functional as F

WIDTH, HEADS, LENGTH = 16, 4, 6


def heads_of(value, heads=HEADS):
    return value.unflatten(-1, (heads, -1)).transpose(1, 2)


class Called(nn.Module):
    """Attention of a user's own, with whatever arguments of the function."""

    def __init__(self, width=WIDTH, heads=HEADS, groups=None, **options):
        super().__init__()
        self.num_heads, self.groups, self.options = heads, groups or heads, options
        size = width // heads
        self.query, self.key, self.value = (nn.Linear(width, n * size) for n in (heads, self.groups, self.groups))
        self.out = nn.Linear(width, width)

    def projected(self, x):
        return (
            heads_of(part(x), n)
            for part, n in zip((self.query, self.key, self.value), (self.num_heads, *[self.groups] * 2), strict=True)
        )

    def forward(self, x, mask=None):
        q, k, v = self.projected(x)
        attended = F.scaled_dot_product_attention(q, k, v, mask, 0.0, **self.options)
        return self.out(attended.transpose(1, 2).flatten(2))

    def by_hand(self, x, mask=None):
        """Scores, with ``-inf`` where a key does not count, and probabilities."""
        q, k, _ = self.projected(x)
        k = k.repeat_interleave(self.num_heads // self.groups, dim=1)
        scores = q @ k.mT * (self.options.get("scale") or 1 / math.sqrt(q.shape[-1]))
        if self.options.get("is_causal"):
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -math.inf)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
        return scores, scores.softmax(-1)


class Layered(nn.Module):
    """Torch's attention layer in a block of a user's own."""

    def __init__(self, width=WIDTH, heads=HEADS, need_weights=False, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, **options)
        self.need_weights = need_weights

    def forward(self, x, mask=None, padding=None):
        turned = x if self.attn.batch_first else x.transpose(0, 1)
        made, _ = self.attn(
            turned, turned, turned, key_padding_mask=padding, need_weights=self.need_weights, attn_mask=mask
        )
        return x + (made if self.attn.batch_first else made.transpose(0, 1))


class Net(nn.Module):
    """Blocks of attention over tokens, with classes of their mean."""

    def __init__(self, attention=Called, depth=2, width=WIDTH, classes=3, **options):
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.blocks = nn.ModuleList(Block(attention, width, **options) for _ in range(depth))
        self.head = nn.Linear(width, classes)

    def forward(self, x, *masks):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x, *masks)
        return self.head(x.mean(1))


class Block(nn.Module):
    def __init__(self, attention, width, **options):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), attention(width, **options)
        self.mlp = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, width))

    def forward(self, x, *masks):
        x = x + self.mix(self.norm(x), *masks)
        return x + self.mlp(x)


class Encoder(nn.Module):
    """Torch's own encoder."""

    def __init__(self, depth=2, width=WIDTH, heads=HEADS, nested=False, classes=3, **options):
        super().__init__()
        self.embed = nn.Linear(5, width)
        layer = nn.TransformerEncoderLayer(width, heads, 8, 0.0, batch_first=True, **options)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=nested)
        self.head = nn.Linear(width, classes)

    def forward(self, x, mask=None, padding=None):
        return self.head(self.encoder(self.embed(x), mask, padding).mean(1))
