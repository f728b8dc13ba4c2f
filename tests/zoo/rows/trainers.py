"""Modules as people train them: with a generator, several tasks, streams, graphs, packed texts, unlabelled batches."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from tests.zoo.setups import BATCH, K, Row, Setup, Wrapped, around_means, names, pairs, tokens


class Net(nn.Module):
    """A body and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.Linear(8, 24), nn.ReLU()), nn.Linear(24, K)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


class Adversarial(Wrapped):
    """A GAN whose discriminator classifies too, optimised by hand; `forward` is the generator's."""

    def __init__(self) -> None:
        super().__init__(Net())
        self.automatic_optimization = False
        self.generator, self.real = nn.Linear(6, 8), nn.Linear(24, 1)

    def forward(self, noise: Any) -> Any:
        return self.generator(noise)

    def discriminate(self, x: Any) -> Any:
        h = self.model.body(x)
        return self.real(h), self.model.head(h)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (x, y), (of_generator, of_discriminator) = batch, self.optimizers()
        made = self(torch.randn(len(x), 6))
        real, logits = self.discriminate(x)
        fake, _ = self.discriminate(made.detach())
        of_discriminator.zero_grad()
        self.manual_backward(F.softplus(-real).mean() + F.softplus(fake).mean() + F.cross_entropy(logits, y))
        of_discriminator.step()
        of_generator.zero_grad()
        self.manual_backward(F.softplus(-self.discriminate(made)[0]).mean())
        of_generator.step()

    def configure_optimizers(self) -> Any:
        others = [*self.model.parameters(), *self.real.parameters()]
        return [torch.optim.SGD(self.generator.parameters(), 0.01), torch.optim.SGD(others, 0.01)]


def _adversarial() -> Setup:
    def forward(module: Any, x: Any) -> Any:
        return module.discriminate(x)

    return Setup(
        Adversarial(), pairs(8), "model.head", {"forward_fn": forward}, run=lambda m, batch: forward(m, batch[0])
    )


class TwoTasks(Wrapped):
    """A kind and a colour of each sample."""

    def __init__(self) -> None:
        super().__init__(Net())
        self.colour = nn.Linear(24, 3)

    def forward(self, x: Any) -> Any:
        h = self.model.body(x)
        return {"kind": self.model.head(h), "colour": self.colour(h)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        outputs = self(batch["image"])
        return sum(F.cross_entropy(outputs[task], batch[task]) for task in outputs)


def _two_tasks(task: str) -> Setup:
    x, y = around_means(8)
    head = {"kind": "model.head", "colour": "colour"}[task]
    return Setup(
        TwoTasks(), names(image=x, kind=y, colour=y % 3), head,
        {"batch_fn": lambda batch: (batch["image"], batch[task])},
        run=lambda m, batch: m(batch["image"]), targets=lambda batch: batch[task],
    )  # fmt: skip


class UNet(nn.Module):
    """A class a pixel."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(16, K, 1)

    def forward(self, x: Any) -> Any:
        skip = self.down(x).relu()
        return self.out(torch.cat([skip, self.up(self.inner(F.max_pool2d(skip, 2)).relu())], 1))


class Segmentation(Wrapped):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1], ignore_index=255)


def _segmentation() -> Setup:
    masks = torch.randint(K, (8, 8, 8), generator=torch.Generator().manual_seed(0))
    images = F.one_hot(masks, K)[..., :3].movedim(-1, 1) + 0.3 * torch.randn(8, 3, 8, 8)
    masks[:, :2] = 255
    return Setup(
        Segmentation(UNet()), DataLoader(list(zip(images, masks, strict=True)), 4), "model.out", {"ignore_index": 255},
        positions=lambda x: x.movedim(1, -1).flatten(0, -2),
        targets=lambda batch: batch[1].masked_fill(batch[1] == 255, -100),
    )  # fmt: skip


class Records(IterableDataset):
    """A stream of records, split between workers, as webdataset's are."""

    def __iter__(self) -> Iterator[Any]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        x, y = around_means(8)
        for i in range(first, len(y), step):
            yield {"__key__": f"{i:06}", "jpg": x[i], "cls": int(y[i])}


class OfRecords(Wrapped):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch["jpg"]), batch["cls"])


def _records() -> Setup:
    return Setup(
        OfRecords(Net()), DataLoader(Records(), BATCH, num_workers=2), "model.head",
        {"batch_fn": lambda batch: (batch["jpg"], batch["cls"])},
        run=lambda m, batch: m(batch["jpg"]), targets=lambda batch: batch["cls"],
    )  # fmt: skip


class SemiSupervised(Wrapped):
    """Labelled and unlabelled batches side by side."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x, y), (more,) = batch["labelled"], batch["unlabelled"]
        guessed = self(more).softmax(1).max(1)
        sure = (guessed[0] > 0.9) * F.cross_entropy(self(more), guessed[1], reduction="none")
        return F.cross_entropy(self(x), y) + sure.mean()


def _semi_supervised() -> Setup:
    labelled = pairs(8)
    unlabelled = DataLoader([(row,) for row in torch.randn(40, 8)], 10)
    return Setup(
        SemiSupervised(Net()), labelled, "model.head",
        {"batch_fn": lambda batch: (batch[0], batch[1] if len(batch) == 2 else None)},
        loader_of_fit=CombinedLoader({"labelled": labelled, "unlabelled": unlabelled}, "max_size_cycle"),
    )  # fmt: skip


class Audio(nn.Module):
    """A convolutional network on sounds, whose classifier runs on a sequence of one position."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv1d(1, 8, 40, stride=16), nn.ReLU(), nn.Conv1d(8, 16, 3), nn.ReLU())
        self.fc = nn.Linear(16, K)

    def forward(self, x: Any) -> Any:
        x = self.body(x)
        return self.fc(F.avg_pool1d(x, x.shape[-1]).permute(0, 2, 1)).log_softmax(2)


class Sounds(Wrapped):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.nll_loss(self(batch[0]).squeeze(), batch[1])


class Graph(nn.Module):
    """A class a node: neighbours' means, then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, K)

    def forward(self, x: Any, edges: Any) -> Any:
        near = torch.eye(len(x)).index_put((edges[0], edges[1]), torch.tensor(1.0))
        near = near / near.sum(1, keepdim=True)
        return self.head(near @ self.body(near @ x).relu())


class Nodes(Wrapped):
    def forward(self, x: Any, edges: Any) -> Any:
        return self.model(x, edges)

    def training_step(self, graph: Any, batch_idx: int) -> Tensor:
        counted = graph["train"]
        return F.cross_entropy(self(graph["x"], graph["edges"])[counted], graph["y"][counted])


def _nodes() -> Setup:
    x, y = around_means(8)
    edges = torch.randint(len(y), (2, 60), generator=torch.Generator().manual_seed(0))
    graph = {"x": x, "edges": edges, "y": y, "train": torch.arange(len(y)) % 3 > 0}

    def targets(graph: Any) -> Tensor:
        return graph["y"].masked_fill(~graph["train"], -100)

    return Setup(
        Nodes(Graph()), DataLoader([graph], batch_size=None), "model.head",
        {"batch_fn": lambda graph: ({"x": graph["x"], "edges": graph["edges"]}, targets(graph))},
        run=lambda m, graph: m(graph["x"], graph["edges"]), targets=targets,
    )  # fmt: skip


class Packed(nn.Module):
    """A recurrent network on texts without their padding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.rnn = nn.Embedding(40, 12), nn.LSTM(12, 16, batch_first=True)
        self.fc = nn.Linear(16, K)

    def forward(self, words: Any, lengths: Any) -> Any:
        packed = nn.utils.rnn.pack_padded_sequence(self.embed(words), lengths, True, enforce_sorted=False)
        return self.fc(self.rnn(packed)[1][0][0])


class Texts(Wrapped):
    def forward(self, words: Any, lengths: Any) -> Any:
        return self.model(words, lengths)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(*batch[:2]), batch[2])


def _packed(**arguments: Any) -> Setup:
    text = tokens()
    data = zip(text["input_ids"], text["attention_mask"].sum(1), text["labels"], strict=True)
    return Setup(
        Texts(Packed()), DataLoader(list(data), BATCH), "model.fc", arguments,
        run=lambda m, batch: m(*batch[:2]), targets=lambda batch: batch[2],
    )  # fmt: skip


def _compiled() -> Setup:
    module = Wrapped(Net())
    module.compile(backend="eager")
    return Setup(module, pairs(8), "model.head")


_NAMED = "a function from a batch to (inputs, targets)"
_OWN = "batch_fn=a function that names inputs and targets"

ROWS = [
    Row(
        "trainers",
        "a GAN with a classifier, manual optimisation",
        _adversarial,
        remark="forward_fn=the discriminator's",
    ),
    Row("trainers", "two tasks, the one", partial(_two_tasks, "kind"), remark=_OWN),
    Row("trainers", "two tasks, the other", partial(_two_tasks, "colour"), remark=_OWN),
    Row("trainers", "segmentation, a U-Net", _segmentation, remark="ignore_index=255"),
    Row("trainers", "a stream of records, two workers", _records, remark=_OWN),
    Row(
        "trainers",
        "labelled and unlabelled batches (CombinedLoader)",
        _semi_supervised,
        remark="batch_fn=targets of None where there are none",
    ),
    Row("trainers", "sounds, a sequence of one position", lambda: Setup(Sounds(Audio()), pairs(1, 400), "model.fc")),
    Row("trainers", "nodes of a graph", _nodes, remark="batch_fn=−100 for nodes that are not trained on"),
    Row(
        "trainers",
        "packed texts",
        partial(_packed, batch_fn=lambda b: ({"words": b[0], "lengths": b[1]}, b[2])),
        remark="batch_fn=inputs by the names of forward",
    ),
    Row("trainers", "packed texts, as they come", _packed, refused=_NAMED, remark="batch_fn=as above"),
    Row("trainers", "torch.compile", _compiled),
]
