"""Backbones and target data from what is given on a command line. Needs the extra ``experiments``."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from nc_callbacks.experiments.trusted import make, read_config
from nc_callbacks.probe import find_head, undisturbed

FOLDER_SIZE = 224
"""Height and width that the images of a folder are cropped to."""


class Colour(nn.Module):
    """Repeats the channel of grey images, so that networks of colour images take them."""

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n channels h w"]:
        """The images, with three channels."""
        return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


def without_classifier(model: nn.Module, inputs: Tensor) -> nn.Module:
    """The model with its classifier replaced by the identity, so that it returns the features.

    Args:
        model: Changed in place.
        inputs: A batch to find the classifier with (`nc_callbacks.probe.find_head`).

    Raises:
        ValueError: The classifier is not found.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        >>> without_classifier(model, torch.zeros(2, 4))(torch.zeros(2, 4)).shape
        torch.Size([2, 8])
    """
    with undisturbed(model):
        name = find_head(model, lambda: model(inputs))
    model.set_submodule(name, nn.Identity())
    return model


def torchvision_backbone(name: str, weights: str = "DEFAULT") -> nn.Module:
    """A network of torchvision without its classifier, behind the transforms that its weights ask for.

    Args:
        name: Such as ``resnet18``.
        weights: A name among its weights, downloaded where they are not there, or ``random``.

    Raises:
        ValueError: torchvision has no such network or weights.
    """
    from torchvision import models

    known = models.get_model_weights(name)
    if weights != "random" and weights not in known.__members__:
        raise ValueError(
            f"weights of {name} must be 'random' or one of {', '.join(known.__members__)}; got {weights!r}."
        )
    chosen = known["DEFAULT" if weights == "random" else weights]
    model = models.get_model(name, weights=None if weights == "random" else chosen)
    images = torch.zeros(2, 3, FOLDER_SIZE, FOLDER_SIZE)
    transforms = chosen.transforms()
    return nn.Sequential(Colour(), transforms, without_classifier(model, transforms(images)))


def timm_backbone(name: str, weights: str = "pretrained") -> nn.Module:
    """A network of timm without its classifier, behind the size and the normalisation that it asks for.

    Args:
        name: Such as ``resnet18`` or ``vit_base_patch16_224.augreg_in21k``.
        weights: ``pretrained``, downloaded where they are not there, or ``random``.

    Raises:
        ValueError: `weights` is neither.
        ModuleNotFoundError: timm is not installed.
    """
    import timm
    from timm.data import resolve_model_data_config

    if weights not in ("pretrained", "random"):
        raise ValueError(f"weights of timm:{name} must be 'pretrained' or 'random', got {weights!r}.")
    model = timm.create_model(name, pretrained=weights == "pretrained", num_classes=0)
    wanted = resolve_model_data_config(model)
    return nn.Sequential(Colour(), *_normalised(wanted["input_size"][1:], wanted["mean"], wanted["std"]), model)


class LastHidden(nn.Module):
    """The last hidden state of a model of transformers, averaged over tokens or positions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n p"]:
        """Features (n, p) of images."""
        hidden = self.model(pixel_values=images).last_hidden_state
        return hidden.mean(1) if hidden.ndim == 3 else hidden.flatten(2).mean(2)


def transformers_backbone(folder: Path) -> nn.Module:
    """An image model of transformers from the folder that it was saved to, behind the size and normalisation it asks.

    Nothing in the folder is run or unpickled: its weights must be safetensors.

    Args:
        folder: What ``save_pretrained`` wrote; where it has no ``preprocessor_config.json``, images are normalised by
            0.5 to the size that its configuration names.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        OSError: There are no weights in it that can be read.
    """
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    file = folder / "preprocessor_config.json"
    wanted = json.loads(file.read_text()) if file.is_file() else {}
    size = wanted.get("size", getattr(model.config, "image_size", FOLDER_SIZE))
    if isinstance(size, dict):
        edge = size.get("shortest_edge", FOLDER_SIZE)
        size = (size.get("height", edge), size.get("width", edge))
    pair = (size, size) if isinstance(size, int) else tuple(size)
    mean, std = (wanted.get(f"image_{name}") or [0.5, 0.5, 0.5] for name in ("mean", "std"))
    return nn.Sequential(Colour(), *_normalised(pair, mean, std), LastHidden(model))


def _normalised(size: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> tuple[nn.Module, nn.Module]:
    from torchvision import transforms

    return transforms.Resize(tuple(size), antialias=True), transforms.Normalize(mean, std)


def run_backbone(path: Path) -> nn.Module:
    """The backbone of a run of `train.py`, with its trained weights.

    Args:
        path: The run's folder, or a checkpoint in it or in its ``checkpoints``. It may be anybody's: the checkpoint is
            not unpickled, and of the configuration only what `nc_callbacks.experiments.trusted` lists is made.

    Raises:
        FileNotFoundError: The checkpoint, or the configuration that says which network it is of, is not there.
        ValueError: The checkpoint cannot be read or is of another network; the configuration asks for what is not on
            the list.
    """
    checkpoint = path / "checkpoints" / "last.ckpt" if path.is_dir() else path
    folder = checkpoint.absolute().parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    file = folder / ".hydra" / "config.yaml"
    if not checkpoint.is_file() or not file.is_file():
        missing = file if checkpoint.is_file() else checkpoint
        raise FileNotFoundError(
            f"Expected {path} to be a run folder of train.py, or a checkpoint in one or in its checkpoints/, with its "
            f".hydra/config.yaml; {missing} is not there."
        )
    weights = _weights(checkpoint)
    config = read_config(file)
    data = make(config, "data")
    network = make(config, "model", image_shape=data.image_shape, num_classes=data.num_classes)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"The weights in {checkpoint} are not of the network in {file}: {reason}") from error
    return network.backbone


def _weights(checkpoint: Path) -> dict[str, Tensor]:
    """The network's weights in a checkpoint of `ImageClassifier`, without unpickling anything."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{checkpoint} cannot be read as a checkpoint of weights: it is cut short, or was saved by something else "
            f"({type(error).__name__}: {reason})."
        ) from error
    state = content.get("state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"Expected {checkpoint} to be a checkpoint of train.py, with a state_dict; it has none.")
    start = "network."
    return {key.removeprefix(start): weight for key, weight in state.items() if str(key).startswith(start)}


def source(name: str, device: str) -> Callable[[], nn.Module]:
    """A function that makes the named backbone on a device.

    Args:
        name: ``torchvision:NETWORK`` (pretrained), ``torchvision:NETWORK:WEIGHTS`` (``random`` for none), the same with
            ``timm``, a folder that a model of transformers was saved to, a run folder of train.py or a checkpoint in
            one, or ``package.module:function`` for a function without arguments that returns a module from images to
            features.
        device: Such as ``cpu`` or ``cuda``.
    """

    def make() -> nn.Module:
        kind, _, rest = name.partition(":")
        if kind == "torchvision":
            backbone = torchvision_backbone(*rest.split(":", 1))
        elif kind == "timm":
            backbone = timm_backbone(*rest.split(":", 1))
        elif (Path(name) / "config.json").is_file():
            backbone = transformers_backbone(Path(name))
        elif rest and not Path(name).exists():
            backbone = getattr(importlib.import_module(kind), rest)()
        else:
            backbone = run_backbone(Path(name))
        return backbone.to(device)

    return make


def target_loaders(data: str, root: str, batch_size: int) -> tuple[DataLoader, DataLoader | None, int]:
    """Training loader, test loader (None: to be held out) and number of classes of a data set or a folder.

    Args:
        data: A name that `nc_callbacks.experiments.data.ImageData` knows, or a folder with a subfolder of images a
            class.
        root: Where the named data set lies.
        batch_size: Samples a batch.

    Raises:
        FileNotFoundError: The data is not there.
    """
    from nc_callbacks.experiments.data import IMAGE_SETS, ImageData

    if data in IMAGE_SETS:
        images = ImageData(data, root=root, batch_size=batch_size)
        images.setup()
        return images.train_dataloader(), images.val_dataloader(), images.num_classes
    if not Path(data).is_dir():
        raise FileNotFoundError(
            f"--data must be one of {', '.join(IMAGE_SETS)}, or a folder with a subfolder of images for each class; "
            f"got {data!r}."
        )
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Resize(FOLDER_SIZE), transforms.CenterCrop(FOLDER_SIZE), transforms.ToTensor()]
    folder = ImageFolder(data, transforms.Compose(steps))
    return DataLoader(folder, batch_size=batch_size, num_workers=2), None, len(folder.classes)
