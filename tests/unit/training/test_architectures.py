"""The shapes and promises of the small networks."""

import pytest

torch = pytest.importorskip("torch")

from architectures import (  # noqa: E402
    DigitsResNet,
    DigitsViT,
    ImageTower,
    SelfAttention,
    TextTower,
    TwoTowers,
)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("architecture", [DigitsResNet, DigitsViT])
@pytest.mark.parametrize("batch", [1, 3])
def test_classifiers_map_images_to_ten_logits(architecture, batch):
    with torch.inference_mode():
        assert architecture().eval()(torch.randn(batch, 1, 32, 32)).shape == (batch, 10)


def test_classifiers_give_the_same_logits_alone_and_in_a_batch():
    images = torch.randn(3, 1, 32, 32)
    for model in (DigitsResNet().eval(), DigitsViT().eval()):
        with torch.inference_mode():
            # FP32 sums in another order.
            torch.testing.assert_close(model(images)[1:2], model(images[1:2]), atol=1e-4, rtol=1e-4)


def test_attention_equals_torch_scaled_dot_product_attention():
    attention = SelfAttention(width=32, heads=4, tokens=6).eval()
    x = torch.randn(2, 6, 32)
    query, key, value = (
        project(x).reshape(2, 6, 4, 8).transpose(1, 2) for project in (attention.query, attention.key, attention.value)
    )
    mixed = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    with torch.inference_mode():
        expected = attention.project(mixed.transpose(1, 2).reshape(2, 6, 32))
        torch.testing.assert_close(attention(x), expected)


def test_attention_ignores_masked_tokens():
    attention = SelfAttention(width=32, heads=4, tokens=6).eval()
    x, changed = torch.randn(1, 6, 32), torch.randn(1, 6, 32)
    changed[:, :4] = x[:, :4]
    mask = torch.tensor([0.0, 0, 0, 0, -10000, -10000]).reshape(1, 1, 1, 6)
    with torch.inference_mode():
        torch.testing.assert_close(attention(x, mask)[:, :4], attention(changed, mask)[:, :4])
        assert not torch.allclose(attention(x)[:, :4], attention(changed)[:, :4])


def test_the_text_tower_ignores_what_stands_behind_the_padding():
    tower = TextTower(vocabulary=20, tokens=12).eval()
    ids = torch.tensor([[5, 7, 9] + [0] * 9])
    with torch.inference_mode():
        before = tower(ids)
        tower.token_embedding.weight[0] += 3
        tower.position_embedding[:, 3:] += 3
        torch.testing.assert_close(tower(ids), before)


def test_embeddings_of_both_towers_have_length_one():
    with torch.inference_mode():
        image = ImageTower().eval()(torch.randn(3, 1, 32, 32))
        text = TextTower(vocabulary=20, tokens=12).eval()(torch.randint(1, 20, (4, 12)))
    assert (image.shape, text.shape) == ((3, 64), (4, 64))
    torch.testing.assert_close(image.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(4))


def test_two_towers_scale_the_cosine_of_every_pair():
    model = TwoTowers(vocabulary=20, tokens=12).eval()
    images, ids = torch.randn(3, 1, 32, 32), torch.randint(1, 20, (4, 12))
    with torch.inference_mode():
        cosine = model.image_tower(images) @ model.text_tower(ids).T
        torch.testing.assert_close(model(images, ids), model.log_scale.exp() * cosine)
