"""Ready-made batch functions, against what transformers' models do."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from nc_callbacks import batches, probe

IDS = torch.randint(1, 50, (6, 9), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([9, 4, 7, 1, 9, 5])
RIGHT = (torch.arange(9) < LENGTHS[:, None]).long()
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])
SMALL = {"vocab_size": 50, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 16}


def observed(model, batch, batch_fn=probe.default_batch_fn, head=None):
    model.eval()
    inputs, targets = batch_fn(batch)
    with probe.undisturbed(model):
        found = probe.check_head(model, partial(probe.call_model, model), inputs, targets, head)
        with probe.Tap(model, found) as tap:
            probe.call_model(model, inputs)
            return found, tap.read(targets), tap.weight_and_bias()


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def test_causal_lm(transformers):
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SMALL))
    batch = {"input_ids": IDS, "attention_mask": RIGHT, "labels": IDS.masked_fill(RIGHT == 0, -100)}
    head, found, _ = observed(model, batch, batches.causal_lm)
    assert head.name == "lm_head"
    loss = F.cross_entropy(found.outputs, found.targets, ignore_index=-100)
    with torch.no_grad():
        torch.testing.assert_close(loss, model(**batch).loss)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("by", ["attention_mask", "pad_token_id"])
def test_last_token(transformers, left, by):
    torch.manual_seed(0)
    mask = RIGHT.flip(1) if left else RIGHT
    model = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**SMALL, num_labels=3, pad_token_id=0))
    batch = {"input_ids": IDS * mask, "attention_mask": mask, "labels": LABELS}
    batch_fn = batches.last_token if by == "attention_mask" else partial(batches.last_token, pad_token_id=0)
    head, found, (weight, _) = observed(model, batch, batch_fn)
    counted = found.targets != -100
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=mask).logits
    assert head.name == "score"
    torch.testing.assert_close(found.outputs[counted], logits)
    torch.testing.assert_close(found.features["score"][counted] @ weight.T, logits)
    assert torch.equal(found.targets[counted], LABELS)
    with pytest.raises(ValueError, match=r"returns 6 of the 54 rows.*last_token"):
        observed(model, batch)


def test_other_tokens_than_the_model_takes(transformers):
    model = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**SMALL, num_labels=3, pad_token_id=0))
    batch = {"input_ids": IDS * RIGHT, "labels": LABELS}
    with pytest.raises(ValueError, match="not those that the targets of shape"):
        observed(model, batch, batches.last_token)


def test_classes_of_texts_tokens_and_images(transformers):
    torch.manual_seed(0)
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    bert = transformers.BertConfig(vocab_size=50, num_labels=3, **small)
    vit = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **small)
    texts = {"input_ids": IDS, "attention_mask": RIGHT, "token_type_ids": 0 * IDS}
    tokens = torch.randint(3, IDS.shape).masked_fill(RIGHT == 0, -100)
    for model, batch in (
        (transformers.BertForSequenceClassification(bert), texts | {"labels": LABELS}),
        (transformers.BertForTokenClassification(bert), texts | {"labels": tokens}),
        (transformers.ViTForImageClassification(vit), {"pixel_values": torch.randn(6, 3, 8, 8), "labels": LABELS}),
    ):
        head, found, (weight, bias) = observed(model, batch)
        assert head.name == "classifier"
        torch.testing.assert_close(found.features["classifier"] @ weight.T + bias, found.outputs)
        with torch.no_grad():
            loss = F.cross_entropy(found.outputs, found.targets, ignore_index=-100)
            torch.testing.assert_close(loss, model(**batch).loss)


@pytest.mark.parametrize("adapted", ["head", "body"])
def test_adapters_of_peft(transformers, adapted):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    names = {"target_modules": ["0", "2"]} if adapted == "head" else {"target_modules": ["0"], "modules_to_save": ["2"]}
    model = peft.get_peft_model(net, peft.LoraConfig(r=2, **names))
    x = torch.randn(6, 8)
    head, _, _ = observed(model, (x, LABELS))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    _, found, (weight, bias) = observed(model, (x, LABELS))
    torch.testing.assert_close(found.features[head.name] @ weight.T + bias, model(x).detach(), rtol=1e-4, atol=1e-5)
    assert observed(model, (x, LABELS), head="base_model.model.2")[0].affine


def test_what_they_do_not_take():
    with pytest.raises(ValueError, match=r"labels of shape \(n, t\); got labels of shape \(6,\)"):
        batches.causal_lm({"input_ids": IDS, "labels": LABELS})
    with pytest.raises(ValueError, match=r"labels of shape \(n,\); got labels of shape \(6, 9\)"):
        batches.last_token({"input_ids": IDS, "labels": IDS})
