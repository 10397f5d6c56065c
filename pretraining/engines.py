# Copyright 2026 The Luna authors.
# Licensed under the Apache License, Version 2.0.
"""How one step runs over many processes: data parallelism, FSDP2, or DeepSpeed's ZeRO 1, 2 and 3.

The launcher chooses (`pretraining.launcher`); the recipe, the data and the checkpoints are the same under each. An engine
takes the model whole and gives weights and optimizer state back whole, so a run may change engine and number of processes at
any checkpoint.
"""

import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel
from transformers.integrations import unset_hf_deepspeed_config

from luna_tools.errors import InputError
from pretraining.launcher import RECIPE_DECIDES, EngineName, launched_processes
from pretraining.optimizers import build_optimizer
from pretraining.recipe import Recipe

# Launches in which Accelerate gives each process the whole model.
PLAIN_LAUNCHES = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
    DistributedType.MULTI_NPU,
)


GROUP = "param_groups."  # where a checkpoint keeps what belongs to a group of parameters


class NonFiniteError(RuntimeError):
    """The loss or its gradient stopped being a number."""


# ---------------------------------------------------------------------------------------------------------------------
# The launch


def has_gpu() -> bool:
    """Tell whether there is an accelerator to train on. Apple's lacks float64, which the evaluation sums in: CPU there."""
    return torch.accelerator.is_available() and torch.accelerator.current_accelerator().type != "mps"


def make_accelerator(recipe: Recipe, engine: EngineName) -> Accelerator:
    """Set up Accelerate as the engine needs it, on CPU too.

    Raises:
        InputError: a launch that this program does not support, or whose processes do not know each other.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", recipe.mixed_precision):
        raise InputError(
            f"The launcher asks for mixed precision {launched}, but the recipe's `mixed_precision` is "
            f"{recipe.mixed_precision}: say `--mixed_precision {launched}` behind the recipe on the command line."
        )
    handlers = []
    is_deepspeed = ENGINES[engine] is ZeRO
    if is_deepspeed and not has_gpu():
        os.environ["DS_ACCELERATOR"] = "cpu"
        from deepspeed import ops

        # Collectives that only its inference uses, and whose busy loops hang where processes outnumber cores.
        ops.__compatible_ops__["deepspeed_shm_comm"] = False
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    if engine == "fsdp2":
        del os.environ["ACCELERATE_USE_FSDP"]  # Accelerate makes the process group, and `FSDP2` divides the model
    accelerator = Accelerator(
        # Without this, torchrun on a machine without an accelerator starts copies that do not know each other.
        cpu=not has_gpu() and not is_deepspeed,
        # DeepSpeed's own half-precision modes would round weights and checkpoints; its autocast is set in `ZeRO`.
        mixed_precision="no" if is_deepspeed else recipe.mixed_precision,
        step_scheduler_with_optimizer=False,
        log_with=recipe.report_to or None,
        project_dir=recipe.output_dir,
        kwargs_handlers=handlers,
    )
    if is_deepspeed:
        # Otherwise transformers builds models in parts under stage 3, and initialises them in another way.
        unset_hf_deepspeed_config()
    world_size = launched_processes() or 1
    if accelerator.num_processes != world_size:
        raise InputError(
            f"The launcher started {world_size} processes, but Accelerate sees {accelerator.num_processes} "
            f"({accelerator.distributed_type}): check its configuration, the copies would train apart."
        )
    if accelerator.distributed_type not in (*PLAIN_LAUNCHES, DistributedType.DEEPSPEED):
        raise InputError(
            f"The launcher's configuration asks for {accelerator.distributed_type.value}, which this program does not "
            "support: launch it with data parallelism, FSDP2 or DeepSpeed, as in pretraining/launch."
        )
    return accelerator


# ---------------------------------------------------------------------------------------------------------------------
# Data parallelism


class DataParallel:
    """One process, or DistributedDataParallel: each process holds the whole model and the whole optimizer state."""

    def __init__(self, accelerator: Accelerator, model: PreTrainedModel, recipe: Recipe):
        self.accelerator = accelerator
        self.recipe = recipe
        self.scaler = accelerator.scaler
        self.prepare(model)

    def prepare(self, model: PreTrainedModel) -> None:
        self.parameters = dict(model.named_parameters())
        self.optimizer = build_optimizer(model, self.recipe)
        self.module, self.prepared_optimizer = self.accelerator.prepare(model, self.optimizer)

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        """Wrap forward and backward of one micro-batch. Gradients travel between the processes once a step."""
        with nullcontext() if is_last else self.accelerator.no_sync(self.module):
            yield

    def backward(self, loss: torch.Tensor) -> None:
        """Add up gradients, which are the mean over the processes of those of their losses."""
        self.accelerator.backward(loss)

    def update(self, learning_rate: float) -> float:
        """Clip the gradients, update the weights, clear the gradients. Returns the norm before clipping.

        Raises:
            NonFiniteError: the norm is not finite, and no loss scale is to blame.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group["relative_lr"]
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.recipe.max_grad_norm)
        norm = self.whole(norm).item()
        self.require_finite(norm)
        self.prepared_optimizer.step()
        self.prepared_optimizer.zero_grad()
        return norm

    def require_finite(self, grad_norm: float) -> None:
        """Let a large loss scale overflow, which leaves out the step and lowers the scale, but not a small one.

        Raises:
            NonFiniteError: the norm is not finite, and no loss scale is to blame.
        """
        if not math.isfinite(grad_norm) and (self.scaler is None or self.scaler.get_scale() < 1):
            raise NonFiniteError(f"The gradient norm is {grad_norm}")

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the whole of a tensor of which this process may have a part. All processes must ask for it."""
        return tensor

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield name and value of each parameter, a tied one once. All processes must ask for all of them."""
        for name, parameter in self.parameters.items():
            yield name, self.whole(parameter.detach())

    def optimizer_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield `name.exp_avg`, `name.exp_avg_sq`, `name.step`, ... of each parameter. All processes must ask for all."""
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    yield f"{name}.{key}", self.whole(value)
        for i, group in enumerate(self.optimizer.param_groups):
            if "step" in group:  # of an optimizer that counts by group
                yield f"{GROUP}{i}.step", torch.tensor(group["step"])

    def load_optimizer_state(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take back what `optimizer_state` gave, under this or another engine."""
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition(".")
            if name.startswith(GROUP):
                self.optimizer.param_groups[int(name.removeprefix(GROUP))][key] = int(tensor)
                continue
            parameter = self.parameters[name]
            self.optimizer.state[parameter][key] = self.part(tensor.to(parameter.device), parameter)

    def part(self, tensor: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return this process's part of a tensor that belongs to `parameter`."""
        return tensor


# ---------------------------------------------------------------------------------------------------------------------
# FSDP2


class FSDP2(DataParallel):
    """Each process holds its part of every weight, gradient and optimizer state; a layer is whole while it runs.

    `fully_shard` itself and not Accelerate's wrapper of it, which does nothing on CPU: a GPU runs what the tests run.
    Weights travel and add up in float32 under every precision.
    """

    def prepare(self, model: PreTrainedModel) -> None:
        accelerator = self.accelerator
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        reshards = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
        names = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
        for module in model.modules():
            # A weight that two modules share belongs to the root, which holds both.
            is_shared = any(names[id(parameter)] > 1 for parameter in module.parameters())
            if type(module).__name__ in (model._no_split_modules or ()) and not is_shared:
                fully_shard(module, mesh=mesh, reshard_after_forward=reshards)
        fully_shard(model, mesh=mesh, reshard_after_forward=reshards)
        self.parameters = dict(model.named_parameters())
        self.optimizer = build_optimizer(model, self.recipe)
        self.module, self.prepared_optimizer = model, accelerator.prepare(self.optimizer)

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        self.module.set_requires_gradient_sync(is_last)
        with self.accelerator.autocast():
            yield

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def part(self, tensor: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
        if tensor.ndim == 0:  # the number of steps
            return tensor
        return distribute_tensor(tensor, parameter.device_mesh, parameter.placements, src_data_rank=None)


# ---------------------------------------------------------------------------------------------------------------------
# DeepSpeed


class LossScaler:
    """The loss scale of fp16 for an engine that scales and updates by itself: the rule and the state of `GradScaler`.

    A step whose gradients overflow is left out and halves the scale; 2,000 steps in a row without one double it.
    """

    initial_scale, growth_factor, backoff_factor, growth_interval = 65536.0, 2.0, 0.5, 2000

    def __init__(self):
        self.scale, self.growth_tracker = self.initial_scale, 0

    def update(self, has_overflowed: bool) -> None:
        self.growth_tracker = 0 if has_overflowed else self.growth_tracker + 1
        if has_overflowed:
            self.scale *= self.backoff_factor
        elif self.growth_tracker == self.growth_interval:
            self.scale *= self.growth_factor
            self.growth_tracker = 0

    def get_scale(self) -> float:
        return self.scale

    def state_dict(self) -> dict:
        return {
            "scale": self.scale,
            "growth_factor": self.growth_factor,
            "backoff_factor": self.backoff_factor,
            "growth_interval": self.growth_interval,
            "_growth_tracker": self.growth_tracker,
        }

    def load_state_dict(self, state: dict) -> None:
        self.scale, self.growth_tracker = state["scale"], state["_growth_tracker"]


class ZeRO(DataParallel):
    """DeepSpeed's ZeRO: stage 1 divides the optimizer state over the processes, 2 the gradients too, 3 the weights too."""

    def prepare(self, model: PreTrainedModel) -> None:
        accelerator, recipe = self.accelerator, self.recipe
        self.parameters = dict(model.named_parameters())
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        self.stage = config["zero_optimization"]["stage"]
        for name in RECIPE_DECIDES:  # Accelerate has filled some in
            config.pop(name, None)
        accumulation = recipe.global_batch_size // (recipe.micro_batch_size * accelerator.num_processes)
        accelerator.gradient_accumulation_steps = accumulation
        config |= {
            "train_micro_batch_size_per_gpu": recipe.micro_batch_size,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": recipe.max_grad_norm,
        }
        if recipe.mixed_precision != "no":
            dtype = {"bf16": "bfloat16", "fp16": "float16"}[recipe.mixed_precision]
            config["torch_autocast"] = {"enabled": True, "dtype": dtype}
        self.module, _ = accelerator.prepare(model, build_optimizer(model, recipe))
        self.zero = self.module.optimizer
        if recipe.mixed_precision == "fp16":
            # DeepSpeed's scaler for autocast would clip the gradients before they are scaled back.
            self.zero.torch_autocast_gradscaler = None
            self.scaler = LossScaler()

    @contextmanager
    def micro_batch(self, is_last: bool) -> Iterator[None]:
        self.module.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        if self.scaler is not None:
            self.zero.override_loss_scale(self.scaler.get_scale())
        self.module.backward(loss, scale_wrt_gas=False)

    def update(self, learning_rate: float) -> float:
        for group in self.zero.param_groups:
            group["lr"] = learning_rate * group["relative_lr"]
        self.module.step()  # clips, updates and clears, but leaves out the update if the norm is not finite
        norm = float(self.module.get_global_grad_norm())
        self.require_finite(norm)
        if self.scaler is not None:
            self.scaler.update(has_overflowed=not math.isfinite(norm))
        return norm

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                yield name, safe_get_full_fp32_param(parameter)
            else:
                with GatheredParameters([parameter], enabled=self.stage == 3):
                    yield name, parameter.detach().clone()

    def flat_partitions(self) -> list[torch.Tensor]:
        """Return what this process updates: parts of many parameters, one after the other."""
        return self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups

    def link_optimizer_state(self) -> None:
        """Tell DeepSpeed which part of which state belongs to which parameter.

        Stages 1 and 2 do so by themselves after the update of the first parameter group, when the second has no state yet.
        """
        if self.stage < 3:
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()

    def optimizer_state(self) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.utils import safe_get_full_optimizer_state

        state = self.zero.optimizer.state
        if not state:  # before the first update
            return
        self.link_optimizer_state()
        step = state[self.flat_partitions()[0]]["step"].detach().cpu()
        for name, parameter in self.parameters.items():
            if parameter.requires_grad:
                yield f"{name}.step", step.clone()
                for key in ("exp_avg", "exp_avg_sq"):
                    yield f"{name}.{key}", safe_get_full_optimizer_state(parameter, key)

    def load_optimizer_state(self, tensors: dict[str, torch.Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not tensors:
            return
        # All parameters have made the same number of steps. DeepSpeed makes the state at the first step, so it is made here.
        step = next(value for name, value in tensors.items() if name.endswith(".step"))
        for flat in self.flat_partitions():
            self.zero.optimizer.state[flat] = {
                "step": step.to(flat.device, copy=True),  # each counts for itself
                "exp_avg": torch.zeros_like(flat),
                "exp_avg_sq": torch.zeros_like(flat),
            }
        self.link_optimizer_state()
        for full_name, tensor in tensors.items():
            name, _, key = full_name.rpartition(".")
            if key == "step":
                continue
            parameter = self.parameters[name]
            tensor = tensor.to(self.accelerator.device)
            if self.stage < 3:
                safe_set_full_optimizer_state(parameter, tensor, key)
            else:
                size = parameter.ds_tensor.numel()
                first = size * self.accelerator.process_index
                part = torch.zeros(size, device=tensor.device)
                kept = tensor.flatten()[first : first + size]
                part[: len(kept)] = kept
                safe_set_local_optimizer_state(parameter, part, key)


ENGINES = {"ddp": DataParallel, "fsdp2": FSDP2, "zero1": ZeRO, "zero2": ZeRO, "zero3": ZeRO}
