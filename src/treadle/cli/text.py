"""The tasks of `treadle train` on texts: a language model, and a classifier of documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treadle.cli.images import digest
from treadle.cli.optimizers import find_recipe
from treadle.cli.processes import strategy
from treadle.errors import UsageError, nearest

if TYPE_CHECKING:
    from treadle.cli.train import TrainSettings
    from treadle.learner import Learner

ARCHS = ("awd_lstm", "gru", "lstm", "transformer")
LM = "lm"


class TextTask:
    """Trains on texts by the settled `args`; a `Task` of `treadle.cli.running`."""

    def __init__(self, args: TrainSettings) -> None:
        self.args = args
        self.name = f"{Path(args.path).stem or 'text'}-{args.arch}"

    def make_learner(self) -> Learner:
        """A language model, or a classifier, for the data."""
        from treadle.report import ReportCallback
        from treadle.text import language_model_learner, text_classifier_learner
        from treadle.text.folder import text_dataloaders

        args, is_lm = self.args, self.args.task == LM
        loaders = text_dataloaders(
            args.path,
            is_lm,
            global_bs=args.global_bs,
            seq_len=args.seq_len,
            seed=args.seed,
            device=args.device,
        )
        arch, config = _architecture(args.arch, args.hidden)
        make: Any = language_model_learner if is_lm else text_classifier_learner
        learn: Learner = make(
            loaders,
            arch,
            config=config,
            cbs=ReportCallback(),
            opt_func=find_recipe(args.opt),
            precision=args.precision,
            parallel=strategy(args),
            **({} if is_lm else {"seq_len": args.seq_len}),
        )
        return learn

    def greet(self, learn: Learner) -> str:
        """What is trained on what, in a line."""
        dls: Any = learn.dls
        of = f"{self.args.arch} on {learn.device}"
        if self.args.task == LM:
            train, valid = (dl.n_tokens for dl in dls)
            words = f"{len(dls.vocab):,} of them different"
            return f"{train:,} tokens to train on, {valid:,} to validate on, {words}; {of}"
        train, valid = (len(dl.dataset) for dl in dls)
        return f"{train:,} texts to train on, {valid:,} to validate on, {dls.c} classes; {of}"

    def describe(self, learn: Learner) -> dict[str, object]:
        """The data, so that others in their place are noticed."""
        from treadle.text.folder import text_files

        dls: Any = learn.dls
        path = Path(self.args.path)
        is_lm = self.args.task == LM
        return {
            "tokens": len(dls.vocab if is_lm else dls.vocab[0]),
            **({} if is_lm else {"classes": list(dls.vocab[1])}),
            "text_files": digest(text_files(path), path.parent if path.is_file() else path),
        }

    def fit(self, learn: Learner, cbs: Sequence[Any]) -> None:
        """One cycle."""
        assert self.args.lr
        learn.fit_one_cycle(self.args.epochs, self.args.lr, cbs=cbs)


def check_text(args: TrainSettings) -> None:
    """Refuse what cannot be meant for texts. Raises UsageError."""
    if args.path == type(args).path:
        raise UsageError(f"--task {args.task} needs the PATH of a .txt file or a folder of them.")
    if args.pretrained:
        raise UsageError(
            "--pretrained is for images: there are no trained weights for text to download."
        )
    if args.arch is not None and args.arch not in ARCHS:
        raise UsageError(f"--arch {args.arch} is unknown for texts; {nearest(args.arch, ARCHS)}")


def _architecture(name: str | None, hidden: int | None) -> tuple[Any, dict[str, Any]]:
    """What stands for `--arch`, and its numbers with `--hidden` features between the layers."""
    from treadle.text import AWD_LSTM, CausalTransformer, PlainRNN

    if name == "awd_lstm":
        numbers = {"n_hid": hidden, "emb_sz": max(round(hidden * 400 / 1152), 1)} if hidden else {}
        return AWD_LSTM, numbers
    if name == "transformer":
        return CausalTransformer, {"emb_sz": hidden} if hidden else {}
    return PlainRNN, {"kind": str(name).upper(), **({"n_hid": hidden} if hidden else {})}
