"""The training loop: from one state of a run to a later one, step by step."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from invflow import FlowSequential
from invflow.layers import FactorStore, check_weights
from sr_models.checkpoints.files import describe_file, save_model
from sr_models.data.crops import RandomCrops
from sr_models.data.failures import Failures
from sr_models.data.sampler import StepSampler
from sr_models.flow.model import SuperResolutionFlow
from sr_models.io.files import append_line
from sr_models.openmp import unbind
from sr_models.training.average import begin_average, share_of_new, update_average
from sr_models.training.best import better
from sr_models.training.checkpoints import Checkpoints, check_finite
from sr_models.training.config import TrainingConfig
from sr_models.training.device_step import DeviceStep, Outcome, fused_adam
from sr_models.training.distribution import (
    Strategy,
    any_error,
    collected,
    distribute,
    first_decides,
    largest,
    last_part_only,
    mean,
)
from sr_models.training.initialization import initialize_flow, whole_batch
from sr_models.training.monitor import Monitor
from sr_models.training.objective import Objective, Phase, advice, phases
from sr_models.training.state import Content, gather, gather_optimizer, like, model_of, restore_optimizer
from sr_models.training.stopping import Stopped, StopSignals, ignore_signals
from sr_models.training.validation import Validation

__all__ = ["Leader", "Loop"]


@dataclass
class Leader:
    """Duties of the first process alone: it writes, scores and shows."""

    checkpoints: Checkpoints
    monitor: Monitor
    validation: Validation | None


@dataclass
class _Open:
    """A step that the device takes, and that nobody has looked at yet.

    Attributes:
        phase, batch: what it trains.
        outcome: its figures.
        content: the state before it, to be written if it shows that the weights are good; ``None`` if not wanted.
    """

    phase: Phase
    batch: list[dict[str, Any]]
    outcome: Outcome
    content: Content | None


class Loop:
    """Take a run from one state to its end.

    Every process of a run has one. A phase is built anew from a state of whole tensors, as after an interruption.

    Args:
        config: settings of the run.
        fabric: the processes.
        strategy: how they share the model.
        data: crops of the whole run.
        output: folder of the run.
        workers: processes that prepare crops beside each training process.
        signals: what the operating system asks for.
        callbacks: called with the number of finished steps and the objective after every step.
        leader: the duties of the first process, ``None`` in others.
    """

    def __init__(
        self,
        config: TrainingConfig,
        fabric: Fabric,
        strategy: Strategy,
        data: RandomCrops,
        *,
        output: Path,
        workers: int,
        signals: StopSignals,
        callbacks: Sequence[Callable[[int, Objective], object]],
        leader: Leader | None,
    ) -> None:
        self.config = config
        self.fabric, self.strategy = fabric, strategy
        self.data, self.workers = data, workers
        self.output = output
        self.signals = signals
        self.callbacks = callbacks
        self.leader = leader
        self.failing = 0
        self.saved: int | None = None
        self.failures = Failures(len(data.listing.paths), strict=config.strict, say=self._say)
        self.has_flow = config.encoder_steps < config.recipe.steps
        self.open: _Open | None = None
        if config.graph == "always" and (reason := self._no_graph()):
            raise ValueError(f"graph must be 'auto' or 'never', got 'always': {reason}")

    def run(self, content: Content) -> Content:
        """Train from a state on and return the last one.

        Args:
            content: the same in every process. It is emptied, so that the memory does not hold its tensors twice.

        Raises:
            FloatingPointError: losses or gradients that are not finite for too many steps in a row.
            Stopped: a signal ended the run; its state was written.
        """
        for phase in phases(self.config):
            if content["step"] in phase.steps:
                if content["step"] == self.config.encoder_steps:
                    self._initialize(content)
                content = self._train(phase, content)
        return content

    def _initialize(self, content: Content) -> None:
        """Let the flow of a state begin."""
        device = self.fabric.device
        changed = first_decides(self.fabric, lambda: initialize_flow(content, self.config, self.data, device))
        content.update(changed)

    def _train(self, phase: Phase, content: Content) -> Content:
        self._restore(phase, content)
        content.clear()
        try:
            # closed, so that a failure leaves no workers behind
            with closing(self._batches(phase)) as batches:
                while batch := self._next(batches):
                    self._settle()
                    self._validate()
                    self._train_step(phase, batch)
                self._settle()
        except (FloatingPointError, Stopped):
            raise  # the state that led here is not worth keeping, or is written already
        except BaseException:
            self._rescue()
            raise
        return self._content()

    def _restore(self, phase: Phase, content: Content) -> None:
        """Build module, optimizer and average of a phase from a state."""
        model = model_of(content, average=False).train()
        for level in model.levels:
            assert isinstance(level, FlowSequential)
            level.memory = self.config.memory
        self.objective = Objective(model.to(self.fabric.device), self.config)
        self.objective.prepare(phase)
        if self.config.compile:
            self.objective.compile_losses()
        self.module = distribute(self.objective, phase, self.fabric, self.strategy)
        groups = [list(model.encoder.parameters()), list(model.levels.parameters())]
        decides = self._device_decides()
        self.optimizer = fused_adam(groups) if decides else torch.optim.Adam([{"params": group} for group in groups])
        restore_optimizer(content["optimizer"], self.optimizer, model)
        self.average = like(content["average"], model) if content["average"] else None
        if self.config.average and self.average is None:
            self.average = begin_average(model)
        average = self.average or {}
        parameters = dict(model.named_parameters())
        self.device_step = None
        if decides:
            self.device_step = DeviceStep(
                partial(self.objective.loss_of, phase.loss),
                self.optimizer,
                average=list(average.values()),
                averaged=[parameters[name] for name in average],
                clip=self.config.gradient_clip or math.inf,
                graph=self._makes_graph(model),
            )
        self.scaler = torch.amp.GradScaler(self.fabric.device.type, enabled=self.config.precision == "fp16")
        if content["scaler"]:
            self.scaler.load_state_dict(content["scaler"])
        self.skipped, self.best = content["skipped"], content["best"]
        self.step = content["step"]
        self.whole = True

    def _device_decides(self) -> bool:
        """Return whether the device alone takes a step: without gradients of other processes, or a scale of them."""
        alone = self.fabric.world_size == 1 and self.strategy != "fsdp"
        return self.fabric.device.type == "cuda" and alone and self.config.precision != "fp16"

    def _no_graph(self) -> str | None:
        """Return why steps cannot be replayed from a graph; ``None`` if they can."""
        if self.fabric.device.type != "cuda":
            return f"CUDA graphs need a CUDA device, not {self.fabric.device.type}"
        if not self._device_decides():
            return "processes that share gradients, and precision fp16, wait for the device in every step"
        if self.config.memory == "invert":
            return "memory invert compares reconstructed states in every step"
        return None

    def _makes_graph(self, model: SuperResolutionFlow) -> bool:
        """Return whether steps of a model are replayed from a graph.

        Raises:
            ValueError: the settings want one that cannot be.
        """
        if self.config.graph == "never" or self._no_graph():
            return False
        if not FactorStore.serves(model):
            if self.config.graph == "always":
                reason = "a weight of the model is no plain parameter"
                raise ValueError(f"graph must be 'auto' or 'never', got 'always': {reason}")
            return False
        return True

    def _content(self) -> Content:
        """Return the present state. Every process must take part."""
        return {
            **self._weights(),
            "optimizer": gather_optimizer(self.optimizer, self.objective.model),
            "scaler": self.scaler.state_dict() or None,
            "skipped": self.skipped,
        }

    def _weights(self) -> Content:
        """Return what :meth:`score` takes of the present state. Every process must take part."""
        model = self.objective.model
        return {
            "step": self.step,
            "description": json.dumps(describe_file(model)),
            "model": gather(model.state_dict()),
            "average": gather(self.average) if self.average else None,
            "best": self.best,
        }

    def _batches(self, phase: Phase) -> Generator[list[dict[str, Any]], None, None]:
        """Yield the parts of each step's batch that are this process's share."""
        parts = self.config.accumulate
        sampler = StepSampler(
            self.config.recipe.batch_size,
            range(self.step, phase.steps.stop),
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            parts=parts,
        )
        loader = DataLoader(
            self.data,
            batch_sampler=sampler,
            num_workers=self.workers,
            worker_init_fn=_begin_worker,
            pin_memory=self.fabric.device.type == "cuda",
        )
        numbered = zip(sampler, loader, strict=True)
        while batch := [{**part, "crops": crops} for crops, part in islice(numbered, parts)]:
            yield batch

    def _next(self, batches: Iterator[list[dict[str, Any]]]) -> list[dict[str, Any]] | None:
        """Return the next batch, if there is one. Every process must take part.

        Images that one process cannot read end all of them after a checkpoint, so that none waits for it.
        """
        batch, error = None, None
        try:
            batch = next(batches, None)
            for part in batch or ():
                self.failures.add(part["failed"])
        except Exception as caught:
            error = caught
        if (found := any_error(error, self.fabric)) is not None:
            if self.fabric.world_size > 1:
                self._save_together()
            if self.fabric.global_rank:
                raise SystemExit(0)  # the first process tells the user
            raise found
        return batch

    def _train_step(self, phase: Phase, batch: list[dict[str, Any]]) -> None:
        rates = self.config.learning_rates(self.step)
        self.rate = rates[0]  # the encoder has the flow's once that learns
        if self.device_step is not None:
            self._take(phase, batch, rates, self.device_step)
            return
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        loss = mean(self._backward(phase, batch), self.fabric)
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        if torch.isfinite(loss + norm):
            self.failing = 0
            if self.step and self.step % self.config.save_every == 0:
                self._save()  # the weights have just shown that they are good
            self._update(phase)
        else:
            self._skip(batch, loss, norm)
        self._after_step(phase, loss, norm)

    def _take(self, phase: Phase, batch: list[dict[str, Any]], rates: Sequence[float], device_step: DeviceStep) -> None:
        """Let the device take a step, which is looked at when the next batch is ready."""
        parts = [self.objective.inputs(hr, lr, crops, phase.loss) for hr, lr, crops in map(self._moved, batch)]
        content = None
        if self.step and self.step % self.config.save_every == 0 and self.leader:
            content = copy.deepcopy(self._content()) if self.fabric.device.type == "cpu" else self._content()
        weight = share_of_new(self.config.average, self._updates(phase)) if self.average else 0.0
        self.whole = False
        self.open = _Open(phase, batch, device_step(parts, rates, weight), content)

    def _settle(self) -> None:
        """Look at the step that the device has taken, if there is one. This waits for it."""
        if self.open is None:
            return
        opened, self.open = self.open, None
        loss, norm = opened.outcome
        fine = bool(torch.isfinite(loss + norm))
        self.whole = True
        if fine:
            self.failing = 0
            self.step += 1
            if opened.content is not None:
                self.write(opened.content)  # its weights have just shown that they are good
        else:
            self._skip(opened.batch, loss, norm)
        self._after_step(opened.phase, loss, norm)

    def _moved(self, part: dict[str, Any]) -> tuple[Tensor, Tensor, Sequence[int]]:
        """Return images on the device, and the numbers of their crops."""
        hr, lr = (part[name].to(self.fabric.device, non_blocking=True) for name in ("hr", "lr"))
        return hr, lr, part["crops"]

    def _updates(self, phase: Phase) -> int:
        """Return the number of updates of the average."""
        # of one loss: the average of the pretrained encoder soon follows what the likelihood makes of it
        return self.step if phase.loss == "l1" else self.step - self.config.encoder_steps

    def _backward(self, phase: Phase, batch: list[dict[str, Any]]) -> Tensor:
        """Accumulate the gradients of a batch's parts; return this process's mean loss."""
        self.optimizer.zero_grad()
        loss = torch.zeros((), device=self.fabric.device)
        for number, part in enumerate(batch, start=1):
            hr, lr, crops = self._moved(part)
            with last_part_only(self.module, number == len(batch)):
                part_loss = self.module(hr, lr, crops, phase.loss) / len(batch)
                self.scaler.scale(part_loss).backward()
            loss += part_loss.detach()
        return loss

    def _clip(self) -> Tensor:
        """Limit the gradient's norm as the settings say, and return what it was."""
        parameters = [parameter for parameter in self.objective.parameters() if parameter.grad is not None]
        norm = clip_grad_norm_(parameters, self.config.gradient_clip or math.inf)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def _update(self, phase: Phase) -> None:
        self.whole = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            update_average(self.average, self.objective.model, self.config.average, self._updates(phase))
        self.step += 1
        self.whole = True

    def _skip(self, batch: list[dict[str, Any]], loss: Tensor, norm: Tensor) -> None:
        """Leave out a step whose loss or gradient is not finite; end the run after too many in a row.

        Raises:
            FloatingPointError: too many.
            UnusableWeightError: a weight without an inverse is the reason.
        """
        if self.strategy != "fsdp":  # no process has whole weights
            check_weights(self.objective.model)
        scale = self.scaler.get_scale()
        self.scaler.update()
        if torch.isfinite(loss) and scale > 1:
            # no failure: the scale of gradients in float16 grows until one overflows, and is then halved
            self.step += 1
            return
        self.skipped += 1
        self.failing += 1
        what = "likelihood" if self.step >= self.config.encoder_steps else "encoder's L1 loss"
        what = what if not torch.isfinite(loss) else "gradient"
        paths = sorted(set(collected([path for part in batch for path in part["path"]], self.fabric)))
        if self.leader:
            # as text: JSON has no number for what is not finite
            record = {
                "step": self.step,
                "what": what,
                "loss": str(loss.item()),
                "norm": str(norm.item()),
                "paths": paths,
            }
            append_line(self.output / "skipped.jsonl", json.dumps(record))
            self._say(f"the {what} is not finite at step {self.step}; skipped ({', '.join(paths)})")
        if self.failing > self.config.max_skipped:
            hr = torch.cat([part["hr"] for part in batch])
            hint = advice(self.config, self.objective.model, hr, self.step)
            raise FloatingPointError(
                f"the {what} is not finite at step {self.step}, nor in the {self.failing - 1} before; {hint}; "
                "with it the same command goes on from the last checkpoint"
            )
        self.step += 1

    def _after_step(self, phase: Phase, loss: Tensor, norm: Tensor) -> None:
        if self.leader:
            self.leader.monitor.step(
                self.step - 1, {phase.loss: loss}, lr=self.rate, gradient_norm=norm, skipped=self.skipped
            )
        for callback in self.callbacks:
            callback(self.step, self.objective)
        if signal := largest(self.signals.received or 0, self.fabric):
            self._save_together()
            raise Stopped(signal, self.step, self.output)

    def _say(self, line: str) -> None:
        # every process reads its own files, so that each may have something to say
        if self.leader:
            self.leader.monitor.say(line)
        else:
            print(line, file=sys.stderr)

    def _save(self) -> None:
        """Write a checkpoint of the present state. Every process must take part."""
        # the parts of a model that is shared come from all processes; of others one copy in memory is enough
        if self.leader or self.strategy == "fsdp":
            self.write(self._content())

    def _save_together(self) -> None:
        """Write a checkpoint before the processes end: the end of one may end all, also while the first one writes."""
        self._save()
        self.saved = self.step
        self.fabric.barrier()

    def write(self, content: Content) -> None:
        """Write a checkpoint."""
        if self.leader:
            self.leader.checkpoints.write(content)

    def _rescue(self) -> None:
        """Write a checkpoint after an exception, if the state is that between two steps."""
        if self.open is not None:
            try:
                self._settle()
            except BaseException:  # the step that led here, or a signal, which has written the state
                return
        # other processes may not have failed, so nothing that needs them can be done
        if not self.whole or self.saved == self.step or (self.strategy == "fsdp" and self.fabric.world_size > 1):
            return
        try:
            self._save()
        except (OSError, FloatingPointError) as error:
            self._say(f"no checkpoint of step {self.step}: {error}")

    def _validate(self) -> None:
        """Score the weights if this step is one for it, and keep them if they are the best so far."""
        every = self.config.val_every
        if (self.has_flow and self.step == self.config.encoder_steps) or (self.step and self.step % every == 0):
            self.best = self.score(self._weights())

    def score(self, content: Content) -> dict[str, Any] | None:
        """Score the weights of a state, show the scores, and write the weights if they are the best so far.

        Args:
            content: the state; it need not hold the optimizer's. Every process takes part; the first one does the work.

        Returns:
            Name, value and step of the best figure so far; ``None`` if there is none.

        Raises:
            FloatingPointError: the weights are the best so far, but not all are finite.
        """
        return first_decides(self.fabric, lambda: self._score(content))

    def _score(self, content: Content) -> dict[str, Any] | None:
        best = content["best"]
        if self.leader and self.leader.validation:
            encoder_only = content["step"] < self.config.encoder_steps or not self.has_flow
            model = model_of(content, average=True).to(self.fabric.device)
            scores = self.leader.validation(model, self.fabric.device, encoder_only=encoder_only)
            self.leader.monitor.scores(content["step"], scores)
            if not encoder_only or not self.has_flow:  # an encoder's image is no sample of a flow, often much nearer
                best = better(best, self.config.best_figure, scores.figures, content["step"])
            if best is not content["best"]:
                check_finite(model.state_dict(), f"the best weights, after step {content['step']}")
                save_model(model.cpu(), self.output / "best.safetensors")
        return best

    @torch.no_grad()
    def check_final(self, content: Content) -> None:
        """Raise ``FloatingPointError`` if the weights of a state give a loss that is not finite for the last batch."""
        step = content["step"] - 1
        crops, batch = whole_batch(step, self.config, self.data, self.fabric.device)
        model = model_of(content, average=True).to(self.fabric.device)
        kind = "nll" if content["step"] > self.config.encoder_steps else "l1"
        if not torch.isfinite(Objective(model, self.config)(batch["hr"], batch["lr"], crops, kind)):
            hint = advice(self.config, model, batch["hr"], step if kind == "l1" else content["step"])
            raise FloatingPointError(f"the loss of the last weights is not finite; {hint}")


def _begin_worker(number: int) -> None:
    unbind()
    ignore_signals()
