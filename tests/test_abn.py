"""In-place ABN as plain batch norm: the same numbers as a network that follows the official layout and formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fmseg import abn
from fmseg.segmenters import from_config


class Norm(nn.Module):
    """Activated batch norm in eval mode, by its formula."""

    def __init__(self, channels, active=True):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels) / 4)
        self.register_buffer("running_mean", torch.randn(channels) / 4)
        self.register_buffer("running_var", torch.rand(channels) + 0.5)
        self.active = active

    def forward(self, x):
        mean, var, scale, shift = (
            t.view(1, -1, 1, 1) for t in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        y = (x - mean) / (var + 1e-5).sqrt() * (scale.abs() + 1e-5) + shift
        return torch.where(y > 0, y, 0.01 * y) if self.active else y


class Block(nn.Module):
    def __init__(self, inside, width, stride, dilation):
        super().__init__()
        conv, out = nn.Conv2d, 4 * width
        self.convs = nn.ModuleDict({
            "conv1": conv(inside, width, 1, bias=False), "bn1": Norm(width),
            "conv2": conv(width, width, 3, stride, dilation, dilation, bias=False), "bn2": Norm(width),
            "conv3": conv(width, out, 1, bias=False), "bn3": Norm(out, active=False),
        })  # fmt: skip
        if stride != 1 or inside != out:
            self.proj_conv, self.proj_bn = conv(inside, out, 1, stride, bias=False), Norm(out, active=False)

    def forward(self, x):
        y = x
        for layer in self.convs.values():
            y = layer(y)
        return F.leaky_relu(y + (self.proj_bn(self.proj_conv(x)) if hasattr(self, "proj_conv") else x), 0.01)


class Official(nn.Module):
    """A ResNet-50 in the official names: stride 16, its last stage dilated."""

    def __init__(self, base=8):
        super().__init__()
        self.mod1 = nn.ModuleDict({"conv1": nn.Conv2d(3, base, 7, 2, 3, bias=False), "bn1": Norm(base)})
        inside = base
        for stage, count in enumerate((3, 4, 6, 3)):
            width, blocks = base * 2**stage, {}
            for k in range(count):
                stride = 2 if k == 0 and stage in (1, 2) else 1
                blocks[f"block{k + 1}"] = Block(inside, width, stride, 2 if stage == 3 else 1)
                inside = 4 * width
            self.add_module(f"mod{stage + 2}", nn.ModuleDict(blocks))

    def forward(self, x):
        x = F.max_pool2d(self.mod1["bn1"](self.mod1["conv1"](x)), 3, 2, 1)
        for stage in (self.mod2, self.mod3, self.mod4, self.mod5):
            for block in stage.values():
                x = block(x)
        return x


@pytest.fixture(scope="module")
def official():
    torch.manual_seed(3)
    return Official().eval()


def ours():
    config = abn.model_config(50, base_channels=8, stem_channels=8)
    config["decode_head"] |= {"in_channels": 256, "channels": 8}
    return abn.leaky(from_config("deeplabv3", config, num_classes=5, image_size=64)).eval()


def test_the_mapped_weights_are_the_same_function(official, tmp_path):
    state = {f"module.{k}": v for k, v in official.state_dict().items()}
    state["module.classifier.fc.weight"] = torch.zeros(2, 2)
    torch.save({"state_dict": state}, tmp_path / abn.FILE)
    model, x = ours(), torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model.model.backbone(x)[-1]
        abn.load(model, tmp_path / abn.FILE)
        found, wanted = model.model.backbone(x)[-1], official(x)
    assert found.shape == wanted.shape == (2, 256, 4, 6)
    assert not torch.allclose(before, wanted, rtol=0.1)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-6
    assert any((v < 0).any() for k, v in official.state_dict().items() if k.endswith("bn1.weight"))


def test_no_relu_is_left_and_the_segmenter_learns():
    model = ours().train()
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert sum(isinstance(m, nn.LeakyReLU) for m in model.modules()) == 1 + 16 + 6, "stem, blocks, head"
    labels = torch.randint(0, 5, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    loss = model.loss(torch.zeros(2, 3, 64, 64, dtype=torch.uint8), labels)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_files_of_something_else_are_refused(official, tmp_path, monkeypatch):
    def saved(state):
        torch.save(state, tmp_path / "some.pth")
        return tmp_path / "some.pth"

    state = official.state_dict()
    with pytest.raises(ValueError, match="layer1.0.conv1.weight is missing .1 such"):
        abn.load(ours(), saved({k: v for k, v in state.items() if k != "mod2.block1.convs.conv1.weight"}))
    with pytest.raises(ValueError, match="'layer1.0.conv1.weight' is no weight of WILSON's ResNet"):
        abn.load(ours(), saved({"layer1.0.conv1.weight": torch.zeros(1)}))
    with pytest.raises(ValueError, match="conv1.weight has another shape .1 such"):
        abn.load(ours(), saved(state | {"mod1.conv1.weight": torch.zeros(8, 3, 3, 3)}))
    with pytest.raises(ValueError, match="layer1.3.conv1.weight is left over"):
        abn.load(ours(), saved(state | {"mod2.block4.convs.conv1.weight": torch.zeros(1)}))
    (tmp_path / "some.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no file of weights"):
        abn.load(ours(), tmp_path / "some.pth")
    monkeypatch.setenv("FMSEG_WEIGHTS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="resnet101_iabn_sync.pth.tar. WILSON's ResNet-101 is"):
        abn.weights_file()
    monkeypatch.delenv("FMSEG_WEIGHTS")
    with pytest.raises(FileNotFoundError, match="Set FMSEG_WEIGHTS to a folder with resnet101_iabn_sync"):
        abn.weights_file()
