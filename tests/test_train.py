"""Training: gradients, bits, stops, checkpoints."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import discs
from torch import nn

from ebl_stream.errors import InputError
from ebl_stream.nets.architecture import Architecture
from ebl_stream.nets.train.adversarial import Discriminator
from ebl_stream.nets.train.lessons import Lessons, Stack, of_halves
from ebl_stream.nets.train.loop import Training
from ebl_stream.nets.train.recipe import Adversary, Recipe

TINY = Architecture(kind="fast", depth=1, width=4)
RECIPE = Recipe(
    kind="noise2inverse", architecture=TINY, steps=6, batch=2, crop=16, check_every=2
)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def halves_of(seed: int, noise: float = 0.7) -> Stack:
    """Two noisy halves of blobs, whose truth is known."""
    truth = discs(seed)
    rng = np.random.default_rng([seed, 1])
    a, b = (truth + noise * rng.standard_normal(truth.shape) for _ in "ab")
    half = ((a + b) / 2, (a - b) / 2)
    return of_halves("discs", *(x.astype(np.float32) for x in half), truth=truth)


@pytest.fixture(scope="module")
def lessons():
    return Lessons(tuple(map(halves_of, range(4))), (halves_of(90),))


def weights_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def bits(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return digest.hexdigest()


# ------------------------------------------------------------------- what it does


def test_it_learns_from_noise_alone(lessons, tmp_path: Path):
    recipe = RECIPE.model_copy(
        update={"steps": 120, "crop": 32, "batch": 4, "check_every": 30, "rate": 5e-3}
    )
    trained = Training(recipe, lessons, tmp_path / "c").run()
    assert trained.metrics["gain_db discs"] > 3
    curve = [row["held_out"] for row in trained.course.curve]
    assert curve[-1] < 0.8 * curve[0]


@pytest.mark.parametrize(
    ("terms", "adversary"),
    [
        ({"pixel"}, None),
        ({"pixel", "adversarial"}, {"weight": 5.0, "features": 0.0}),
        ({"pixel", "features"}, {"weight": 0.0, "features": 5.0}),
    ],
)
@pytest.mark.parametrize("loss", ["bce", "hinge"])
def test_each_term_alone_moves_the_generator(
    lessons, tmp_path: Path, monkeypatch, terms, adversary, loss
):
    """With the pixel loss taken away, what is left must still change the weights."""
    how = Adversary(**adversary, loss=loss, pretrain=0) if adversary else None
    training = Training(
        RECIPE.model_copy(update={"adversary": how, "kind": "tomogan"}),
        lessons,
        tmp_path / "c",
    )
    if adversary:
        nothing = "ebl_stream.nets.train.loop._pixel"
        monkeypatch.setattr(nothing, lambda made, *_: 0 * made.mean())
    before = weights_of(training._net)
    training._step(0)
    assert training._sums.keys() - {"discriminator"} == terms
    moved = [
        name
        for name, value in training._net.state_dict().items()
        if not torch.equal(value, before[name])
    ]
    assert {name.split(".")[0] for name in moved} == {"down", "middle", "up", "leave"}


def test_the_discriminator_learns_to_tell_and_the_generator_does_not_move_it(
    lessons, tmp_path: Path
):
    how = Adversary(weight=1.0, features=1.0, pretrain=0.5)
    recipe = RECIPE.model_copy(update={"adversary": how, "steps": 60})
    training = Training(recipe, lessons, tmp_path / "c")
    before = weights_of(training._judge)
    training._step(29)  # still without
    assert bits(before) == bits(weights_of(training._judge))
    training._teach_judge = lambda *_: None  # type: ignore[method-assign]
    training._step(30)
    assert bits(before) == bits(weights_of(training._judge))
    del training._teach_judge
    losses = []
    for step in range(30, 60):
        training._sums.clear()
        training._step(step)
        losses.append(training._sums["discriminator"])
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (65, 129)])
def test_the_discriminator_takes_any_size(size):
    judge = Discriminator(4, 3)
    logits, seen = judge(torch.zeros(2, 1, *size))
    assert logits.ndim == 4
    assert len(seen) == 4


def test_the_same_recipe_gives_the_same_bits(lessons, tmp_path: Path):
    states = []
    for name in "ab":
        torch.manual_seed(len(states))  # whatever was drawn before
        states.append(Training(RECIPE, lessons, tmp_path / name).run().state)
    assert bits(states[0]) == bits(states[1])
    other = RECIPE.model_copy(update={"seed": 1})
    assert bits(Training(other, lessons, tmp_path / "o").run().state) != bits(states[0])


def test_learning_rate_falls_along_the_cosine():
    rates = [RECIPE.rate_at(step) for step in range(7)]
    assert rates[0] == RECIPE.rate
    assert rates[3] == pytest.approx(0.505 * RECIPE.rate)
    assert rates[6] == pytest.approx(0.01 * RECIPE.rate)
    constant = RECIPE.model_copy(update={"schedule": "constant"})
    assert {constant.rate_at(step) for step in range(7)} == {RECIPE.rate}


# ------------------------------------------------------------------ when it stops


def test_it_stops_where_the_held_out_loss_rises_and_keeps_the_best(tmp_path: Path):
    """What is wanted of the held-out slices is the opposite of what is taught."""
    stack = halves_of(0)
    opposite = Stack("no", tuple((see, -want) for see, want in stack.ways))
    recipe = RECIPE.model_copy(
        update={"steps": 1000, "patience": 3, "check_every": 10, "rate": 1e-2}
    )
    trained = Training(recipe, Lessons((stack,), (opposite,)), tmp_path / "c").run()
    curve = [row["held_out"] for row in trained.course.curve]
    best = int(np.argmin(curve))
    assert trained.stopped_early
    assert trained.course.best_step == trained.course.curve[best]["step"]
    assert len(curve) == best + 1 + 3
    again = recipe.model_copy(update={"steps": 1000, "patience": 0})
    again = Training(again, Lessons((stack,), (opposite,)), tmp_path / "d")
    while again.course.step < trained.course.best_step:
        again._step(again.course.step)
        again.course.step += 1
    assert bits(weights_of(again._net)) == bits(trained.state)


def test_what_was_best_before_the_adversary_entered_is_not_kept(
    lessons, tmp_path: Path
):
    how = Adversary(weight=100.0, pretrain=0.5)
    recipe = RECIPE.model_copy(
        update={"adversary": how, "steps": 40, "check_every": 5, "rate": 1e-2}
    )
    trained = Training(recipe, lessons, tmp_path / "c").run()
    curve = {row["step"]: row["held_out"] for row in trained.course.curve}
    assert trained.course.best_step > 20
    assert min(curve.values()) < trained.course.best_loss


def test_data_that_are_no_numbers_end_the_training(tmp_path: Path):
    stack = halves_of(0)
    stack.ways[0][0][:] = np.nan
    with pytest.raises(InputError, match="the loss is nan after 2 steps"):
        Training(RECIPE, Lessons((stack,), (stack,)), tmp_path / "c").run()


# -------------------------------------------------------------------- checkpoints


def test_a_checkpoint_of_another_training_is_refused(lessons, tmp_path: Path):
    path = tmp_path / "c"
    Training(RECIPE, lessons, path, key="data").run()
    for recipe, key in (
        (RECIPE.model_copy(update={"rate": 1e-4}), "data"),
        (RECIPE, "other data"),
    ):
        with pytest.raises(InputError, match="another training"):
            Training(recipe, lessons, path, key=key)
    assert Training(RECIPE, lessons, path, key="data").course.step == 6


def test_bad_checkpoints_are_one_clear_error_and_nothing_is_unpickled(
    lessons, tmp_path: Path
):
    path = tmp_path / "c"
    Training(RECIPE, lessons, path).run()
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header["__metadata__"]["state"] = '{"key": 1, "key": 2}'
    doubled = json.dumps(header).encode()
    bad = {
        "short": whole[:-100],
        "empty": b"",
        "pickle": pickle.dumps(Trap()),
        "state": len(doubled).to_bytes(8, "little") + doubled + whole[8 + length :],
        "huge": (2**62).to_bytes(8, "little") + whole[8:],
    }
    for content in bad.values():
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a checkpoint"):
            Training(RECIPE, lessons, path)
    torch.save({"net": Trap()}, path)
    with pytest.raises(InputError, match="not a checkpoint"):
        Training(RECIPE, lessons, path)
    assert not Trap.sprung


class Trap:
    sprung = False

    def __reduce__(self):
        return (_spring, ())


def _spring():
    Trap.sprung = True
