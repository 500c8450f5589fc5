"""The training loop: from one state of a run to a later one, step by step."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from invflow.layers import check_weights
from sr_models.checkpoints.files import save_model
from sr_models.data.crops import RandomCrops
from sr_models.data.failures import Failures
from sr_models.io.files import append_line
from sr_models.training.batches import step_batches
from sr_models.training.best import better
from sr_models.training.checkpoints import Checkpoints, check_finite
from sr_models.training.config import TrainingConfig
from sr_models.training.device_step import Outcome
from sr_models.training.distribution import Strategy, any_error, collected, first_decides, largest
from sr_models.training.initialization import initialize_flow, whole_batch
from sr_models.training.learner import Batch, Learner, check_graph
from sr_models.training.monitor import Monitor
from sr_models.training.objective import Objective, Phase, advice, phases
from sr_models.training.state import Content, model_of
from sr_models.training.stopping import Stopped, StopSignals
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
    batch: Batch
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
        check_graph(config, fabric, strategy)

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
            steps = range(self.step, phase.steps.stop)
            data = step_batches(self.data, self.config, self.fabric, steps=steps, workers=self.workers)
            with closing(data) as batches:
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
        content = self._content()
        del self.learner  # gives its memory back before the next one takes some
        return content

    def _restore(self, phase: Phase, content: Content) -> None:
        """Go on from a state in a phase."""
        self.learner = Learner(phase, content, self.config, self.fabric, self.strategy)
        self.skipped, self.best = content["skipped"], content["best"]
        self.step = content["step"]
        self.whole = True

    def _content(self) -> Content:
        """Return the present state. Every process must take part."""
        return {**self.learner.content(), **self._counts()}

    def _weights(self) -> Content:
        """Return what :meth:`score` takes of the present state. Every process must take part."""
        return {**self.learner.weights(), **self._counts()}

    def _counts(self) -> Content:
        return {"step": self.step, "skipped": self.skipped, "best": self.best}

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

    def _train_step(self, phase: Phase, batch: Batch) -> None:
        rates = self.config.learning_rates(self.step)
        self.rate = rates[0]  # the encoder has the flow's once that learns
        if self.learner.device_decides:
            self._begin_step(phase, batch, rates)
            return
        loss, norm = self.learner.compute_gradients(batch, rates)
        if torch.isfinite(loss + norm):
            self.failing = 0
            if self.step and self.step % self.config.save_every == 0:
                self._save()  # the weights have just shown that they are good
            self.whole = False
            self.learner.update(self.step)
            self.step += 1
            self.whole = True
        else:
            self._skip(batch, loss, norm)
        self._after_step(phase, loss, norm)

    def _begin_step(self, phase: Phase, batch: Batch, rates: Sequence[float]) -> None:
        """Let the device take a step, which is looked at when the next batch is ready."""
        content = None
        if self.step and self.step % self.config.save_every == 0 and self.leader:
            content = copy.deepcopy(self._content()) if self.fabric.device.type == "cpu" else self._content()
        self.whole = False
        self.open = _Open(phase, batch, self.learner.take(batch, rates, self.step), content)

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

    def _skip(self, batch: Batch, loss: Tensor, norm: Tensor) -> None:
        """Leave out a step whose loss or gradient is not finite; end the run after too many in a row.

        Raises:
            FloatingPointError: too many.
            UnusableWeightError: a weight without an inverse is the reason.
        """
        if self.strategy != "fsdp":  # no process has whole weights
            check_weights(self.learner.objective.model)
        if self.learner.skip() > 1 and torch.isfinite(loss):
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
            hint = advice(self.config, self.learner.objective.model, hr, self.step)
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
            callback(self.step, self.learner.objective)
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
