from __future__ import annotations

import math

import pytest
import torch
from tiny import config_of
from torch import nn

from arec.models import Encoder
from arec.models.dropout import Dropout
from arec.objectives import build_objective

LENGTHS = torch.tensor([7, 3, 1, 5])


def make(**settings) -> Encoder:
    torch.manual_seed(0)
    return Encoder(20, max_length=10, hidden_size=16, feed_forward=32, **settings).eval()


def inputs() -> torch.Tensor:
    items = torch.randint(1, 21, (4, 7), generator=torch.Generator().manual_seed(1))
    return items * (torch.arange(7) < LENGTHS[:, None])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("layers", [1, 2])
def test_last_only_is_the_last_position(causal: bool, norm_first: bool, layers: int) -> None:
    encoder = make(causal=causal, norm_first=norm_first, layers=layers)
    every = encoder(inputs(), LENGTHS)
    last = encoder(inputs(), LENGTHS, last_only=True)
    torch.testing.assert_close(last, every[torch.arange(4), LENGTHS - 1])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_a_block_is_the_transformer_layer_of_pytorch(causal: bool, norm_first: bool) -> None:
    block = make(norm_first=norm_first).blocks[0]
    theirs = nn.TransformerEncoderLayer(
        16, 2, 32, dropout=0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    query, key_value = block.query, block.key_value
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
        theirs.self_attn.in_proj_weight.copy_(torch.cat([query.weight, key_value.weight]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([query.bias, key_value.bias]))
    for its, own in [
        (theirs.self_attn.out_proj, block.output), (theirs.norm1, block.attention_norm),
        (theirs.linear1, block.feed_forward[0]), (theirs.linear2, block.feed_forward[2]),
        (theirs.norm2, block.feed_forward_norm),
    ]:
        its.load_state_dict(own.state_dict())
    x = torch.randn(4, 7, 16)
    real = torch.arange(7) < LENGTHS[:, None]
    if causal:
        ours = block(x, None)
        expected = theirs(x, src_mask=~torch.ones(7, 7, dtype=torch.bool).tril())
    else:
        ours = block(x, real[:, None, None, :])
        expected = theirs(x, src_key_padding_mask=~real)
    torch.testing.assert_close(ours[real], expected[real])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_an_encoder_is_its_blocks_one_after_the_other(causal: bool, norm_first: bool) -> None:
    encoder = make(causal=causal, norm_first=norm_first, layers=3)
    x = inputs()
    state = 4 * encoder.items(x) + encoder.positions(torch.arange(7))
    real = torch.arange(7) < LENGTHS[:, None]
    if not norm_first:
        state = encoder.norm(state)
    for block in encoder.blocks:
        state = block(state, None if causal else real[:, None, None, :])
    if norm_first:
        state = encoder.norm(state)
    torch.testing.assert_close(encoder(x, LENGTHS)[real], state[real])


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal: bool) -> None:
    encoder = make(causal=causal)
    x = inputs()
    alone = encoder(x[1:2, :3], LENGTHS[1:2])
    torch.testing.assert_close(encoder(x, LENGTHS)[1:2, :3], alone)


def test_causal_positions_do_not_see_the_future() -> None:
    encoder = make()
    x = inputs()
    changed = x.clone()
    changed[0, 6] = x[0, 6] % 20 + 1
    before, after = encoder(x, LENGTHS), encoder(changed, LENGTHS)
    torch.testing.assert_close(before[0, :6], after[0, :6])
    assert not torch.allclose(before[0, 6], after[0, 6])


def test_bidirectional_positions_see_the_future() -> None:
    encoder = make(causal=False)
    x = inputs()
    changed = x.clone()
    changed[0, 6] = x[0, 6] % 20 + 1
    assert not torch.allclose(encoder(x, LENGTHS)[0, 0], encoder(changed, LENGTHS)[0, 0])


def test_padding_has_no_embedding_and_gets_no_gradient() -> None:
    encoder = make().train()
    encoder(inputs(), LENGTHS).sum().backward()
    assert not encoder.items.weight[0].any()
    assert not encoder.items.weight.grad[0].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_autocast_returns_float32_near_the_exact_states(causal: bool, norm_first: bool) -> None:
    encoder = make(causal=causal, norm_first=norm_first)
    exact = encoder(inputs(), LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = encoder(inputs(), LENGTHS)
    assert mixed.dtype is torch.float32
    real = torch.arange(7) < LENGTHS[:, None]
    difference = (mixed - exact)[real]
    assert 0 < difference.norm() < 0.02 * exact[real].norm()


@pytest.mark.parametrize("initialisation", ["xavier", "normal"])
def test_initialisation_of_linear_layers_and_embeddings(initialisation: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(
        500, max_length=200, hidden_size=64, feed_forward=256, initialisation=initialisation
    )
    for module in encoder.modules():
        if isinstance(module, torch.nn.Linear):
            expected = (2 / (module.in_features + module.out_features)) ** 0.5
            expected = expected if initialisation == "xavier" else 0.02
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05)
            assert not module.bias.any()
        if isinstance(module, torch.nn.Embedding):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not encoder.items.weight[0].any(), "padding"


@pytest.mark.parametrize("scale_embeddings", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_what_enters_the_layers(norm_first: bool, scale_embeddings: bool) -> None:
    encoder = make(norm_first=norm_first, scale_embeddings=scale_embeddings)
    seen = []
    encoder.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    encoder(inputs(), LENGTHS)

    shortest_first = inputs()[LENGTHS.argsort()]
    items, positions = encoder.items(shortest_first), encoder.positions.weight[:7]
    expected = items * (math.sqrt(items.shape[-1]) if scale_embeddings else 1) + positions
    torch.testing.assert_close(seen[0], expected if norm_first else encoder.norm(expected))


@pytest.mark.parametrize("last_only", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("tokens", [1, 40, 4096])
def test_rows_of_any_length_come_back_in_their_order(
    causal: bool, last_only: bool, tokens: int, monkeypatch
) -> None:
    for name, value in (("TOKENS", tokens), ("ROWS", 4), ("WIDTHS", 4)):
        monkeypatch.setattr(f"arec.models.encoder._CPU_{name}", value)
    encoder = make(causal=causal)
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(1, 11, (50,), generator=generator)
    real = torch.arange(10) < lengths[:, None]
    items = torch.randint(1, 21, (50, 10), generator=generator) * real
    together = encoder(items, lengths, last_only=last_only)
    for row, length in enumerate(lengths.tolist()):
        alone = encoder(items[row, None, :length], lengths[row, None], last_only=last_only)[0]
        mine = together[row] if last_only else together[row, :length]
        torch.testing.assert_close(mine, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("last_only", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_that_drops_almost_nothing_is_attention(causal: bool, last_only: bool) -> None:
    plain = make(causal=causal, dropout=0.0)
    dropping = make(causal=causal, dropout=0.0, attention_dropout=1e-9).train()
    expected, states = (
        encoder(inputs(), LENGTHS, last_only=last_only) for encoder in (plain, dropping)
    )
    real = slice(None) if last_only else torch.arange(7) < LENGTHS[:, None]
    assert (states - expected)[real].norm() < 2e-6 * expected[real].norm()


def test_attention_drops_weights_while_training() -> None:
    encoder = make(dropout=0.0, attention_dropout=0.5)
    still = encoder(inputs(), LENGTHS)
    assert torch.equal(still, encoder(inputs(), LENGTHS))
    encoder.train()
    drawn = encoder(inputs(), LENGTHS)
    assert not torch.allclose(drawn[0], encoder(inputs(), LENGTHS)[0])


def test_dropout_after_the_embeddings_and_after_both_parts_of_a_block() -> None:
    encoder = build_objective(config_of(method="sasrec", dropout=0.5), 20).encoder.train()
    dropped = []
    for module in encoder.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(lambda module, inputs, output: dropped.append(module))
    encoder(torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    first, second = (block.dropout for block in encoder.blocks)
    assert dropped == [encoder.dropout, first, first, second, second]


def test_the_whole_table_is_no_part_of_itself() -> None:
    """Whose gradient would be one more table."""
    encoder = Encoder(5, hidden_size=4)
    assert encoder.item_table is encoder.items.weight
    masked = Encoder(5, hidden_size=4, with_mask=True)
    assert torch.equal(masked.item_table, masked.items.weight[:6])
