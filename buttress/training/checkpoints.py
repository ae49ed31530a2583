"""Checkpoints as files: written whole or not at all, verified and read without unpickling, copied without blocking."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from buttress.errors import BadInput

if TYPE_CHECKING:
    from buttress.training.trainable import Trainable


#: An attribute of a record in a zip file: torch reads none of its bytes, and gives what was in memory.
DOS_FOLDER = 0x10


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint through a temporary file, fsync and rename, so that `path` is whole or absent.

    Args:
        path: The file; missing folders are made.
        state: Tensors and plain values.

    Raises:
        OSError: It could not be written; says so where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, checksums = path.with_suffix(".part"), torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)  # a trainer may have turned them off
    try:
        with _File(part, "wb") as file:
            try:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            except Exception as error:
                if file.error is None:
                    raise
                raise _sentence(file.error, path) from error
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        torch.serialization.set_crc32_options(checksums)


class _File(io.FileIO):
    """A file that remembers why it could not be written: torch says no more than that it could not."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            done = 0
            while done < len(view):
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.error = error
            raise
        return len(view)


def _sentence(error: OSError, path: Path) -> OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OSError(f"no space is left on the disk of {path}")
    return OSError(f"{path} cannot be written ({error.strerror})")


def verify_checkpoint(path: Path | str) -> None:
    """Compares what a checkpoint holds with its checksums, which `torch.load` does not.

    Args:
        path: The file; one of torch's format before 1.6 has no checksums.

    Raises:
        BadInput: The file is missing, truncated or damaged.
    """
    if not Path(path).is_file():
        raise BadInput("there is no such checkpoint", where=path)
    try:
        with Path(path).open("rb") as file:
            if file.read(2) != b"PK" and not zipfile.is_zipfile(file):
                return
            with zipfile.ZipFile(file) as archive:
                folders = (each.filename for each in archive.infolist() if each.external_attr & DOS_FOLDER)
                damaged = archive.testzip() or next(folders, None)
    except Exception as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    if damaged is not None:
        raise _damaged(path, f"the checksum of {damaged} does not match")


def load_checkpoint(path: Path | str, device: Any = "cpu") -> dict[str, Any]:
    """Reads the dict that a `checkpoint` callable returned.

    Args:
        path: The file; read with `weights_only=True`, so it holds tensors and plain types only.
        device: Where its tensors go.

    Raises:
        BadInput: The file is missing, truncated, damaged or not a checkpoint.
    """
    verify_checkpoint(path)
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise _damaged(path, str(error) or type(error).__name__) from error
    if not isinstance(state, dict):
        raise BadInput("not a checkpoint of a trial", where=path, value=type(state).__name__)
    return state


def _damaged(path: Path | str, what: str) -> BadInput:
    return BadInput(f"not a whole checkpoint ({what.splitlines()[0][:100]})", where=path)


def restore(module: nn.Module, checkpoint: Path, name: str, device: Any = "cpu") -> None:
    """Loads a module from a checkpoint of the shared loop and puts it in eval mode.

    Args:
        module: The module that the loop trained.
        checkpoint: The file.
        name: Of its pass.
        device: Where the checkpoint is read to.

    Raises:
        BadInput: The checkpoint holds no such module, or one of another shape.
    """
    try:
        module.load_state_dict(load_checkpoint(checkpoint, device)[f"module.{name}"])
    except (KeyError, RuntimeError) as error:
        raise BadInput("the checkpoint is of another config", where=checkpoint) from error
    module.eval()


def model_weights(checkpoint: Mapping[str, Any], name: str) -> dict[str, torch.Tensor]:
    """The state dict of the attribute `model` of the module that the loop trained as pass `name`, without its loss."""
    own = {key: value for key, value in checkpoint[f"module.{name}"].items() if key.startswith("model.")}
    return {key.removeprefix("model."): value for key, value in own.items()}


def clone_to_cpu(value: Any) -> Any:
    """A copy on the CPU that later training steps do not change; from CUDA without waiting (pinned memory)."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        if value.device.type == "cuda":
            return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
        return value.clone()
    if isinstance(value, Mapping):
        return {key: clone_to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(clone_to_cpu, value))
    return value


def save_weights(weights: dict[str, Any], path: Path) -> None:
    """Writes a plain state dict, as `torch.load(path, weights_only=True)` reads it; whole or not at all."""
    save_checkpoint(path, weights)


def weights_of(trainable: Trainable[Any], checkpoint: Path) -> dict[str, Any]:
    """The model of a checkpoint as a plain state dict.

    Args:
        trainable: Its `weights(checkpoint)` is asked; without that method the result is the shared loop's modules
            (`module.<pass>`), or the entry `model`.
        checkpoint: The file.

    Raises:
        BadInput: The file is not a checkpoint, or holds no model.
    """
    content = load_checkpoint(checkpoint)
    own = getattr(trainable, "weights", None)
    if own is not None:
        return dict(own(content))
    modules = {key.removeprefix("module."): value for key, value in content.items() if key.startswith("module.")}
    if len(modules) == 1:
        return dict(next(iter(modules.values())))
    if modules:
        return {f"{name}.{key}": value for name, module in modules.items() for key, value in module.items()}
    if isinstance(content.get("model"), dict):
        return content["model"]
    raise BadInput("holds no model", where=checkpoint, accepted="a checkpoint with a state dict under `model`")
