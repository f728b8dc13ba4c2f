"""The contract that a classifier is held to."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nc_callbacks import probe
from tests.probe.common import X, Y, check, read


class Embedding(nn.Module):
    """An embedding of 12 numbers and a classifier of 4; `returned` makes the output of both and the input."""

    def __init__(self, returned, head=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12))
        self.head = nn.Linear(12, 4) if head is None else head
        self.returned = returned

    def forward(self, x):
        h = self.embed(x)
        return self.returned(self, h)


class LowRank(nn.Module):
    """Adds nothing at the start, as adapters do."""

    def __init__(self, p, k):
        super().__init__()
        self.base, self.down, self.up = nn.Linear(p, k), nn.Linear(p, 2), nn.Linear(2, k, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Cosine(nn.Module):
    def __init__(self, p, k):
        super().__init__()
        self.prototypes, self.scale = nn.Parameter(torch.randn(k, p)), nn.Parameter(torch.tensor(16.0))

    def forward(self, x):
        return self.scale * F.linear(F.normalize(x), F.normalize(self.prototypes))


@pytest.mark.parametrize(
    "returned",
    [
        lambda m, h: (h, m.head(h)),
        lambda m, h: {"features": h, "out": m.head(h) / 3},
        lambda m, h: [h, m.head(h).softmax(1)],
        lambda m, h: ({"embedding": h}, 64 * m.head(h)),
    ],
)
def test_features_beside_the_logits_are_no_logits(returned):
    model = Embedding(returned)
    assert check(model).name == "head"
    with pytest.raises(ValueError, match=r"'embed.2' gives features: 'head' runs on them.*Pass head='head'"):
        check(model, head="embed.2")
    assert check(nn.Sequential(model)).name == "0.head"


def test_features_in_eval_mode():
    with pytest.raises(ValueError, match=r"'head.weight', which the forward pass did not use.*Pass forward_fn="):
        check(Embedding(lambda m, h: h))
    with pytest.raises(ValueError, match=r"on which 'head' runs: these are features.*Pass forward_fn="):
        check(Embedding(lambda m, h: h + 0 * m.head(h).sum()))
    model = Embedding(lambda m, h: h)
    assert check(model, forward=lambda x: model.head(model(x))).name == "head"
    assert check(model, head="embed.2").num_classes == 12


@pytest.mark.parametrize("matrix", [torch.randn(4, 12), torch.randn(12, 4)])
@pytest.mark.parametrize("holder", ["model", "loss"])
def test_the_loss_holds_the_classifier(matrix, holder):
    model = Embedding(lambda m, h: h)
    model.head = nn.Module()
    (model if holder == "model" else model.head).W = nn.Parameter(matrix)
    with pytest.raises(ValueError, match=r"W', which the forward pass did not use, takes 12 features"):
        check(model)


def test_an_auxiliary_classifier_that_does_not_run_is_none():
    model = Embedding(lambda m, h: m.head(h))
    model.auxiliary = nn.Linear(12, 4)
    model.register_buffer("centres", torch.zeros(4, 12))
    assert check(model).name == "head"


def test_a_matrix_in_a_buffer_is_no_module():
    model = Embedding(lambda m, h: h @ m.W.T)
    model.register_buffer("W", torch.randn(4, 12))
    with pytest.raises(ValueError, match=r"No classifier found.*Modules that ran: 'embed.0', 'embed.2'.*in a buffer"):
        check(model)
    with pytest.raises(ValueError, match=r"'embed\.2' is not in what the model returns"):
        check(model, head="embed.2")


def test_targets_tell_apart_what_stands_side_by_side():
    model = Embedding(lambda m, h: (m.projection(h), m.head(h)))
    model.projection = nn.Linear(12, 7)
    assert check(model).name == "head"
    with pytest.raises(ValueError, match="can be the classifier: 'projection', 'head'"):
        check(model, y=Y.clamp_max(2))
    assert check(model, y=Y.clamp_max(2), head="head").name == "head"


def test_rows_that_the_model_does_not_return():
    model = Embedding(lambda m, h: m.head(h).argmax(1))
    assert check(model, head="head").num_classes == 4
    with pytest.raises(ValueError, match="returns no logits"):
        check(model)


def test_cosine_classifier_has_no_weight():
    model = Embedding(lambda m, h: m.head(h), Cosine(12, 4))
    head = check(model)
    assert (head.name, head.affine, head.num_features) == ("head", False, 12)
    batch, weight = read(model, head, X, Y)
    assert weight == (None, None)
    assert batch.features["head"].shape == (10, 12)


def test_an_adapter_belongs_to_the_classifier():
    model = Embedding(lambda m, h: m.head(h), LowRank(12, 4))
    head = check(model)
    assert head.name == "head"
    nn.init.ones_(model.head.up.weight)
    batch, (weight, bias) = read(model, head, X, Y)
    torch.testing.assert_close(batch.features["head"] @ weight.T + bias, batch.outputs)


@pytest.mark.parametrize("wrap", [lambda head: nn.Sequential(nn.Dropout(), head), nn.Sequential])
def test_a_container_is_not_the_classifier(wrap):
    assert check(Embedding(lambda m, h: m.head(h), wrap(nn.Linear(12, 4)))).name in ("head.0", "head.1")


def test_aliases():
    model = Embedding(lambda m, h: m.classifier(h))
    model.classifier = model.head
    assert check(model).name == "head"
    assert check(model, head="classifier", layers=["classifier"]).name == "classifier"
    assert list(probe.candidates(model)) == ["embed.0", "embed.2", "head"]


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (nn.Bilinear(12, 12, 4), r"head 'head' \(Bilinear\) is no map from one vector"),
        (nn.Embedding(4, 12), r"head 'head' \(Embedding\) is no map"),
        (nn.Dropout(), r"head 'head' \(Dropout\) has no weight matrix"),
        (nn.Linear(12, 1), r"head 'head' has 1 output"),
    ],
)
def test_modules_that_can_be_no_classifier(module, match):
    with pytest.raises(ValueError, match=match):
        check(Embedding(lambda m, h: h, module), head="head")


def test_one_logit():
    with pytest.raises(ValueError, match="head 'head' has 1 output; neural collapse compares at least 2 classes"):
        check(Embedding(lambda m, h: m.head(h).squeeze(1), nn.Linear(12, 1)), y=(Y > 1).float())


@pytest.mark.parametrize("head", [None, "head"])
def test_lazy_layers_are_tried_and_lazy_again(head):
    model = Embedding(lambda m, h: m.head(h), nn.LazyLinear(4))
    found = check(model, head=head)
    assert (found.name, found.num_features, found.num_classes, found.affine) == ("head", 12, 4, True)
    assert model.head.has_uninitialized_params()
    assert type(model.head) is nn.LazyLinear


def test_a_zero_classifier_beside_another():
    model = Embedding(lambda m, h: m.head(h) + 0 * m.other(h))
    model.other = nn.Linear(12, 4)
    for module in (model.head, model.other):
        nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
    assert check(model).name == "head"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scripted_parts():
    model = Embedding(lambda m, h: m.head(h))
    model.embed = torch.jit.script(model.embed)
    assert check(model).name == "head"
    model.head = torch.jit.script(model.head)
    batch, (weight, bias) = read(model, check(model), X, Y)
    torch.testing.assert_close(batch.features["head"] @ weight.T + bias, batch.outputs)
    with pytest.raises(ValueError, match="inside the TorchScript module 'embed'"):
        check(model, head="embed.2")


def test_a_single_sample_that_the_model_squeezes():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(0), nn.Linear(6, 4))
    x, y = torch.randn(1, 3, 5, 5), torch.tensor([2])
    for head in (check(model, x, y), check(nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), torch.randn(4, 6), Y[:4])):
        name = "3"
        batch, _ = read(model, probe.Head(name, head.shape), x, y, ["2"])
        assert (batch.features[name].shape, batch.outputs.shape) == ((1, 6), (1, 4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype):
    model = Embedding(lambda m, h: {"logits": m.head(h), "h": h}, LowRank(12, 4))

    def forward(x):
        with torch.autocast("cpu", dtype):
            return model(x)

    head = check(model, forward=forward)
    assert (head.name, head.affine) == ("head", True)
    assert check(Embedding(lambda m, h: m.head(h), Cosine(12, 4)).to(dtype), X.to(dtype)).affine is False


def test_the_model_is_run_with_keywords():
    class Model(Embedding):
        def forward(self, inputs_embeds, attention_mask):
            return self.head(self.embed(inputs_embeds) * attention_mask)

    inputs = {"inputs_embeds": X, "attention_mask": torch.ones(10, 1)}
    model = Model(None)
    assert check(model, inputs, forward=partial(probe.call_model, model)).name == "head"


def test_one_that_stands_beside_the_logits_can_be_named():
    model = Embedding(lambda m, h: {"other": m.other(h), "logits": m.head(h)})
    model.other = nn.Linear(12, 4)
    assert (check(model).name, check(model, head="other").name) == ("head", "other")


def test_one_of_a_sum_can_be_named():
    model = Embedding(lambda m, h: m.head(h) + m.other(h))
    model.other = nn.Linear(12, 4)
    with pytest.raises(ValueError, match=r"Several modules can be the classifier: 'head', 'other'\. Pass head="):
        check(model)
    assert check(model, head="other").name == "other"
    model.unused = nn.Linear(12, 4)
    model.returned = lambda m, h: m.head(h) + m.other(h) + 0 * m.unused(h)
    with pytest.raises(ValueError, match="The output of head 'unused' is not in what the model returns"):
        check(model, head="unused")
