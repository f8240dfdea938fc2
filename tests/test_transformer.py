"""The encoder-decoder Transformer against torch.nn.Transformer with the same weights, and what is our own in it."""

import pytest
import torch
from torch import nn

from config import TransformerConfig
from models.transformer import Transformer, translation_loss
from modules.kv_cache import KVCache
from modules.transformer_layers import sinusoids
from tests.helpers import assert_close

SHAPE = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}


def make(**changes):
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(**SHAPE | {"hidden_dropout_prob": 0.0} | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms start at 0 and 1: an error would not show
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def copy_attention(theirs, ours, dense):
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
    theirs.out_proj.load_state_dict(dense.dense.state_dict())


def copy_layer(theirs, ours):
    copy_attention(theirs.self_attn, ours.self_attention, ours.attention_dense)
    theirs.norm1.load_state_dict(ours.attention_dense.layer_norm.state_dict())
    last = theirs.norm2
    if hasattr(theirs, "multihead_attn"):
        copy_attention(theirs.multihead_attn, ours.cross_attention, ours.cross_dense)
        theirs.norm2.load_state_dict(ours.cross_dense.layer_norm.state_dict())
        last = theirs.norm3
    last.load_state_dict(ours.out_dense.layer_norm.state_dict())
    theirs.linear1.load_state_dict(ours.interm_dense.state_dict())
    theirs.linear2.load_state_dict(ours.out_dense.dense.state_dict())


def torch_layers(model):
    """Encoder and decoder layers of torch, with the model's weights. (nn.Transformer adds two norms to the paper's.)"""
    config = model.config
    sizes = (config.hidden_size, config.num_attention_heads, config.intermediate_size, 0.0)
    encoder = [nn.TransformerEncoderLayer(*sizes, batch_first=True).eval() for _ in model.encoder_layers]
    decoder = [nn.TransformerDecoderLayer(*sizes, batch_first=True).eval() for _ in model.decoder_layers]
    for theirs, ours in zip([*encoder, *decoder], [*model.encoder_layers, *model.decoder_layers], strict=True):
        copy_layer(theirs, ours)
    return encoder, decoder


def torch_transformer(model, source, source_mask, target, target_mask):
    """Embedded inputs through torch's layers: base through nn.Transformer itself, parallel layer by layer."""
    encoder, decoder = torch_layers(model)
    ignored, future = ~source_mask.bool(), nn.Transformer.generate_square_subsequent_mask(target.size(1))
    more = {"tgt_mask": future, "memory_key_padding_mask": ignored, "tgt_key_padding_mask": ~target_mask.bool()}
    if model.config.wiring == "parallel":
        for one, other in zip(encoder, decoder, strict=True):
            source = one(source, src_key_padding_mask=ignored)
            target = other(target, source, **more)
        return target
    stacks = {
        "custom_encoder": nn.TransformerEncoder(encoder[0], 1),
        "custom_decoder": nn.TransformerDecoder(decoder[0], 1),
    }
    stacks["custom_encoder"].layers, stacks["custom_encoder"].num_layers = nn.ModuleList(encoder), len(encoder)
    stacks["custom_decoder"].layers, stacks["custom_decoder"].num_layers = nn.ModuleList(decoder), len(decoder)
    whole = nn.Transformer(
        model.config.hidden_size, model.config.num_attention_heads, batch_first=True, **stacks
    ).eval()
    for layers, ours in ((whole.encoder.layers, model.encoder_layers), (whole.decoder.layers, model.decoder_layers)):
        for theirs, our in zip(layers, ours, strict=True):
            copy_layer(theirs, our)  # again: nn.Transformer draws its weights anew
    return whole(source, target, src_key_padding_mask=ignored, **more)


def padded(lengths, width, side):
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, slice(0, length) if side == "right" else slice(width - length, width)] = 1
    return mask


@pytest.mark.parametrize("wiring", ["base", "parallel"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_torch(wiring, side):
    model = make(wiring=wiring)
    source_ids, target_ids = torch.randint(0, 50, (3, 9)), torch.randint(0, 50, (3, 7))
    source_mask, target_mask = padded((9, 4, 6), 9, side), padded((5, 7, 3), 7, side)
    with torch.no_grad():
        ours = model(source_ids, source_mask, target_ids, target_mask)
        source = model.embed(model.source_embedding, source_ids, source_mask)
        target = model.embed(model.target_embedding, target_ids, target_mask)
        theirs = torch_transformer(model, source, source_mask, target, target_mask)
    real = target_mask.bool()
    assert_close(ours[real], theirs[real], 1e-5)


def test_gradients_equal_torchs():
    model = make()
    source_ids, target_ids = torch.randint(0, 50, (2, 6)), torch.randint(0, 50, (2, 5))
    mask, target_mask = torch.ones_like(source_ids), torch.ones_like(target_ids)
    weights = torch.randn(2, 5, 32)
    (model(source_ids, mask, target_ids, target_mask) * weights).sum().backward()
    encoder, decoder = torch_layers(model)
    source = model.embed(model.source_embedding, source_ids, mask).detach()
    target = model.embed(model.target_embedding, target_ids, target_mask).detach()
    for layer in encoder:
        source = layer(source)
    for layer in decoder:
        target = layer(target, source, tgt_mask=nn.Transformer.generate_square_subsequent_mask(5))
    (target * weights).sum().backward()
    assert_close(model.encoder_layers[0].interm_dense.weight.grad, encoder[0].linear1.weight.grad, 1e-5)
    ours = model.decoder_layers[1].cross_attention
    wanted = decoder[1].multihead_attn.in_proj_weight.grad
    assert_close(torch.cat([ours.query.weight.grad, ours.key.weight.grad, ours.value.weight.grad]), wanted, 1e-5)


def test_sinusoids_are_the_papers():
    table = sinusoids(torch.arange(20), 8)
    for position in (0, 3, 19):
        for i in range(4):
            angle = torch.tensor(position / 10000 ** (2 * i / 8))
            assert_close(table[position, 2 * i : 2 * i + 2], torch.stack([angle.sin(), angle.cos()]), 1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(side):
    model, ids, target = make(), torch.randint(0, 50, (1, 5)), torch.randint(0, 50, (1, 4))
    alone = model(ids, torch.ones_like(ids), target, torch.ones_like(target))
    wide, wide_target = (torch.zeros(1, n + 3, dtype=torch.long) for n in (5, 4))
    mask, target_mask = padded((5,), 8, side), padded((4,), 7, side)
    wide[mask.bool()], wide_target[target_mask.bool()] = ids[0], target[0]
    together = model(wide, mask, wide_target, target_mask)[target_mask.bool()]
    assert_close(together, alone[0], 1e-5)


@pytest.mark.parametrize("wiring", ["base", "parallel"])
def test_the_cache_changes_nothing(wiring):
    model, ids, target = make(wiring=wiring), torch.randint(0, 50, (2, 5)), torch.randint(0, 50, (2, 6))
    mask = padded((5, 3), 5, "right")
    whole, cache, sources = model(ids, mask, target), KVCache(3, 6), model.encode(ids, mask)
    steps = [model.decode(target[:, i : i + 1], sources, mask, cache=cache) for i in range(6)]
    assert_close(torch.cat(steps, dim=1), whole, 1e-5)


def test_parallel_sees_each_encoder_layer_and_base_the_last_alone():
    for wiring, distinct in (("base", 1), ("parallel", 3)):
        model, seen = make(wiring=wiring), []
        for layer in model.decoder_layers:
            layer.cross_attention.key.register_forward_hook(lambda *call, seen=seen: seen.append(call[1][0]))
        model.encode(torch.randint(0, 50, (1, 4)), torch.ones(1, 4))
        assert len({id(x) for x in seen}) == distinct


def test_weights_start_as_large_as_torchs():
    """nn.MultiheadAttention and nn.Linear under xavier_uniform_, as nn.Transformer has them."""
    model = Transformer(TransformerConfig(**SHAPE | {"hidden_size": 128, "intermediate_size": 256}))
    theirs = nn.Transformer(128, 4, 1, 1, 256, batch_first=True).decoder.layers[0]
    layer = model.decoder_layers[0]
    ours = [layer.cross_attention.query, layer.cross_dense.dense, layer.interm_dense, layer.out_dense.dense]
    for linear, wanted in zip(
        ours,
        (
            theirs.multihead_attn.in_proj_weight,
            theirs.multihead_attn.out_proj.weight,
            theirs.linear1.weight,
            theirs.linear2.weight,
        ),
        strict=True,
    ):
        assert linear.weight.std().item() == pytest.approx(wanted.std().item(), rel=0.03)
        assert linear.bias.eq(0).all()


@pytest.mark.parametrize("tied, number", [("all", 1), ("target", 2), ("none", 3)])
def test_tied_embeddings(tied, number):
    names = [name for name, _ in make(tied_embeddings=tied).named_parameters() if "embedding" in name]
    assert len(names) == number


def test_base_and_parallel_have_the_same_parameters():
    assert [p.shape for p in make(wiring="base").parameters()] == [
        p.shape for p in make(wiring="parallel").parameters()
    ]


def test_layer_teacher_forcing_feeds_the_embedding_while_training_only():
    ids, target = torch.randint(0, 50, (4, 5)), torch.randint(0, 50, (4, 6))
    masks = torch.ones_like(ids), torch.ones_like(target)
    never, always = make(), make(layer_teacher_forcing=1.0)
    assert torch.equal(always(ids, masks[0], target, masks[1]), never(ids, masks[0], target, masks[1]))  # eval
    inputs = []
    for layer in always.decoder_layers:
        layer.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments[0]))
    always.train()(ids, masks[0], target, masks[1])
    assert all(torch.equal(x, inputs[0]) for x in inputs)
    half, shares = make(layer_teacher_forcing=0.5).train(), []
    embedded = half.embed(half.target_embedding, target, masks[1])
    for _ in range(400):
        mixed = half._forced(torch.zeros_like(embedded), embedded)
        shares.append((mixed == embedded).all(dim=-1).all(dim=-1).float().mean().item())
    assert abs(sum(shares) / len(shares) - 0.5) < 0.05 and {0.25, 0.5, 0.75} <= set(shares)  # a sentence by itself


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_cross_entropy_of_real_tokens(smoothing):
    model = make(tied_embeddings="none")
    batch = {"source_ids": torch.randint(0, 50, (2, 5)), "source_mask": padded((5, 2), 5, "right")}
    batch |= {"target_ids": torch.randint(0, 50, (2, 6)), "target_mask": padded((4, 6), 6, "right")}
    loss, count = translation_loss(model, batch, smoothing)
    expected = 0.0
    for row, length in enumerate((4, 6)):
        source = batch["source_ids"][row : row + 1, : (5, 2)[row]]
        target = batch["target_ids"][row : row + 1, :length]
        hidden = model(source, torch.ones_like(source), target[:, :-1])
        logits = hidden[0] @ model.output_embedding.weight.t()
        expected += nn.functional.cross_entropy(logits, target[0, 1:], reduction="sum", label_smoothing=smoothing)
    assert count == 8
    assert_close(loss, expected, 1e-5)
