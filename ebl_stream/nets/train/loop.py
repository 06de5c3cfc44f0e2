"""The training loop: every step follows from the recipe, the data and its number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ebl_stream.errors import InputError
from ebl_stream.nets.train import checkpoint
from ebl_stream.nets.train.adversarial import (
    Discriminator,
    discriminator_loss,
    generator_terms,
)
from ebl_stream.nets.train.lessons import Crops, Lessons
from ebl_stream.nets.train.recipe import Adversary, Recipe
from ebl_stream.nets.train.scores import Scores

_OnDevice = tuple[Tensor, Tensor, Tensor]


@dataclass
class Course:
    """How far a training has come; what a checkpoint says beside its tensors."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    stale: int = 0
    """Looks in a row that brought nothing better."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """By look: step, losses since the one before by name, held-out loss."""


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    state: dict[str, Tensor]
    """The weights that were best on the held-out slices, float32."""
    course: Course
    metrics: dict[str, float]
    stopped_early: bool


class Training:
    """Train a net, from the beginning or from the last checkpoint.

    Parameters
    ----------
    recipe : Recipe
    lessons : Lessons
    path : Path
        Of the checkpoint, which is written at every look at the held-out slices.
    start : dict of Tensor, optional
        Weights to begin with; without, new ones.
    device : str
        ``cpu`` or ``cuda``.
    key : str
        What else the weights follow from (the data's hash, the start's): a
        checkpoint of another training is refused.

    Raises
    ------
    InputError
        There is nothing to learn from, or the checkpoint is another training's.
    """

    def __init__(
        self,
        recipe: Recipe,
        lessons: Lessons,
        path: Path,
        *,
        start: dict[str, Tensor] | None = None,
        device: str = "cpu",
        key: str = "",
    ) -> None:
        self.recipe = recipe
        self.course = Course()
        architecture = recipe.architecture
        self._path = path
        self._key = f"{recipe.digest} {key}"
        self._device = torch.device(device)
        self._crops = Crops(
            lessons.train, architecture.depth, recipe.crop, architecture.multiple
        )
        self._scores = Scores(lessons.held, architecture, self._device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            net, judge = architecture.build(), _discriminator(recipe.adversary)
        if start is not None:
            net.load_state_dict(start)
        self._net, self._judge = self._placed(net), self._placed(judge)
        self._optimizer = torch.optim.Adam(self._net.parameters(), recipe.rate)
        self._judge_optimizer = torch.optim.Adam(self._judge.parameters(), recipe.rate)
        self._best = _copy(self._net)
        self._sums: dict[str, float] = {}
        if path.exists():
            self._resume()

    def run(self, report: Callable[[Course], None] = lambda course: None) -> Trained:
        """Train to the end; ``report`` is told after every look.

        Raises
        ------
        InputError
            The loss is no number any more.
        OSError
            A checkpoint cannot be written.
        """
        recipe, course = self.recipe, self.course
        while course.step < recipe.steps and not self._is_stale:
            self._step(course.step)
            course.step += 1
            if course.step % recipe.check_every == 0 or course.step == recipe.steps:
                self._look()
                self._save()
                report(course)
        net = recipe.architecture.build()
        net.load_state_dict(self._best)
        metrics = self._scores.gains(net.to(self._device))
        metrics |= {"held_out_loss": course.best_loss, "best_step": course.best_step}
        early = course.step < recipe.steps
        return Trained(self._best, course, metrics, early)

    def _placed(self, net: nn.Module) -> nn.Module:
        layout = torch.channels_last
        return net.to(self._device, memory_format=layout)  # pyright: ignore[reportCallIssue]

    @property
    def _is_stale(self) -> bool:
        return 0 < self.recipe.patience <= self.course.stale

    # ------------------------------------------------------------------ one step

    def _step(self, step: int) -> None:
        recipe = self.recipe
        for optimizer in (self._optimizer, self._judge_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate_at(step)
        # Each step has a random stream of its own: a resumed training draws the same.
        rng = np.random.default_rng([recipe.seed, step])
        seen, wanted, weights = self._batch(rng)
        adversary = recipe.adversary if recipe.has_adversary(step) else None
        if adversary is not None:
            for _ in range(adversary.steps):
                self._teach_judge(self._batch(rng), adversary)
        made = self._made(seen)
        terms = {"pixel": _pixel(made, wanted, weights, recipe.pixel)}
        if adversary is not None:
            self._judge.requires_grad_(False)
            terms |= generator_terms(self._judge, made, wanted, adversary)
            self._judge.requires_grad_(True)
        self._optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        self._optimizer.step()
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(term.detach())

    def _teach_judge(self, batch: _OnDevice, how: Adversary) -> None:
        seen, wanted, _ = batch
        with torch.no_grad():
            made = self._made(seen)
        loss = discriminator_loss(self._judge, made, wanted, how)
        self._judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._judge_optimizer.step()
        share = float(loss.detach()) / how.steps
        self._sums["discriminator"] = self._sums.get("discriminator", 0.0) + share

    def _batch(self, rng: np.random.Generator) -> _OnDevice:
        drawn = self._crops.batch(rng, self.recipe.batch)
        seen, wanted, weights = (torch.from_numpy(x).to(self._device) for x in drawn)
        return seen.contiguous(memory_format=torch.channels_last), wanted, weights

    def _made(self, seen: Tensor) -> Tensor:
        half = self.recipe.precision == "bfloat16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=half):
            return self._net(seen).float()

    # ------------------------------------------------------------------- looks

    def _look(self) -> None:
        """Note the losses, and keep the weights if they are the best so far."""
        recipe, course = self.recipe, self.course
        n = (course.step - 1) % recipe.check_every + 1
        held = self._scores.loss(self._net, recipe.pixel)
        if not math.isfinite(held):
            raise InputError(
                f"the loss is {held} after {course.step} steps: the data hold values "
                "that are no numbers, or the learning rate is too high"
            )
        means = {name: total / n for name, total in self._sums.items()}
        course.curve.append({"step": course.step, "held_out": held, **means})
        self._sums = {}
        last, best = course.step - 1, course.best_step - 1
        entered = recipe.has_adversary(last) and not recipe.has_adversary(best)
        # What was best without the adversary is no measure of what it teaches.
        if held < course.best_loss or entered:
            course.best_loss, course.best_step, course.stale = held, course.step, 0
            self._best = _copy(self._net)
        else:
            course.stale += 1

    # -------------------------------------------------------------- checkpoints

    def _save(self) -> None:
        tensors = {
            **checkpoint.named("net", self._net.state_dict()),
            **checkpoint.named("best", self._best),
            **checkpoint.named("judge", self._judge.state_dict()),
            **checkpoint.named("adam", checkpoint.of_optimizer(self._optimizer)),
            **checkpoint.named(
                "judge_adam", checkpoint.of_optimizer(self._judge_optimizer)
            ),
        }
        state: dict[str, Any] = {"key": self._key, "course": vars(self.course)}
        checkpoint.save(self._path, tensors, state)

    def _resume(self) -> None:
        tensors, state = checkpoint.load(self._path)
        if state.get("key") != self._key:
            raise InputError(
                f"{self._path} is the checkpoint of another training (other data or "
                "settings)\nchoose another --name or --out, or delete it"
            )
        try:
            self.course = Course(**state["course"])
            self._net.load_state_dict(checkpoint.part("net", tensors))
            self._judge.load_state_dict(checkpoint.part("judge", tensors))
            self._best = checkpoint.part("best", tensors)
            for name, optimizer in (
                ("adam", self._optimizer),
                ("judge_adam", self._judge_optimizer),
            ):
                checkpoint.to_optimizer(optimizer, checkpoint.part(name, tensors))
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise InputError(
                f"{self._path} is damaged; delete it to begin anew"
            ) from None


def _discriminator(adversary: Adversary | None) -> nn.Module:
    """Return the discriminator; nothing to train where there is none."""
    if adversary is None or not adversary.exists:
        return Discriminator(4, 1)
    return Discriminator(adversary.width, adversary.scales)


def _pixel(made: Tensor, wanted: Tensor, weights: Tensor, kind: str) -> Tensor:
    apart = made - wanted
    losses = apart.abs() if kind == "l1" else apart.square()
    return (weights * losses.mean((1, 2, 3))).mean()


def _copy(net: nn.Module) -> dict[str, Tensor]:
    """Return the weights as they are now, on the CPU."""
    return {
        name: value.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, value in net.state_dict().items()
    }
