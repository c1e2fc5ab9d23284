"""vLLM's side of a weight update: read a safetensors file or a stream, prove what was read, load it.

    start_weight_update   layers get ready to be filled again
    update_weights        tensors go from the file or stream through the digest into the model
    finish_weight_update  layers are processed and put back; on CPU the output head is packed again

The digest is made of the very tensors that go into the model, so a source that changed, a skipped
update and a tensor that was not consumed all show.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from alphadrive.errors import WeightSyncError
from alphadrive.weights import WeightDigest
from rollout.weight_buckets import Named, add_to_digest
from rollout.weight_receiver import Inlet, StreamInfo, WeightReceiver, make_cpu_inlet


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing to agree on beforehand."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """Where the weights are."""

    path: str


class FileWeightTransferEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """The `alphadrive_file` backend of vLLM's weight-transfer interface."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo
    supports_draft_weight_update = False
    received_sha256: str | None = None

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to connect."""

    def start_weight_update(self) -> None:
        """Get every layer ready to be loaded again; forgets the last digest."""
        self.received_sha256 = None
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Load the tensors of `update_info.path` and remember their digest. Raises WeightSyncError where it
        is not on this machine."""
        if not Path(update_info.path).is_file():
            raise WeightSyncError(
                f"{update_info.path}: not on this machine; an engine elsewhere than the learner's rank 0 "
                "needs rollout.weight_transfer=gloo"
            )
        digest = WeightDigest()
        self.model.load_weights(_digested(update_info.path, self.device, digest))
        self.received_sha256 = digest.hexdigest()

    def finish_weight_update(self) -> None:
        """Process and put back every layer, then the output head."""
        finalize_layerwise_reload(self.model, self.model_config)
        repack_output_head(self.model)

    def shutdown(self) -> None:
        """Nothing is held."""


def _digested(path: str, device: torch.device, digest: WeightDigest) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(path, framework="pt", device="cpu") as file:
        for name in sorted(file.keys()):
            tensor = file.get_tensor(name)
            add_to_digest(digest, name, tensor)
            yield name, tensor.to(device)


@dataclass
class StreamUpdateInfo(StreamInfo, WeightTransferUpdateInfo):
    """Where the learner is, and what it offers."""


class StreamWeightTransferEngine(WeightTransferEngine[FileInitInfo, StreamUpdateInfo]):
    """The `alphadrive_stream` backend: weights from the learner's process, in buckets; on GPUs by vLLM's
    own `nccl` or `ipc`."""

    init_info_cls = FileInitInfo
    update_info_cls = StreamUpdateInfo
    supports_draft_weight_update = False
    received_sha256: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receiver = WeightReceiver(self._inlet)

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to connect beforehand: groups change from update to update."""

    def start_weight_update(self) -> None:
        """Get every layer ready to be loaded again; forgets the last digest."""
        self.received_sha256 = None
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: StreamUpdateInfo) -> None:
        """Load the tensors of a stream and remember their digest. Raises as `WeightReceiver.receive`."""
        self.received_sha256 = self._receiver.receive(update_info.stream, self._load)

    def finish_weight_update(self) -> None:
        """Process and put back every layer, then the output head."""
        finalize_layerwise_reload(self.model, self.model_config)
        repack_output_head(self.model)

    def shutdown(self) -> None:
        """Let all groups go."""
        self._receiver.close()

    def _load(self, tensors: list[Named]) -> None:
        self.model.load_weights((name, tensor.to(self.device)) for name, tensor in tensors)

    def _inlet(self, kind: str, host: str, timeout_s: float) -> Inlet:
        if self.device.type == "cpu" or kind == "gloo":
            return make_cpu_inlet(kind, host, timeout_s)
        if kind == "nccl":
            from rollout.nccl_group import NcclInlet

            return NcclInlet(self)
        from rollout.ipc_buffer import IpcInlet

        return IpcInlet(self, timeout_s)


def repack_output_head(model: torch.nn.Module) -> None:
    """Pack the weights of the output head again for vLLM's CPU kernels; elsewhere there is nothing to do.

    On CPU vLLM multiplies by a packed copy of the head, made at load. A head tied to the embedding has
    no weights in the file, so layerwise reloading leaves that copy as it was, silently.
    """
    for module in model.modules():
        if isinstance(module, ParallelLMHead) and module.weight.device.type == "cpu":
            module.quant_method.process_weights_after_loading(module)


class ReceivedWeights:
    """Added to vLLM's worker class: answers which weights the worker received last."""

    weight_transfer_engine: Any

    def alphadrive_received_sha256(self) -> str:
        """The digest of the tensors of the last update. Raises WeightSyncError before any update."""
        received: str | None = self.weight_transfer_engine.received_sha256
        if received is None:
            raise WeightSyncError("this worker has received no weights since it was started")
        return received
