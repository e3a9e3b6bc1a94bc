"""Optimizer, weight average, precision and processes of a density's training."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from arcsm._native import available, may_train, muon_step, supports
from arcsm._runtime import process_group
from arcsm._runtime.process_group import Group
from arcsm.contexts.set_networks import SetNetwork
from arcsm.model import AutoregressiveModel
from arcsm.training.config import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.amp import GradScaler


_POLYNOMIAL = (3.4445, -4.7750, 2.0315)  # coefficients of x, x^3 and x^5 in Muon's iteration
_ITERATIONS = 5
_LEAST_UNITS = 16  # of a layer whose matrices Muon learns
_LAST_LAYERS = ("output", "logits", "parameters_of")  # of heads


def local_parts(group: Group, batch: int, accumulate: int) -> dict[int, slice]:
    """Return the parts of a batch that this process computes one after another, by their number."""
    count = group.size * accumulate
    if count > batch:
        raise ValueError(
            f"batch_size: {batch} rows cannot be divided into {count} parts, {accumulate} for each of "
            f"{group.size} processes"
        )
    parts = process_group.even_slices(batch, count)
    return {number: parts[number] for number in range(count)[group.share(count)]}


class SinglePrecision:
    """Single precision, in any number of processes: what Fabric would do, without the seconds that its import takes."""

    def __init__(self, group: Group, device: torch.device) -> None:
        self.group, self.device = group, device

    def setup(self, module: nn.Module, optimizer: Optimizer) -> Any:
        if self.group.size > 1:
            module = DistributedDataParallel(module, device_ids=None if self.device.type == "cpu" else [self.device])
        return module, optimizer

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def no_backward_sync(self, module: DistributedDataParallel) -> AbstractContextManager[None]:
        return module.no_sync()


def build_fabric(group: Group, device: torch.device, precision: str) -> Fabric | SinglePrecision:
    """Return what handles precision and, with several processes, averages their gradients."""
    if precision == "32-true":
        return SinglePrecision(group, device)
    from lightning_fabric import Fabric  # takes seconds
    from lightning_fabric.plugins import MixedPrecision
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    class MixedProducts(MixedPrecision):
        """Half precision for products only: rows in data units would lose too much."""

        def convert_input(self, data: Any) -> Any:
            return data

    plugins: list[Any] = [MixedProducts(precision, device.type)]  # type: ignore[arg-type]
    if group.size == 1:
        devices = [device.index] if device.index is not None else 1
        plugins.append(LightningEnvironment())  # ignores the variables of a scheduler
        return Fabric(accelerator=device.type, devices=devices, plugins=plugins)
    nodes = group.size // group.local_size
    fabric = Fabric(accelerator=device.type, devices=group.local_size, num_nodes=nodes, strategy="ddp", plugins=plugins)
    fabric.launch()
    return fabric


def gradient_scaler(fabric: Fabric | SinglePrecision) -> GradScaler | None:
    """Return what scales losses in half precision so that gradients do not vanish, if anything does."""
    if isinstance(fabric, SinglePrecision):
        return None
    scaler: GradScaler | None = getattr(fabric.strategy.precision, "scaler", None)
    return scaler


class _Eager(Optimizer):
    """An optimizer of torch whose methods do not load torch's compiler, which takes seconds and serves traced steps."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


class AdamW(_Eager, torch.optim.AdamW):
    """AdamW of torch; see :class:`_Eager`."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Adam(_Eager, torch.optim.Adam):
    """Adam of torch; see :class:`_Eager`."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class Muon(AdamW):
    """Muon for matrices between layers of units, and AdamW for all other weights.

    The gradient of a matrix often has a few large singular values, and then all other directions are learned slowly.
    Muon makes the singular values :math:`S` of the averaged gradient :math:`M = U S V^\\top` nearly equal. With the
    learning rate :math:`\\eta`, a matrix ``(m, n)`` changes by about

    .. math:: -0.2 \\sqrt{\\max(m, n)}\\, \\eta\\, U V^\\top

    The factor makes the root mean square of the changes about that of AdamW at the same rate. The average has Nesterov
    momentum. A matrix whose gradient is zero gets weight decay alone. Sources: K. Jordan et al., "Muon: An optimizer
    for hidden layers in neural networks" (2024); J. Liu et al., "Muon is scalable for LLM training" (arXiv:2502.16982,
    2025) for the factor.

    Arguments:
        groups: Groups of weights for AdamW. Those with ``matrices=True`` hold matrices, or stacks of them, for Muon.
        lr: Learning rate of groups without their own.
        weight_decay: Decoupled weight decay of all weights.
        momentum: Decay of the average of a matrix's gradients.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        groups = [{"matrices": False, "momentum": momentum, **group} for group in groups]
        super().__init__(groups, lr, weight_decay=weight_decay, fused=True)
        self._step_supports_amp_scaling = False  # so that a step with infinite gradients is left out as a whole

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        every = self.param_groups
        others = [group for group in every if not group["matrices"]]
        if others:
            try:
                self.param_groups = others
                inspect.unwrap(torch.optim.AdamW.step)(self)
            finally:
                self.param_groups = every
        for group in every:
            if group["matrices"]:
                self._step_of_matrices(group)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        Optimizer.__setstate__(self, state)  # Adam's own reads its state of every weight

    def _step_of_matrices(self, group: dict[str, Any]) -> None:
        by_shape = dict[tuple[int, ...], list[Tensor]]()
        for weight in group["params"]:
            if weight.grad is not None:
                by_shape.setdefault(tuple(weight.shape), []).append(weight)
                if not self.state[weight]:
                    self.state[weight]["average"] = torch.zeros_like(weight)
        for (*_, rows, columns), weights in by_shape.items():
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            averages = [self.state[weight]["average"] for weight in weights]
            step = -0.2 * max(rows, columns) ** 0.5 * group["lr"]
            tensors = [weight.detach() for weight in weights], gradients, averages
            if may_train() and all(supports(t) and t.is_contiguous() for t in (*tensors[0], *averages)) and available():
                decay = group["lr"] * group["weight_decay"]
                muon_step(*tensors, group["momentum"], decay, step, _POLYNOMIAL, _ITERATIONS)
                for weight in weights:  # as torch's own changes do, so that a graph with older weights is refused
                    torch.autograd.graph.increment_version(weight)
                continue
            torch._foreach_lerp_(averages, gradients, 1.0 - group["momentum"])
            ahead = torch.stack(torch._foreach_lerp(gradients, averages, group["momentum"]))
            is_learned = torch.stack(gradients).count_nonzero((-2, -1)) > 0  # else old gradients would get full steps
            ahead *= is_learned[..., None, None]
            torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, list(orthogonalised(ahead)), alpha=step)


def orthogonalised(matrices: Tensor, iterations: int = _ITERATIONS) -> Tensor:
    """Return matrices ``(*, m, n)`` with the same singular vectors and nearly equal singular values.

    Five iterations of Muon's odd polynomial take singular values between 0.01 and 1 times the Frobenius norm to values
    between about 0.7 and 1.2. The norm itself does not matter; zeros stay zeros.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.reshape(-1, *matrices.shape[-2:])
    x = x.mT if tall else x
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax((-2, -1), keepdim=True).clamp(min=tiny)  # first, or squares of small numbers would be zero
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=tiny)
    linear, cubic, quintic = _POLYNOMIAL
    for _ in range(iterations):
        square = x @ x.mT
        powers = torch.baddbmm(square, square, square, beta=cubic, alpha=quintic)
        x = torch.baddbmm(x, powers, x, beta=linear)
    return (x.mT if tall else x).reshape(matrices.shape)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of a model that are matrices between layers of at least 16 units, or stacks of them.

    The last layers of heads are not among them. Neither are masked matrices: the mask would undo equal singular values.
    """
    found = list[nn.Parameter]()
    for name, module in model.named_modules():
        if isinstance(module, SetNetwork):
            found.append(module.output_weight)  # a matrix for each dimension
        elif type(module) is nn.Linear and not name.endswith(_LAST_LAYERS):
            found.append(cast(nn.Parameter, module.weight))
    return [weight for weight in found if min(weight.shape[-2:]) >= _LEAST_UNITS]


#: Makes an optimizer of parameters, such as ``functools.partial(torch.optim.SGD, lr=0.1)``.
MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]
#: Makes a scheduler of an optimizer, such as ``functools.partial(torch.optim.lr_scheduler.StepLR, step_size=100)``.
MakeScheduler = Callable[[Optimizer], LRScheduler]


def build_optimizer(model: AutoregressiveModel, config: TrainConfig, make: MakeOptimizer | None = None) -> Optimizer:
    """Return the optimizer of a configuration, or a custom one, over all weights of a model."""
    if make is not None:
        _check_unset(config, "optimizer", "optimizer", "learning_rate", "score_rate_factor", "weight_decay")
        if not callable(make):
            hint = 'TrainConfig(optimizer="adamw")' if isinstance(make, str) else "partial(torch.optim.SGD, lr=0.1)"
            raise TypeError(f"optimizer: expected a function of the parameters, got {_described(make)}; give {hint}")
        optimizer = make(list(model.parameters()))
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer: expected to return a torch.optim.Optimizer, got {type(optimizer).__name__}")
        closure = inspect.signature(type(optimizer).step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            name = type(optimizer).__name__
            raise ValueError(f"optimizer: {name} evaluates the loss several times a step, which fit does not support")
        return optimizer
    rate = config.learning_rate
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if config.score_rate_factor != 1.0:
        scores = [head for head, _ in model.head.parts(model.features) if not head.normalised]
        of_scores = {id(weight): weight for head in scores for weight in head.parameters()}
        groups = [
            {"params": [weight for weight in model.parameters() if id(weight) not in of_scores]},
            {"params": list(of_scores.values()), "lr": rate * config.score_rate_factor},
        ]
    if config.optimizer == "muon":
        matrices = {id(weight) for weight in hidden_matrices(model)}
        parts = [
            {**group, "params": [w for w in group["params"] if (id(w) in matrices) == apart], "matrices": apart}
            for group in groups
            for apart in (False, True)
        ]
        return Muon([part for part in parts if part["params"]], rate, config.weight_decay)
    if config.optimizer == "adamw":
        return AdamW(groups, lr=rate, weight_decay=config.weight_decay, fused=True)
    return Adam(groups, lr=rate, fused=True)


def build_scheduler(optimizer: Optimizer, config: TrainConfig, make: MakeScheduler | None) -> LRScheduler | None:
    """Return a custom scheduler, if there is one."""
    if make is None:
        return None
    _check_unset(config, "scheduler", "schedule", "warmup_steps")
    if not callable(make):
        hint = 'TrainConfig(schedule="cosine")' if isinstance(make, str) else "partial(StepLR, step_size=100)"
        raise TypeError(f"scheduler: expected a function of the optimizer, got {_described(make)}; give {hint}")
    scheduler = make(optimizer)
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(f"scheduler: expected to return an LRScheduler of torch, got {type(scheduler).__name__}")
    return scheduler


def _described(value: object) -> str:
    return repr(value) if isinstance(value, str) else f"an instance of {type(value).__name__}"


def _check_unset(config: TrainConfig, argument: str, *settings: str) -> None:
    """Check that a configuration does not change what a custom optimizer or scheduler decides."""
    for name in settings:
        if getattr(config, name) != type(config).model_fields[name].default:
            raise ValueError(f"{argument}: decides what config.{name} says; leave config.{name} out")


def averaging(decay: float) -> Callable[..., None]:
    """Return the update of an exponential moving average with decay warm-up, for ``AveragedModel``."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        warm = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        torch._foreach_lerp_(averaged, current, 1.0 - warm)

    return update
