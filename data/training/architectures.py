"""The PyTorch architectures of the small trained models: residual CNN, vision transformer, image and text towers.

Only the shapes of the networks: knows nothing of data, training, weights on disk or export. Reshapes name every axis
but the batch, so that an exported graph has a dynamic batch without Shape/Gather/Concat nodes.
"""

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a skip connection (He et al., 2015, arXiv:1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + self.downsample(x))


class DigitsResNet(nn.Module):
    """ResNet-20 for one-channel 32x32 images.

    Three stages of three residual blocks: (16, 32, 32), (32, 16, 16) and (64, 8, 8), then the spatial mean and a
    linear classifier.
    """

    def __init__(self, classes: int = 10, width: int = 16, blocks_per_stage: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = _residual_stage(width, width, blocks_per_stage, stride=1)
        self.layer2 = _residual_stage(width, 2 * width, blocks_per_stage, stride=2)
        self.layer3 = _residual_stage(2 * width, 4 * width, blocks_per_stage, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4 * width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (N, 1, 32, 32) to logits (N, classes)."""
        x = self.relu(self.bn1(self.conv1(image)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.flatten(self.pool(x)))


def _residual_stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = ResidualBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


class SelfAttention(nn.Module):
    """Multi-head self-attention, written out so that its MatMul and Softmax are visible after export."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads, self.head_width, self.tokens = heads, width // heads, tokens
        self.scale = self.head_width**-0.5
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.softmax = nn.Softmax(dim=-1)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix tokens.

        Args:
            x: (N, tokens, width).
            mask: (N, 1, 1, tokens) added to the scores, 0 to keep a token and very negative to hide it.

        Returns:
            (N, tokens, width).
        """
        query = self._split_heads(self.query(x)) * self.scale
        scores = query @ self._split_heads(self.key(x)).transpose(-2, -1)
        if mask is not None:
            scores = scores + mask
        mixed = self.softmax(scores) @ self._split_heads(self.value(x))
        return self.project(mixed.transpose(1, 2).reshape(-1, self.tokens, self.heads * self.head_width))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(N, tokens, width) to (N, heads, tokens, head_width)."""
        return x.reshape(-1, self.tokens, self.heads, self.head_width).transpose(1, 2)


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP with GELU, each added to its input."""

    def __init__(self, width: int, heads: int, tokens: int, mlp_ratio: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, tokens)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_ratio * width), nn.GELU(), nn.Linear(mlp_ratio * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (N, tokens, width) to the same shape; `mask` as in SelfAttention."""
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class DigitsViT(nn.Module):
    """Vision transformer for one-channel 32x32 images (Dosovitskiy et al., 2020, arXiv:2010.11929).

    64 patches of 4x4 become tokens of `width`; the mean token is classified (no class token, which would need an
    Expand to the batch size in the exported graph).
    """

    def __init__(self, classes: int = 10, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        patch, image_size = 4, 32
        self.tokens, self.width = (image_size // patch) ** 2, width
        self.patch_embedding = nn.Conv2d(1, width, patch, stride=patch)
        self.position_embedding = nn.Parameter(0.02 * torch.randn(1, self.tokens, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, self.tokens) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (N, 1, 32, 32) to logits (N, classes)."""
        x = self.patch_embedding(image).reshape(-1, self.width, self.tokens).transpose(1, 2)
        x = x + self.position_embedding
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class ImageTower(nn.Module):
    """A small CNN that embeds a digit image on the unit sphere."""

    def __init__(self, embedding: int = 64, width: int = 24) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            ResidualBlock(1, width, stride=2),
            ResidualBlock(width, 2 * width, stride=2),
            ResidualBlock(2 * width, 2 * width, stride=2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.project = nn.Linear(2 * width, embedding)

    def forward(self, image: Tensor) -> Tensor:
        """Map images (N, 1, 32, 32) to unit vectors (N, embedding)."""
        return _normalise(self.project(self.flatten(self.pool(self.stages(image)))))


class TextTower(nn.Module):
    """A small transformer encoder that embeds a caption on the unit sphere; token id 0 is padding."""

    def __init__(
        self, vocabulary: int, tokens: int, embedding: int = 64, width: int = 48, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.position_embedding = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, tokens) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, embedding)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Map token ids (N, tokens) int64, padded with 0, to unit vectors (N, embedding)."""
        present = (token_ids > 0).to(self.position_embedding.dtype)
        # -10000 rather than the smallest float: it stays finite in FP16.
        mask = ((present - 1) * 10000).unsqueeze(1).unsqueeze(1)
        x = self.token_embedding(token_ids) + self.position_embedding
        for block in self.blocks:
            x = block(x, mask)
        weights = present.unsqueeze(-1)
        mean = (self.norm(x) * weights).sum(dim=1) / weights.sum(dim=1)
        return _normalise(self.project(mean))


class TwoTowers(nn.Module):
    """Image tower, text tower and the learned temperature that compares them (CLIP, arXiv:2103.00020)."""

    def __init__(self, vocabulary: int, tokens: int, embedding: int = 64) -> None:
        super().__init__()
        self.image_tower = ImageTower(embedding)
        self.text_tower = TextTower(vocabulary, tokens, embedding)
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, image: Tensor, token_ids: Tensor) -> Tensor:
        """Compare every image with every caption.

        Args:
            image: (N, 1, 32, 32) float32.
            token_ids: (M, tokens) int64, padded with 0.

        Returns:
            Scaled cosine similarities (N, M).
        """
        return self.log_scale.exp() * self.image_tower(image) @ self.text_tower(token_ids).T


def _normalise(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)
