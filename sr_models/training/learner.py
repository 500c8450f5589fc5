"""The part of a run that learns: weights, optimizer and average of a phase, and the computation of a step."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from invflow.layers import FactorStore
from sr_models.checkpoints.files import describe_file
from sr_models.flow.model import SuperResolutionFlow
from sr_models.training.average import begin_average, share_of_new, update_average
from sr_models.training.config import TrainingConfig
from sr_models.training.device_step import DeviceStep, Outcome, fused_adam
from sr_models.training.distribution import Strategy, distribute, last_part_only, mean
from sr_models.training.image_losses import ImageLosses
from sr_models.training.objective import Objective, Phase
from sr_models.training.state import Content, gather, gather_optimizer, like, model_of, restore_optimizer

__all__ = ["Batch", "Learner", "check_graph"]

#: Parts of a step's batch: ``hr``, ``lr``, numbers ``crops``, names ``path`` of the images, and more for the loop.
Batch = Sequence[dict[str, Any]]


def check_graph(config: TrainingConfig, fabric: Fabric, strategy: Strategy) -> None:
    """Raise ``ValueError`` if a run is to replay its steps from a CUDA graph, and cannot."""
    if config.graph == "always" and (reason := _no_graph(config, fabric, strategy)):
        raise ValueError(f"graph must be 'auto' or 'never', got 'always': {reason}")


class Learner:
    """Weights of a phase on their device, with all that a training step changes.

    Where the device decides whether the weights change, :meth:`take` is a step. Elsewhere :meth:`compute_gradients` and
    :meth:`update` are its halves, and the caller decides between them.

    Args:
        phase: says what learns.
        content: whole tensors of a state, the same in every process.
        config: settings of the run.
        fabric: the processes.
        strategy: how they share the model.

    Attributes:
        objective: computes the loss.
        device_decides: whether :meth:`take` is a step.

    Raises:
        ValueError: the settings want a CUDA graph of a model that allows none.
    """

    def __init__(
        self, phase: Phase, content: Content, config: TrainingConfig, fabric: Fabric, strategy: Strategy
    ) -> None:
        self.phase, self.config, self.fabric = phase, config, fabric
        model = model_of(content, average=False).train()
        for flow in model.flows():
            flow.memory = config.memory
        self.objective = Objective(model.to(fabric.device), config)
        self.objective.prepare(phase)
        if config.compile:
            self.objective.compile_losses()
        self._module = distribute(self.objective, phase, fabric, strategy)
        groups = [list(parameters.values()) for parameters in model.parameters_of_parts()]
        betas = 0.9, config.recipe.beta2
        self.device_decides = device_decides(config, fabric, strategy)
        if self.device_decides:
            self._optimizer = fused_adam(groups, betas)
        else:
            self._optimizer = torch.optim.Adam([{"params": group} for group in groups], betas=betas)
        restore_optimizer(content["optimizer"], self._optimizer, model)
        self._average = like(content["average"], model) if content["average"] else None
        if config.average and self._average is None:
            self._average = begin_average(model)
        self._scaler = torch.amp.GradScaler(fabric.device.type, enabled=config.precision == "fp16")
        if content["scaler"]:
            self._scaler.load_state_dict(content["scaler"])
        self._images = ImageLosses(config, fabric.device, content.get("adversary"))
        if self._images.adversary is not None and fabric.world_size > 1:
            raise ValueError(
                "adversarial_weight must be 0 with several devices: every one would have its own adversary"
            )
        self._parts: list[tuple[Tensor, Tensor, Sequence[int]]] = []
        self._device_step = self._make_device_step(model, _makes_graph(model, config, fabric, strategy))

    def take(self, batch: Batch, rates: Sequence[float], step: int) -> Outcome:
        """Let the device take a step, without waiting for it.

        Args:
            batch: the parts of the step's batch, all of one shape.
            rates: learning rates of encoder and levels.
            step: number of the step.
        """
        assert self._device_step is not None
        parts = [self.objective.inputs(hr, lr, crops, self.phase.loss) for hr, lr, crops in map(self._moved, batch)]
        weight = share_of_new(self.config.average, self._updates(step)) if self._average else 0.0
        return self._device_step(parts, rates, weight)

    def compute_gradients(self, batch: Batch, rates: Sequence[float]) -> Outcome:
        """Compute the clipped gradients of a step, and return the mean loss of all processes; arguments as above."""
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        # once: losses of images, too, are of this batch
        self._parts = [self._moved(part) for part in batch]
        self._optimizer.zero_grad()
        self._take_carried()
        loss = mean(self._backward(), self.fabric)
        self._scaler.unscale_(self._optimizer)
        return Outcome(loss, self._clip())

    def update(self, step: int) -> None:
        """Change weights and average by the gradients of this step."""
        if step >= self.config.discriminator_steps:
            self._scaler.step(self._optimizer)
            self._scaler.update()
        if self.phase.loss == "nll":
            self._update_by_images(step)
        if self._average is not None:
            update_average(self._average, self.objective.model, self.config.average, self._updates(step))

    def skip(self) -> float:
        """Leave out the update of a step, and return the number by which the loss was multiplied."""
        scale = self._scaler.get_scale()
        self._scaler.update()
        return scale

    def weights(self) -> Content:
        """Return the model's part of the present state. Every process must take part."""
        model = self.objective.model
        return {
            "description": json.dumps(describe_file(model)),
            "model": gather(model.state_dict()),
            "average": gather(self._average) if self._average else None,
        }

    def content(self) -> Content:
        """Return all of the present state that a step changes. Every process must take part."""
        return {
            **self.weights(),
            "optimizer": gather_optimizer(self._optimizer, self.objective.model),
            "scaler": self._scaler.state_dict() or None,
            "adversary": self._images.state(),
        }

    def _make_device_step(self, model: SuperResolutionFlow, graph: bool) -> DeviceStep | None:
        if not self.device_decides:
            return None
        average = self._average or {}
        parameters = dict(model.named_parameters())
        return DeviceStep(
            partial(self.objective.loss_of, self.phase.loss),
            self._optimizer,
            average=list(average.values()),
            averaged=[parameters[name] for name in average],
            clip=self.config.recipe.gradient_clip or math.inf,
            graph=graph,
        )

    def _moved(self, part: dict[str, Any]) -> tuple[Tensor, Tensor, Sequence[int]]:
        """Return images on the device, and the numbers of their crops."""
        hr, lr = (part[name].to(self.fabric.device, non_blocking=True) for name in ("hr", "lr"))
        return hr, lr, part["crops"]

    def _updates(self, step: int) -> int:
        """Return the number of updates of the average."""
        # of one loss: the average of the pretrained encoder soon follows what the likelihood makes of it
        return step if self.phase.loss == "l1" else step - self.config.encoder_steps

    def _backward(self) -> Tensor:
        """Accumulate the gradients of the batch's parts; return this process's mean loss."""
        weight = 1.0 if self.phase.loss == "l1" else self.config.recipe.nll_weight
        loss = torch.zeros((), device=self.fabric.device)
        for number, (hr, lr, crops) in enumerate(self._parts, start=1):
            with last_part_only(self._module, number == len(self._parts)):
                part_loss = self._module(hr, lr, crops, self.phase.loss) / len(self._parts)
                self._scaler.scale(weight * part_loss).backward()
            loss += part_loss.detach()
        return loss

    def _update_by_images(self, step: int) -> None:
        """Take the updates by losses of decoded images, each where its loss and gradient are finite."""
        losses, learns = self._images, step >= self.config.discriminator_steps
        for name in losses.names:
            self._optimizer.zero_grad()
            total = torch.zeros((), device=self.fabric.device)
            pairs: list[tuple[Tensor, Tensor]] = []
            for number, (hr, lr, crops) in enumerate(self._parts, start=1):
                with last_part_only(self._module, number == len(self._parts)), torch.set_grad_enabled(learns):
                    images = self._module(hr, lr, crops, name)
                    pairs.append((hr, images.detach()))
                    if learns:
                        loss = losses(name, images, hr) / len(self._parts)
                        loss.backward()
                        total += loss.detach()
            if learns and torch.isfinite(mean(total, self.fabric) + self._clip()):
                self._optimizer.step()
            if name == "sample" and losses.adversary is not None:
                losses.adversary.learn(pairs, self.config.discriminator_rate(step))
        if self.config.recipe.carry_gradient:
            self._carry()

    def _carry(self) -> None:
        """Keep the present gradient for the next step, among what the optimizer knows of every parameter."""
        for parameter in self.objective.parameters():
            if parameter.grad is not None and parameter.grad.isfinite().all():
                self._optimizer.state[parameter]["carried"] = parameter.grad
        self._optimizer.zero_grad()

    def _take_carried(self) -> None:
        for parameter, state in self._optimizer.state.items():
            carried = state.pop("carried", None)
            if carried is not None and parameter.requires_grad:
                parameter.grad = carried

    def _clip(self) -> Tensor:
        """Limit the gradient's norm as the settings say, and return what it was."""
        parameters = [parameter for parameter in self.objective.parameters() if parameter.grad is not None]
        recipe = self.config.recipe
        if recipe.value_clip:
            clip_grad_value_(parameters, recipe.value_clip)
        norm = clip_grad_norm_(parameters, recipe.gradient_clip or math.inf)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def device_decides(config: TrainingConfig, fabric: Fabric, strategy: Strategy) -> bool:
    """Return whether the device alone takes a step: one update, without gradients of other processes or their scale."""
    alone = fabric.world_size == 1 and strategy != "fsdp" and config.recipe.is_plain
    return fabric.device.type == "cuda" and alone and config.precision != "fp16"


def _no_graph(config: TrainingConfig, fabric: Fabric, strategy: Strategy) -> str | None:
    """Return why steps cannot be replayed from a graph; ``None`` if they can."""
    if fabric.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, not {fabric.device.type}"
    if not device_decides(config, fabric, strategy):
        return "processes that share gradients, precision fp16, and losses of images wait for the device in every step"
    if config.memory == "invert":
        return "memory invert compares reconstructed states in every step"
    return None


def _makes_graph(model: SuperResolutionFlow, config: TrainingConfig, fabric: Fabric, strategy: Strategy) -> bool:
    """Return whether steps of a model are replayed from a graph.

    Raises:
        ValueError: the settings want one that cannot be.
    """
    if config.graph == "never" or _no_graph(config, fabric, strategy):
        return False
    if not FactorStore.serves(model):
        if config.graph == "always":
            reason = "a weight of the model is no plain parameter"
            raise ValueError(f"graph must be 'auto' or 'never', got 'always': {reason}")
        return False
    return True
