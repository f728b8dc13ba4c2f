"""What is found within networks: adapters, containers, classifiers that run at each step."""

import pytest
import torch
from torch import nn

from tests.probe.common import X, Y, check, read


class Net(nn.Module):
    """A body and a classifier."""

    def __init__(self, head, body=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12)) if body is None else body
        self.head = head

    def forward(self, x):
        return self.head(self.body(x))


class Adapter(nn.Module):
    """A linear layer and parameters that change nothing at the start, in a dict that does not run."""

    def __init__(self, kind):
        super().__init__()
        self.base, self.kind = nn.Linear(12, 4), kind
        first = torch.ones if kind == "scales" else torch.zeros
        self.more = nn.ParameterDict({"default": nn.Parameter(first((4, 12) if kind == "product" else (4,)))})

    def forward(self, h):
        if self.kind == "product":
            return self.base(h) + h @ (self.more["default"] * 2).T
        return self.base(h) * self.more["default"] if self.kind == "scales" else self.base(h) + self.more["default"]


@pytest.mark.parametrize("kind", ["product", "scales"])
def test_an_adapter_whose_parameters_do_not_run(kind):
    model = Net(Adapter(kind))
    head = check(model)
    assert (head.name, head.affine) == ("head", True)
    nn.init.normal_(model.head.more["default"])
    batch, (weight, bias) = read(model, head, X, Y)
    torch.testing.assert_close(batch.features["head"] @ weight.T + bias, batch.outputs)


class Scaled(nn.Module):
    """A linear layer whose logits are rescaled."""

    def __init__(self):
        super().__init__()
        self.fc, self.scale = nn.Linear(12, 4), nn.Parameter(torch.tensor(2.66))

    def forward(self, h):
        return self.fc(h) * self.scale.exp()


class Kept(nn.Module):
    """A layer that is trained beside the original one."""

    def __init__(self):
        super().__init__()
        self.original, self.trained = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, h):
        return self.trained(h)


@pytest.mark.parametrize(("head", "name"), [(Scaled(), "head.fc"), (Kept(), "head.trained")])
def test_parameters_beside_the_classifier_that_add_nothing(head, name):
    model = Net(head)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert check(model).name == name
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Steps(nn.Module):
    """A classifier that runs at each of some steps, whose outputs are summed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(8, 12), nn.Linear(12, 4)

    def forward(self, x):
        return sum(self.head(self.body(x / step).relu()) for step in range(1, 4))


def test_a_network_is_no_classifier():
    model = nn.ModuleDict({"net": Steps()})
    with pytest.raises(ValueError, match=r"'net' gives as a whole.* \('net.body', 'net.head' ran several times\)"):
        check(model, forward=lambda x: model["net"](x))
    head = check(model, head="net", forward=lambda x: model["net"](x))
    assert (head.name, head.num_features, head.affine) == ("net", 8, False)


class Experts(nn.Module):
    """Linear classifiers weighed by a gate: no affine map, and no network."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(12, 2)
        self.experts = nn.ModuleList(nn.Linear(12, 4) for _ in range(2))

    def forward(self, h):
        return (torch.stack([expert(h) for expert in self.experts], 2) * self.gate(h).softmax(1)[:, None]).sum(2)


class Squeezed(nn.Module):
    """A convolution whose logits are cut off before they are averaged."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.conv(x).relu().mean((2, 3))


def test_layers_side_by_side_are_a_classifier():
    head = check(Net(Experts()))
    assert (head.name, head.num_features, head.affine) == ("head", 12, False)
    images = torch.randn(10, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    head = check(Net(Squeezed(), nn.Conv2d(3, 8, 3)), images)
    assert (head.name, head.num_features, head.affine) == ("head", 8 * 16, False)


class Biased(nn.Module):
    """Keeps layers whose weights it uses itself, and a table of as many columns as there are classes."""

    def __init__(self):
        super().__init__()
        self.inner, self.table = nn.Linear(12, 12), nn.Parameter(torch.randn(9, 4))

    def forward(self, h):
        return nn.functional.linear(h, self.inner.weight) + self.table.sum()


def test_a_matrix_that_the_forward_pass_uses_is_no_hidden_classifier():
    model = Net(nn.Linear(12, 4), nn.Sequential(nn.Linear(8, 12), Biased()))
    before = model.body[1].table.clone()
    assert check(model).name == "head"
    assert torch.equal(model.body[1].table, before)
    model.body[1].forward = lambda h: nn.functional.linear(h, model.body[1].inner.weight)
    with pytest.raises(ValueError, match=r"'body.1.table', which the forward pass did not use, takes 4 features"):
        check(model)


def test_as_many_outputs_as_samples_make_no_candidate():
    class Matrix(Net):
        def forward(self, x):
            return self.body(x) @ self.matrix.T

    model = Matrix(None, nn.Linear(8, 10))
    model.matrix = nn.Parameter(torch.randn(4, 10))
    assert len(X) == model.body.out_features
    with pytest.raises(ValueError, match=r"no fully connected module gives it with 4 weight rows"):
        check(model)


def test_a_classifier_whose_logits_are_changed_afterwards_is_named_in_the_message():
    class Smoothed(Net):
        def forward(self, x):
            logits = super().forward(x)
            return (logits + logits.roll(1, 0)) / 2

    model = Smoothed(nn.Linear(12, 4))
    with pytest.raises(ValueError, match=r"'head' gives as many outputs as the model.*Pass head='head' if"):
        check(model)
    assert check(model, head="head").name == "head"
