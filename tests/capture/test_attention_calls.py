"""Attention that a network computes itself or by torch's layer is read, and the network computes what it would."""

import copy
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lightning_kd.capture.attention import Attended, place_of
from lightning_kd.capture.attention_kinds import every_attention_in, find_attention
from lightning_kd.capture.attention_matrix import read_part
from lightning_kd.capture.hooks import Capture, without_captures
from tests.capture.attending import HEADS, LENGTH, WIDTH, Called, Encoder, Layered, Net, heads_of

ROWS = 3
PARTS = ("scores", "probabilities", "queries", "keys", "values")
PADDING = torch.arange(LENGTH) >= torch.tensor([[6], [4], [2]])
UPPER = torch.ones(LENGTH, LENGTH).triu(1).bool()


def given(dtype=torch.float64, seed=0):
    return torch.randn(ROWS, LENGTH, 5, generator=torch.Generator().manual_seed(seed)).to(dtype)


def made(make, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    return make(**options).to(dtype)


def read(network, block, *inputs, parts=PARTS, grad=False):
    """What is read of a block, by part, and the output meanwhile."""
    capture = Capture(network, [place_of(part, block) for part in parts], "student")
    capture.attach()
    with nullcontext() if grad else torch.no_grad(), capture.recording() as call:
        output = network(*inputs)
        capture.check_ran(call)
    capture.detach()
    return dict(zip(parts, call.features.values(), strict=True)), output


def entering(network, block, *inputs):
    """What a module is called with, by a hook of torch's own."""
    found = []
    handle = network.get_submodule(block).register_forward_pre_hook(lambda module, args: found.append(args[0].detach()))
    with torch.no_grad():
        network(*inputs)
    handle.remove()
    return found[0]


def check_scores(scores, expected):
    """Scores equal where keys count, and are far below where none does."""
    hidden = expected == -torch.inf
    torch.testing.assert_close(scores[~hidden], expected[~hidden], rtol=1e-12, atol=1e-12)
    assert bool((scores[hidden] < -1e29).all())


MASKS = {
    "all": None,
    "true where it counts": ~UPPER,
    "of each row": ~PADDING[:, None, None, :],
    "added": torch.randn(HEADS, LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)).double(),
    "added, and nothing": torch.zeros(LENGTH, LENGTH).masked_fill(UPPER, -torch.inf).double(),
}
OPTIONS = {"plain": {}, "causal": {"is_causal": True}, "scale": {"scale": 0.1}, "groups": {"groups": 2}}
CALLS = [(o, m) for o in OPTIONS for m in MASKS if o != "causal" or m == "all"]


@pytest.mark.parametrize(("options", "mask"), CALLS)
def test_a_call_is_read_as_it_is_by_hand(options, mask):
    more = {"enable_gqa": True} if options == "groups" else {}
    network = made(Net, **OPTIONS[options], **more)
    x, mask = given(), MASKS[mask]
    inputs = (x,) if mask is None else (x, mask)
    with torch.no_grad():
        plain = network(*inputs)
    values, output = read(network, "blocks.1", *inputs)
    assert torch.equal(output, plain)
    inner = entering(network, "blocks.1.mix", *inputs)
    attention = network.blocks[1].mix
    with torch.no_grad():
        scores, probabilities = attention.by_hand(inner, mask)
        check_scores(values["scores"], scores.expand(values["scores"].shape))
        torch.testing.assert_close(values["probabilities"], probabilities, rtol=1e-12, atol=1e-12)
        for part, layer in (("queries", attention.query), ("keys", attention.key), ("values", attention.value)):
            torch.testing.assert_close(values[part], layer(inner), rtol=0, atol=0)


LAYERS = {
    "all": (None, None),
    "mask": (UPPER, None),
    "mask of each head": (UPPER.expand(ROWS * HEADS, -1, -1), None),
    "added mask": (torch.randn(LENGTH, LENGTH, generator=torch.Generator().manual_seed(1)).double(), None),
    "padding": (None, PADDING),
    "both": (UPPER, PADDING),
    "added padding": (None, torch.zeros(ROWS, LENGTH).masked_fill(PADDING, -torch.inf).double()),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("masks", LAYERS)
def test_a_layer_of_torch_is_read_as_it_tells_itself(masks, batch_first, need_weights, mode):
    options = {"batch_first": batch_first, "need_weights": need_weights}
    network = made(Net, attention=Layered, **options).train(mode == "train")
    inputs = (given(), *LAYERS[masks])
    with torch.no_grad():
        plain = network(*inputs)
    values, output = read(network, "blocks.1", *inputs)
    assert torch.equal(output, plain)
    inner = entering(network, "blocks.1.mix", *inputs)
    layer = network.blocks[1].mix.attn
    turned = inner if batch_first else inner.transpose(0, 1)
    with torch.no_grad():
        mask, padding = LAYERS[masks]
        told = layer(turned, turned, turned, padding, True, mask, average_attn_weights=False)[1]
        torch.testing.assert_close(values["probabilities"], told, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(values["scores"].softmax(-1), told, rtol=1e-10, atol=1e-12)
        weights, biases = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
        for part, weight, bias in zip(PARTS[2:], weights, biases, strict=True):
            torch.testing.assert_close(values[part], F.linear(inner, weight, bias), rtol=1e-12, atol=1e-12)
        if masks == "all":
            queries, keys = (heads_of(values[part]) for part in ("queries", "keys"))
            torch.testing.assert_close(values["scores"], queries @ keys.mT / (WIDTH // HEADS) ** 0.5)


@pytest.mark.parametrize("options", [{"bias": False}, {"kdim": WIDTH, "vdim": 5}])
def test_other_projections_of_a_layer_are_its_own(options):
    layer = made(lambda: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options))
    x = torch.randn(ROWS, LENGTH, WIDTH).double()
    value = torch.randn(ROWS, LENGTH, 5).double() if "vdim" in options else x
    network = nn.ModuleDict({"attn": layer})
    network.forward = lambda one: layer(one, one, value)[0]
    values, _ = read(network, "attn", x)
    told = layer(x, x, value, average_attn_weights=False)
    torch.testing.assert_close(values["probabilities"], told[1].detach())
    made_of = (told[1] @ heads_of(values["values"])).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer.out_proj(made_of), told[0])


def test_weights_that_are_merged_for_the_call_alone_are_those_that_are_read():
    """As adapters of peft do."""

    class Merged(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
            self.more = nn.Parameter(torch.randn(3 * width, width))

        def forward(self, x):
            own = self.attn.in_proj_weight
            del self.attn.in_proj_weight
            self.attn.in_proj_weight = own + self.more
            made = self.attn(x, x, x)[0]
            del self.attn.in_proj_weight
            self.attn.register_parameter("in_proj_weight", own)
            return made

    network, x = made(Net, attention=Merged), given()
    values, _ = read(network, "blocks.1", x, grad=True)
    mix = network.blocks[1].mix
    inner = entering(network, "blocks.1.mix", x)
    weight = (mix.attn.in_proj_weight + mix.more)[:WIDTH]
    expected = F.linear(inner, weight, mix.attn.in_proj_bias[:WIDTH])
    torch.testing.assert_close(values["queries"], expected)
    values["queries"].sum().backward()
    assert bool(mix.more.grad[:WIDTH].any())


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_encoder_of_torch_is_read_with_its_fast_path_left_out(mode, norm_first):
    network = made(Encoder, norm_first=norm_first).train(mode == "train")
    inputs = given(), None, PADDING
    with torch.no_grad():
        plain = network(*inputs)
    values, output = read(network, "encoder.layers.1", *inputs)
    torch.testing.assert_close(output, plain, rtol=1e-12, atol=1e-12)
    assert mode == "eval" or torch.equal(output, plain)
    layer = network.encoder.layers[1]
    inner = entering(network, "encoder.layers.1.norm1" if norm_first else "encoder.layers.1", *inputs)
    inner = layer.norm1(inner) if norm_first else inner
    with torch.no_grad():
        told = layer.self_attn(inner, inner, inner, PADDING, average_attn_weights=False)[1]
    torch.testing.assert_close(values["probabilities"], told, rtol=1e-10, atol=1e-12)


# --- gradients --------------------------------------------------------------------------------------------------------

BOTH = {"called": {}, "layer": {"attention": Layered, "batch_first": True}}


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_are_those_by_hand(kind, checkpointed):
    network, x = made(Net, **BOTH[kind]), given()
    by_hand = copy.deepcopy(network)
    if checkpointed:
        block = network.blocks[1]
        block.forward = lambda *inputs: checkpoint(type(block).forward, block, *inputs, use_reentrant=False)
    values, output = read(network, "blocks.1", x, parts=("scores", "values"), grad=True)
    (values["scores"].square().sum() + values["values"].sin().sum() + output.sum()).backward()
    first, second = by_hand.blocks
    inner = second.norm(first(by_hand.embed(x)))
    if kind == "called":
        (scores, _), v = second.mix.by_hand(inner), second.mix.value(inner)
    else:
        layer = second.mix.attn
        q, k, v = F.linear(inner, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)
        scores = heads_of(q) @ heads_of(k).mT / (WIDTH // HEADS) ** 0.5
    (scores.square().sum() + v.sin().sum() + by_hand(x).sum()).backward()
    for (name, one), other in zip(network.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("kind", BOTH)
def test_a_compiled_network_shows_the_same(kind):
    network = made(Net, torch.float32, **BOTH[kind])
    x = given(torch.float32)
    expected, _ = read(network, "blocks.1", x, grad=True)
    values, _ = read(torch.compile(network, backend="aot_eager", fullgraph=True), "blocks.1", x, grad=True)
    for part, value in values.items():
        torch.testing.assert_close(value, expected[part])
        assert value.requires_grad


@pytest.mark.parametrize("kind", BOTH)
def test_autocast_gives_float32_of_what_the_layer_computed(kind):
    network, x = made(Net, torch.float32, **BOTH[kind]), given(torch.float32)
    exact, _ = read(network, "blocks.0", x)
    capture = Capture(network, [place_of("scores", "blocks.0"), place_of("queries", "blocks.0")], "student")
    capture.attach()
    with torch.no_grad(), capture.recording() as call:
        with torch.autocast("cpu", torch.bfloat16):
            network(x)
        capture.check_ran(call)
    capture.detach()
    scores, queries = call.features.values()
    assert (scores.dtype, queries.dtype) == (torch.float32, torch.bfloat16)
    assert not torch.equal(scores, exact["scores"])
    torch.testing.assert_close(scores, exact["scores"], rtol=0.05, atol=0.02)


# --- what is left in the networks -------------------------------------------------------------------------------------


def is_plain(network):
    return not any("forward" in vars(part) or part._forward_pre_hooks for part in network.modules())


@pytest.mark.parametrize("kind", BOTH)
def test_copies_are_watched_by_nobody_and_nothing_is_left(kind):
    network, x = made(Net, **BOTH[kind]), given()
    plain = network(x)
    capture = Capture(network, [place_of("scores", "blocks.1")], "student")
    capture.attach()
    clone = copy.deepcopy(network)
    without_captures(clone)
    assert is_plain(clone)
    again = pickle.loads(pickle.dumps(network))
    for other in (network, clone, again):
        assert torch.equal(other(x), plain)
    for parameter in clone.parameters():
        parameter.data.add_(1.0)
    assert not torch.equal(clone(x), plain)
    assert torch.equal(network(x), plain)
    assert not is_plain(network)
    capture.detach()
    assert is_plain(network)


@pytest.mark.parametrize("kind", BOTH)
def test_two_readers_leave_one_after_another_and_a_forward_of_others_stays(kind):
    network, x = made(Net, **BOTH[kind]), given()
    mix = network.blocks[1].mix
    own = mix.forward
    doubled = vars(mix)["forward"] = lambda *args: 2 * own(*args)
    plain = network(x)
    first, second = (Capture(network, [place_of("scores", "blocks.1")], role) for role in ("student", "teacher"))
    first.attach()
    second.attach()
    with torch.no_grad(), first.recording() as one, second.recording() as two:
        assert torch.equal(network(x), plain)
        first.check_ran(one)
        second.check_ran(two)
    assert torch.equal(*one.features.values(), *two.features.values())
    first.detach()
    second.detach()
    assert vars(mix)["forward"] is doubled


# --- what is found ----------------------------------------------------------------------------------------------------


def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


class ByHelper(nn.Module):
    def forward(self, x):
        return attend(x[:, None], x[:, None], x[:, None]).squeeze(1)


class Imported(nn.Module):
    def forward(self, x):
        return torch.nn.functional.scaled_dot_product_attention(query=x[:, None], key=x[:, None], value=x[:, None])[
            :, 0
        ]


class Inherited(Called):
    pass


@pytest.mark.parametrize("attention", [lambda width: ByHelper(), lambda width: Imported(), Inherited])
def test_own_code_is_found_by_what_it_calls(attention):
    network, x = made(Net, attention=attention), given()
    values, _ = read(network, "blocks.1", x, parts=("scores",))
    inner = entering(network, "blocks.1.mix", x)
    expected = inner[:, None] @ inner[:, None].mT / WIDTH**0.5
    if isinstance(network.blocks[1].mix, Called):
        expected = network.blocks[1].mix.by_hand(inner)[0]
    torch.testing.assert_close(values["scores"], expected.detach())


def test_what_has_no_attention_has_none():
    assert find_attention(nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 1)), "0", "student") is None
    assert [name for name, _ in every_attention_in(nn.TransformerDecoderLayer(4, 2))] == ["self_attn", "multihead_attn"]


# --- what is refused --------------------------------------------------------------------------------------------------


class Refused(Called):
    def __init__(self, width, how=None):
        super().__init__(width)
        self.how = how

    def forward(self, x):
        q, k, v = self.projected(x)
        if self.how == "by hand":
            made_of = (q @ k.mT / 2.0).softmax(-1) @ v
        elif self.how == "twice":
            made_of = F.scaled_dot_product_attention(q, k, v) + F.scaled_dot_product_attention(k, q, v)
        elif self.how == "pooled":
            made_of = F.scaled_dot_product_attention(q, k[:, :, ::2], v[:, :, ::2])
        elif self.how == "no heads":
            made_of = heads_of(F.scaled_dot_product_attention(*(one.transpose(1, 2).flatten(2) for one in (q, k, v))))
        else:
            made_of = F.scaled_dot_product_attention(q, k, v)
            k.add_(1.0)
        return self.out(made_of.transpose(1, 2).flatten(2))


class ToAnother(nn.Module):
    """Attends from the tokens to others, as many or fewer."""

    def __init__(self, width, others, layer=True):
        super().__init__()
        self.others, self.layer = others, layer
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True) if layer else CalledTwo()

    def forward(self, x):
        memory = x.flip(1)[:, : self.others]
        return self.attn(x, memory, memory)[0] if self.layer else self.attn(x, memory)


class CalledTwo(nn.Module):
    def forward(self, x, memory):
        return (
            F.scaled_dot_product_attention(heads_of(x), heads_of(memory), heads_of(memory)).transpose(1, 2).flatten(2)
        )


REFUSED = {
    "by hand": (
        Refused,
        r"student's 'blocks.1' cannot be read: it has not called torch.nn.*fused_attn = True",
    ),
    "twice": (Refused, "2 times in one forward pass.*a module of its own"),
    "pooled": (Refused, "6 queries attend to 3 keys.*HiddenStateLoss"),
    "no heads": (Refused, r"queries \(3, 6, 16\) and keys .*an axis of heads"),
    "changed": (Refused, "changed the queries, keys or values of the student's 'blocks.1' in place"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_a_call_that_cannot_be_read_is_refused_in_words(how):
    make, words = REFUSED[how]
    network, x = made(Net, attention=make, how=how), given()
    plain = network(x)
    with pytest.raises((ValueError, RuntimeError), match=words):
        read(network, "blocks.1", x, parts=("queries",))
    without_captures(network)
    assert torch.equal(network(x), plain)


@pytest.mark.parametrize("layer", [True, False])
@pytest.mark.parametrize("others", [LENGTH, LENGTH - 2])
def test_attention_to_another_sequence_is_refused(others, layer):
    network = made(Net, attention=ToAnother, others=others, layer=layer)
    words = "two" if others == LENGTH else "6 queries attend to 4 keys"
    with pytest.raises(ValueError, match=rf"student's 'blocks.1' cannot be read: .*{words}.*HiddenStateLoss"):
        read(network, "blocks.1", given(), parts=("values",))


def test_queries_keys_and_values_that_were_made_elsewhere_are_read():
    class Core(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(*(heads_of(one) for one in (q, k, v))).transpose(1, 2).flatten(2)

    class Around(Called):
        def __init__(self, width):
            super().__init__(width)
            self.core = Core()

        def forward(self, x):
            return self.out(self.core(self.query(x), self.key(x), self.value(x)))

    network, x = made(Net, attention=Around), given()
    values, _ = read(network, "blocks.1.mix.core", x)
    inner = entering(network, "blocks.1.mix", x)
    scores = network.blocks[1].mix.by_hand(inner)[0].detach()
    torch.testing.assert_close(values["scores"], scores, rtol=1e-12, atol=1e-12)


def test_queries_with_positions_and_values_without_are_of_one_sequence():
    class Placed(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)

        def forward(self, x):
            placed = x + torch.linspace(0, 1, x.shape[1], dtype=x.dtype)[:, None]
            return self.attn(placed, placed, x)[0]

    network, x = made(Net, attention=Placed), given()
    values, _ = read(network, "blocks.0", x)
    mix = network.blocks[0].mix
    inner = entering(network, "blocks.0.mix", x)
    placed = inner + torch.linspace(0, 1, LENGTH).double()[:, None]
    told = mix.attn(placed, placed, inner, average_attn_weights=False)[1]
    torch.testing.assert_close(values["probabilities"], told.detach())
    torch.testing.assert_close(values["values"], F.linear(inner, mix.attn.in_proj_weight[2 * WIDTH :]).detach())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padded_tokens_that_torch_packs_are_refused_with_the_remedy():
    network = made(Encoder, nested=True).eval()
    with pytest.raises(ValueError, match=r"nested tensor.*use_nested_tensor = False"):
        read(network, "encoder.layers.1", given(), None, PADDING)
    without_captures(network)
    network.encoder.use_nested_tensor = False
    read(network, "encoder.layers.1", given(), None, PADDING)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_a_key_that_is_no_token_is_refused(option):
    network = made(Net, attention=Layered, **{option: True})
    with pytest.raises(ValueError, match=r"student's 'blocks.1' adds a key that is no token"):
        find_attention(network.blocks[1], "blocks.1", "student")


def test_a_switch_that_is_off_is_refused_before_any_call():
    network = made(Net)
    network.blocks[1].mix.fused_attn = False
    with pytest.raises(ValueError, match=r"teacher's 'blocks.1' makes its .*fused_attn = True.*set_fused_attn\(True\)"):
        find_attention(network.blocks[1], "blocks.1", "teacher")


def test_several_are_named():
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS)
    with pytest.raises(ValueError, match=r"'d' has 2 attentions.* d.self_attn, d.multihead_attn"):
        find_attention(layer, "d", "student")
    assert find_attention(layer.self_attn, "d.self_attn", "student") is layer.self_attn


def test_weights_that_are_gone_are_refused_with_the_remedy():
    network, x = made(Net, attention=Layered), given()
    capture = Capture(network, [place_of("scores", "blocks.1")], "student")
    capture.attach()
    with torch.no_grad(), capture.recording() as call:
        network(x)
        network.blocks[1].mix.attn.in_proj_weight.untyped_storage().resize_(0)
        with pytest.raises(ValueError, match=r"split over processes.*'ddp'"):
            capture.check_ran(call)


def test_weights_that_are_changed_before_they_are_read_are_refused():
    network, x = made(Net, attention=Layered), given()
    capture = Capture(network, [place_of("scores", "blocks.1")], "student")
    capture.attach()
    with torch.no_grad(), capture.recording() as call:
        network(x)
        network.blocks[1].mix.attn.in_proj_weight.mul_(2.0)
        with pytest.raises(RuntimeError, match="changed the queries, keys or values"):
            capture.check_ran(call)


@pytest.mark.parametrize("added", [-100.0, -1e4, float("-inf")])
def test_what_a_mask_leaves_out_is_the_same_however_much_it_adds(added):
    """Swin adds -100, at which TinyBERT's code leaves scores out: with the score they would be on both sides of it."""
    query, key = (torch.randn(1, 2, 4, 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    earlier = torch.ones(4, 4, dtype=torch.bool).tril()
    masks = (earlier, torch.zeros(4, 4).masked_fill(~earlier, added))
    kept, found = (read_part("scores", Attended(query, key, key, mask, False)) for mask in masks)
    torch.testing.assert_close(found, kept, rtol=0, atol=0)
