"""Checkpoints in Hugging Face's layout: finding, reading, checking and writing their tensors.

Nothing in a checkpoint is ever run: weights come from safetensors, or from pytorch_model.bin by
torch's weights-only loader.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from taut.encoder.architectures import SECOND_NAMES
from taut.encoder.config import EncoderConfig
from taut.encoder.fields import Fields, read_json, write_json

SAFETENSORS = "model.safetensors"
PICKLED = "pytorch_model.bin"
_WEIGHTS = {name: f"{name}.index.json" for name in (SAFETENSORS, PICKLED)}
_WEIGHT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_LEGACY_LEAVES = {"weight": "gamma", "bias": "beta"}  # LayerNorm in the oldest checkpoints


def resolve(path_or_id: str | os.PathLike) -> Path:
    """The directory of a checkpoint: the path itself, or an id's snapshot from the hub.

    Raises:
        FileNotFoundError: it is no directory, and the hub cannot give it.
    """
    path = Path(path_or_id)
    if path.is_dir():
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise FileNotFoundError(
            f"{path_or_id} is no directory; to read it from the hub by its id, "
            "install huggingface_hub"
        ) from None
    try:
        kinds = ["*.json", "*.safetensors"]
        snapshot = Path(snapshot_download(str(path_or_id), allow_patterns=kinds))
        if not any(snapshot.rglob("*.safetensors")):
            kinds = ["*.json", f"{PICKLED}*", "pytorch_model-*.bin"]
            snapshot = Path(snapshot_download(str(path_or_id), allow_patterns=kinds))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{path_or_id} is no directory, and the hub did not give it: {error}"
        ) from error
    return snapshot


def read_config(directory: Path) -> EncoderConfig:
    path = directory / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{directory} has no config.json")
    return EncoderConfig.from_dict(read_json(path))


def weight_files(directory: Path) -> list[Path]:
    for name, index_name in _WEIGHTS.items():
        if (directory / name).exists():
            return [directory / name]
        index = directory / index_name
        if index.exists():
            weight_map = Fields.read(index).get("weight_map", dict)
            if not weight_map or not all(isinstance(shard, str) for shard in weight_map.values()):
                raise ValueError(f"{index}: weight_map must map names to files, got {weight_map}")
            shards = sorted(set(weight_map.values()))
            outside = [shard for shard in shards if Path(shard).name != shard]
            if outside:
                raise ValueError(f"{index} names files outside its directory: {outside}")
            missing = [shard for shard in shards if not (directory / shard).exists()]
            if missing:
                raise FileNotFoundError(f"{index} names files that are missing: {missing}")
            return [directory / shard for shard in shards]
    looked_for = ", ".join((*_WEIGHTS, *_WEIGHTS.values()))
    raise FileNotFoundError(f"{directory} has no weights: looked for {looked_for}")


class TensorFiles:
    """The tensors of a checkpoint, by name; those of safetensors are read when asked for."""

    def __init__(self, directory: Path) -> None:
        self._getters: dict[str, Callable[[], torch.Tensor]] = {}
        for path in weight_files(directory):
            if path.suffix == ".safetensors":
                self._open_safetensors(path)
            else:
                self._open_pickled(path)

    def _open_safetensors(self, path: Path) -> None:
        try:
            file = safe_open(path, framework="pt")
        except SafetensorError as error:
            raise ValueError(f"{path} is not a valid safetensors file: {error}") from error
        for name in file.keys():  # noqa: SIM118 (no mapping)
            self._getters[name] = lambda name=name: file.get_tensor(name)

    def _open_pickled(self, path: Path) -> None:
        try:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(f"{path} cannot be read as weights only: {error}") from error
        if not isinstance(tensors, dict):
            raise ValueError(f"{path} must hold a dict of tensors, got {type(tensors).__name__}")
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                self._getters[name] = lambda tensor=tensor: tensor

    def find(self, name: str, prefix: str) -> torch.Tensor | None:
        """The tensor called `name`, with or without the prefix of the encoder in its model."""
        bare = name.removeprefix(prefix)
        module, _, leaf = bare.rpartition(".")
        legacy = f"{module}.{_LEGACY_LEAVES.get(leaf, leaf)}"
        second = SECOND_NAMES.get(name)
        for candidate in (prefix + bare, bare, prefix + legacy, legacy, second):
            if candidate in self._getters:
                return self._getters[candidate]()
        return None


def tensor_names(config: EncoderConfig, task: str | None, parameter: str) -> tuple[str, ...]:
    """What the checkpoint calls the tensors that make up one parameter of ours.

    The encoder's own names are without the prefix of `*For...` checkpoints, a head's are complete.
    """
    architecture = config.architecture
    part, _, name = parameter.partition(".")
    module, _, leaf = name.rpartition(".")
    if part == "head":
        return (f"{architecture.heads[task][module]}.{leaf}",)
    layer = ""
    if module.startswith("layers."):
        _, layer, module = module.split(".", 2)
        module = "layers.{}." + module
    found = architecture.names[module]
    found = (found,) if isinstance(found, str) else found
    return tuple(f"{name.format(layer)}.{leaf}" for name in found)


def _parts(tensor: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """As many equal blocks of rows; one part may have no dimension."""
    return (tensor,) if count == 1 else tensor.chunk(count)


class Sources:
    """The tensors of a checkpoint that make up the parameters of an encoder with its head.

    Args:
        module: the model; may be on the meta device, so that sizes are checked before they are
            allocated.
        config: its shape.
        task: of its head, or None.
        directory: of the checkpoint.

    Raises:
        FileNotFoundError: there are no weights.
        ValueError: naming every tensor that is missing, misshapen or no plain float.
    """

    def __init__(
        self, module: torch.nn.Module, config: EncoderConfig, task: str | None, directory: Path
    ) -> None:
        self._files = TensorFiles(directory)
        self._prefix = config.architecture.prefix
        self._names = {
            parameter: tensor_names(config, task, parameter)
            for parameter, _ in module.named_parameters()
        }
        problems = []
        for name, target in self._targets(module):
            source = self._files.find(name, self._prefix)
            if source is None:
                problems.append(f"{name} must be {tuple(target.shape)}, is missing")
            elif source.shape != target.shape:
                problems.append(f"{name} must be {tuple(target.shape)}, got {tuple(source.shape)}")
            elif source.dtype not in _WEIGHT_DTYPES:
                problems.append(f"{name} must be floating point, got {source.dtype}")
        if problems:
            listed = "\n  ".join(problems)
            raise ValueError(f"{directory} does not fit its config.json:\n  {listed}")

    def _targets(self, module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
        """(name of a tensor of the checkpoint, the part of a parameter that it fills)."""
        for parameter_name, parameter in module.named_parameters():
            names = self._names[parameter_name]
            yield from zip(names, _parts(parameter.detach(), len(names)), strict=True)

    def fill(self, module: torch.nn.Module) -> None:
        """Copy the tensors into the parameters."""
        for name, target in self._targets(module):
            target.copy_(self._files.find(name, self._prefix))


def save_parameters(
    module: torch.nn.Module, config: EncoderConfig, task: str | None, directory: Path
) -> None:
    """Write config.json and model.safetensors under the checkpoint's own names."""
    prefix = config.architecture.prefix if task else ""
    tensors = {}
    for parameter_name, parameter in module.named_parameters():
        names = tensor_names(config, task, parameter_name)
        whole = parameter.detach().cpu()
        own_prefix = "" if parameter_name.startswith("head.") else prefix
        for name, part in zip(names, _parts(whole, len(names)), strict=True):
            tensors[own_prefix + name] = part.clone()
            if name in SECOND_NAMES:
                tensors[SECOND_NAMES[name]] = part.clone()
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    raw = {key: value for key, value in config.raw.items() if key != "torch_dtype"}
    write_json(directory / "config.json", {**raw, "dtype": dtype})
    save_file(tensors, directory / SAFETENSORS, metadata={"format": "pt"})


@contextmanager
def whole_or_nothing(directory: str | os.PathLike) -> Iterator[Path]:
    """A scratch directory that becomes `directory` when the block ends, and vanishes if it fails.

    Raises:
        FileExistsError: `directory` exists and is not an empty directory.
    """
    target = Path(directory).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is not an empty directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        os.replace(scratch, target)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
