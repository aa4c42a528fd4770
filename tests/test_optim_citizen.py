"""These optimizers under what is written for torch's: schedulers, scaler, hooks, checkpoints."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from treadle.errors import UsageError
from treadle.optim import (
    SGD,
    SOAP,
    Adam,
    Adan,
    Lion,
    Lookahead,
    Muon,
    NAdam,
    Optimizer,
    OptimWrapper,
    Rule,
    ScheduleFreeAdamW,
    adamw_steppers,
    param_rules,
    sgd_step,
)

pytestmark = pytest.mark.filterwarnings("ignore:stepper (muon|soap).*one by one:UserWarning")

Make = Callable[[Any], Optimizer]
MAKERS: dict[str, Make] = {
    "sgd": partial(SGD, lr=0.1, mom=0.9),
    "adam": partial(Adam, lr=0.1),
    "lion": partial(Lion, lr=0.1),
    "nadam": partial(NAdam, lr=0.1),
    "adan": partial(Adan, lr=0.1),
    "schedule-free": partial(ScheduleFreeAdamW, lr=0.1),
    "muon": partial(Muon, lr=0.1),
    "soap": partial(SOAP, lr=0.1),
    "lookahead": lambda ps: Lookahead(Adam(ps, lr=0.1), k=2),
}
NAMES = pytest.mark.parametrize("name", MAKERS)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def give_grads(model: nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw)


def train(model: nn.Module, opt: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        give_grads(model, seed)
        opt.step()


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(map(torch.equal, a.parameters(), b.parameters()))


class TestSchedulers:
    @NAMES
    @pytest.mark.parametrize(
        "make_schedule",
        [
            partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda i: 1 / (1 + i)),
            partial(
                torch.optim.lr_scheduler.OneCycleLR,
                max_lr=1.0,
                total_steps=12,
                cycle_momentum=False,
            ),
        ],
        ids=["lambda", "one-cycle"],
    )
    def test_every_group_has_the_lr_that_torchs_has(self, name: str, make_schedule: Any) -> None:
        model, other = net(), net()
        mine, theirs = MAKERS[name](model.parameters()), torch.optim.SGD(other.parameters(), lr=0.1)
        schedules = make_schedule(mine), make_schedule(theirs)
        for i in range(8):
            train(model, mine, range(i, i + 1))
            theirs.step()
            for schedule in schedules:
                schedule.step()
            assert {h["lr"] for h in mine.hypers} == {theirs.param_groups[0]["lr"]}

    @NAMES
    def test_reduce_on_plateau(self, name: str) -> None:
        opt = MAKERS[name](net().parameters())
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=0)
        for loss in (1.0, 1.0, 1.0):
            schedule.step(loss)
        assert {h["lr"] for h in opt.hypers} == {0.025}
        again = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, factor=0.5, patience=0)
        again.load_state_dict(schedule.state_dict())
        again.step(1.0)
        assert {h["lr"] for h in opt.hypers} == {0.0125}

    def test_the_momentum_of_one_cycle_is_called_mom_here(self) -> None:
        with pytest.raises(ValueError, match="momentum"):
            torch.optim.lr_scheduler.OneCycleLR(MAKERS["sgd"](net().parameters()), 1.0, 10)


class TestGradScaler:
    @NAMES
    def test_an_inf_is_no_step_and_the_rest_is_unscaled(self, name: str) -> None:
        model, plain = net(), net()
        opt, other = MAKERS[name](model.parameters()), MAKERS[name](plain.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
        for factor in (1.0, float("inf"), 1.0):
            opt.zero_grad()
            scaler.scale((model(x) ** 2).mean() * factor).backward()
            scaler.step(opt)
            scaler.update()
        for _ in range(2):
            other.zero_grad()
            (plain(x) ** 2).mean().backward()
            other.step()
        assert scaler.get_scale() == 4.0
        assert same(model, plain)


class TestHooks:
    @NAMES
    def test_around_the_step_each_once(self, name: str) -> None:
        model = net()
        opt = MAKERS[name](model.parameters())
        start = copy.deepcopy(model)
        seen: list[Any] = []
        opt.register_step_pre_hook(lambda o, args, kwargs: seen.append(("pre", same(model, start))))
        opt.register_step_post_hook(
            lambda o, args, kwargs: seen.append(("post", same(model, start)))
        )
        train(model, opt, range(2))
        assert [when for when, _ in seen] == ["pre", "post"] * 2
        assert seen[0] == ("pre", True)
        assert seen[-1] == ("post", False)

    def test_a_pre_hook_may_change_the_hypers(self) -> None:
        model = net()
        before = copy.deepcopy(model)
        opt = SGD(model.parameters(), lr=0.1)
        opt.register_step_pre_hook(lambda o, args, kwargs: o.set_hyper("lr", 0.0))
        train(model, opt, range(1))
        assert same(model, before)


class TestDistributedCheckpoint:
    """get/set_optimizer_state_dict, which go by the names of the module's parameters."""

    @NAMES
    @pytest.mark.parametrize("flat", [False, True])
    def test_it_is_got_and_set(self, name: str, flat: bool) -> None:
        if flat and name in ("muon", "soap"):
            pytest.skip("torch flattens no text, and the groups of these recipes have names")
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        model, resumed = net(), net()
        opt, again = MAKERS[name](model.parameters()), MAKERS[name](resumed.parameters())
        train(model, opt, range(3))
        saved = get_optimizer_state_dict(model, opt, options=options)
        if not flat:
            assert set(saved["state"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}
        resumed.load_state_dict(model.state_dict())
        set_optimizer_state_dict(resumed, again, copy.deepcopy(saved), options=options)
        train(model, opt, range(3, 6))
        train(resumed, again, range(3, 6))
        assert same(model, resumed)

    def test_named_parameters(self) -> None:
        model, resumed = net(), net()
        opt = Adam(model.named_parameters(), lr=0.1)
        again = Adam(list(reversed(list(resumed.named_parameters()))), lr=0.1)
        train(model, opt, range(3))
        saved = get_optimizer_state_dict(model, opt)
        resumed.load_state_dict(model.state_dict())
        set_optimizer_state_dict(resumed, again, saved)
        train(model, opt, range(3, 5))
        train(resumed, again, range(3, 5))
        assert same(model, resumed)


class TestStateByName:
    def opt(self, model: nn.Module, **kwargs: Any) -> Optimizer:
        return Adam(model.named_parameters(), lr=0.1, **kwargs)

    def saved(self, model: nn.Module) -> dict[str, Any]:
        opt = self.opt(model)
        train(model, opt, range(1))
        return opt.state_dict()

    def test_missing_and_extra_parameters(self) -> None:
        deeper = nn.Sequential(*net(), nn.Linear(2, 2))
        with pytest.raises(UsageError, match=r"missing: 3.weight, 3.bias; not expected: none"):
            self.opt(deeper).load_state_dict(self.saved(net()))
        with pytest.raises(UsageError, match=r"missing: none; not expected: 3.weight, 3.bias"):
            self.opt(net()).load_state_dict(self.saved(deeper))

    def test_a_reshaped_parameter(self) -> None:
        wider = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))
        opt = self.opt(wider)
        with pytest.raises(
            UsageError,
            match=r"grad_avg of parameter 2.weight was saved with shape \(2, 4\), but .* \(5, 4\)",
        ):
            opt.load_state_dict(self.saved(net()))
        assert opt.state_dict()["state"] == {}
        unnamed = Adam(wider.parameters(), lr=0.1)
        with pytest.raises(UsageError, match=r"parameter 2 of its group \(of shape \(5, 4\)\)"):
            unnamed.load_state_dict(self.saved(net()))

    @NAMES
    def test_stats_of_a_shape_of_their_own_are_loaded(self, name: str) -> None:
        model, resumed = net(), net()
        opt = MAKERS[name](model.named_parameters())
        train(model, opt, range(3))
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        file.seek(0)
        again = MAKERS[name](resumed.named_parameters())
        again.load_state_dict(torch.load(file, weights_only=True))
        resumed.load_state_dict(model.state_dict())
        train(model, opt, range(3, 5))
        train(resumed, again, range(3, 5))
        assert same(model, resumed)

    def test_rules_are_matched_by_name_too(self) -> None:
        model, resumed = net(), net()
        rules = (Rule(name="0.*", cbs=sgd_step), Rule(name="2.*", do_wd=False))
        opt, again = (
            Optimizer(
                param_rules(m, *rules),
                adamw_steppers,
                lr=0.1,
                mom=0.9,
                sqr_mom=0.9,
                eps=1e-3,
                wd=0.1,
            )
            for m in (model, resumed)
        )
        train(model, opt, range(2))
        again.load_state_dict(opt.state_dict())
        resumed.load_state_dict(model.state_dict())
        train(model, opt, range(2, 4))
        train(resumed, again, range(2, 4))
        assert same(model, resumed)


def make(kind: str, model: nn.Module) -> Any:
    if kind == "ours":
        return Adam(model.parameters(), lr=0.01, sqr_mom=0.999, eps=1e-8)
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def test_accelerate_prepares_it() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    ends = []
    for kind in ("ours", "torch"):
        model = net()
        opt = make(kind, model)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
        schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: 1 / (1 + i))
        model, opt, schedule = accelerator.prepare(model, opt, schedule)
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
        for i in range(6):
            with accelerator.accumulate(model):
                accelerator.backward((model(x + i) ** 2).mean())
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                opt.step()
                schedule.step()
                opt.zero_grad()
        saved = opt.state_dict()
        opt.load_state_dict(saved)
        ends.append(list(model.parameters()))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore")  # Lightning's own, about workers and loggers
def test_lightning_trains_with_it(tmp_path: Any) -> None:
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Module(lightning.LightningModule):
        def __init__(self, kind: str) -> None:
            super().__init__()
            self.kind, self.model = kind, net()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            return (self.model(batch[0]) ** 2).mean()

        def configure_optimizers(self) -> Any:
            opt = make(self.kind, self.model)
            schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda i: 1 / (1 + i))
            return {"optimizer": opt, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(0))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=8)
    ends = []
    for kind in ("ours", "torch"):
        module = Module(kind)
        trainer = lightning.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=1.0,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader)
        trainer.save_checkpoint(tmp_path / f"{kind}.ckpt", weights_only=False)
        ends.append(list(module.parameters()))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b)


def test_a_wrapped_one_is_not_shut_off_from_torch() -> None:
    model = net()
    opt = OptimWrapper(model.parameters(), torch.optim.AdamW, lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(opt.opt, 1, 0.5)
    give_grads(model, 0)
    opt.step()
    schedule.step()
    assert opt.hypers[0]["lr"] == 0.05
    assert set(get_optimizer_state_dict(model, opt.opt)["state"]) == set(model.state_dict())
