"""Batch norms that do not train keep their statistics, too."""

from __future__ import annotations

from torch.nn.modules.batchnorm import _BatchNorm

from treadle.loop.events import Callback


class BnFreeze(Callback):
    """Keeps batch norms in evaluation mode whose parameters are all frozen: they normalise by
    their running statistics, and do not move them.

    `Learner(train_bn=True)`, the default, trains batch norms in frozen groups too; this callback
    serves with `train_bn=False`, or where you set `requires_grad` yourself. A batch norm without
    parameters cannot be frozen and is left alone.

    >>> freeze_statistics = BnFreeze()
    """

    run_after = "TrainEvalCallback"

    def before_train(self) -> None:
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                params = list(module.parameters())
                if params and not any(p.requires_grad for p in params):
                    module.eval()
