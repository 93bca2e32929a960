"""DeepSpeed under one roof: process group, ZeRO engine, and optimizer shards as safetensors.

Only this file imports deepspeed. Shards are saved by hand because DeepSpeed's own checkpoints are pickles, and this
project loads none.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from learners.endpoint import Rendezvous
from rl_finetune.config.schema import OptimizerSection

warnings.filterwarnings("ignore", category=FutureWarning)

import deepspeed  # noqa: E402
from deepspeed.utils import logger as deepspeed_logger  # noqa: E402

deepspeed_logger.setLevel("ERROR")

BUCKET = 1_000_000
"""Elements of a communication bucket: the default 5e8 is filled with memory in each step on a CPU."""


def join(rank: int, world: int, rendezvous: Rendezvous) -> None:
    """Form the process group: nccl where there are GPUs, else gloo.

    DeepSpeed would compile a shared-memory operation first (50 s, and it needs a C++ compiler): it is declared absent.
    """
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": "0"}
    if rendezvous.interface is not None:
        os.environ["GLOO_SOCKET_IFNAME"] = rendezvous.interface
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, init_method=rendezvous.url, rank=rank, world_size=world)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


class Engine:
    """A module under ZeRO with one learning rate per parameter group."""

    def __init__(
        self,
        module: nn.Module,
        groups: dict[str, list[nn.Parameter]],
        optimizer: OptimizerSection,
        *,
        zero_stage: int,
        micro_batch: int,
    ) -> None:
        self.names = list(groups)
        settings = [dict(params=parameters, lr=0.0) for parameters in groups.values()]
        adam = torch.optim.AdamW(settings, betas=optimizer.betas, weight_decay=optimizer.weight_decay)
        world = torch.distributed.get_world_size()
        self._engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=adam,
            config={
                "train_micro_batch_size_per_gpu": micro_batch,
                "train_batch_size": micro_batch * world,
                "zero_optimization": {
                    "stage": zero_stage, "reduce_bucket_size": BUCKET, "allgather_bucket_size": BUCKET,
                    "overlap_comm": False,
                },
                "zero_allow_untested_optimizer": True,
                "gradient_clipping": optimizer.grad_clip,
                "wall_clock_breakdown": False,
            },
        )  # fmt: skip
        self.module = module

    @property
    def grad_norm(self) -> float:
        """Global norm before clipping, of the last step."""
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def set_lr(self, rates: dict[str, float]) -> None:
        """Learning rate of each group by name."""
        for name, group in zip(self.names, self._engine.optimizer.param_groups, strict=True):
            group["lr"] = rates[name]

    def step(self, loss: Tensor) -> None:
        """Backward, reduce over learners, clip, update, gather."""
        self._engine.backward(loss)
        self._engine.step()

    def save_shard(self, path: Path) -> None:
        """This rank's optimizer state: master weights, both moments and the step count of each group."""
        tensors: dict[str, Tensor] = {}
        for index, (name, partition) in enumerate(zip(self.names, self._masters(), strict=True)):
            state = self._engine.optimizer.optimizer.state[partition]
            tensors[f"{index}.{name}.master"] = partition.detach()
            tensors |= {f"{index}.{name}.{key}": torch.as_tensor(value) for key, value in state.items()}
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, path)

    def load_shard(self, path: Path) -> None:
        """Restore what `save_shard` wrote on the same rank of the same number of learners."""
        stored = load_file(path)
        for index, (name, partition) in enumerate(zip(self.names, self._masters(), strict=True)):
            prefix = f"{index}.{name}."
            fields = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
            with torch.no_grad():
                partition.copy_(fields.pop("master"))
            self._engine.optimizer.optimizer.state[partition] = {
                key: value if key == "step" else value.to(partition.device) for key, value in fields.items()
            }

    def _masters(self) -> list[nn.Parameter]:
        return self._engine.optimizer.single_partition_of_fp32_groups
