"""Events and callbacks: names that are checked, attributes that are found, an order that holds."""

from __future__ import annotations

import copy
import pickle
import warnings
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers import tiny_learner
from treadle.callbacks import ModelResetter, Recorder, RNNCallback, TerminateOnNaNCallback
from treadle.errors import CallbackError
from treadle.loop import Callback, CancelBatchException, event
from treadle.loop.events import LOOP_STATE
from treadle.loop.explain import OUTLINE
from treadle.loop.order import sort_callbacks

NAMES = [
    "after_create",
    "before_fit",
    "before_epoch",
    "before_train",
    "before_batch",
    "after_pred",
    "after_loss",
    "before_backward",
    "after_cancel_backward",
    "after_backward",
    "before_step",
    "after_cancel_step",
    "after_step",
    "after_cancel_batch",
    "after_batch",
    "after_cancel_train",
    "after_train",
    "before_validate",
    "after_cancel_validate",
    "after_validate",
    "after_cancel_epoch",
    "after_epoch",
    "after_cancel_fit",
    "after_fit",
]


def test_the_events_are_these_24():
    assert list(event) == NAMES
    assert event.before_fit == "before_fit"
    assert [line.strip() for line in OUTLINE.splitlines() if line.strip() in NAMES] == NAMES[1:]
    assert NAMES[0] == "after_create"  # outside of every fit


# Names of methods


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("before_ftt", "before_fit"),
        ("befor_fit", "before_fit"),
        ("after_bacth", "after_batch"),
        ("before_validation", "before_validate"),
        ("after_cancel_fits", "after_cancel_fit"),
        ("begin_step", "before_step"),
        ("beforeepoch", "before_epoch"),
    ],
)
def test_a_misspelt_event_is_refused_when_the_class_is_made(wrong, right):
    with pytest.raises(CallbackError, match=rf"Mine\.{wrong} looks like an event.*{right}\?"):
        type("Mine", (Callback,), {wrong: lambda self: None})


def test_a_misspelt_event_is_found_wherever_the_method_comes_from():
    class Mixin:
        def before_ftt(self):
            pass

    class Below(Mixin):
        pass

    for base in (Mixin, Below):
        with pytest.raises(CallbackError, match=r"Mixin\.before_ftt looks like.*before_fit\?"):
            type("Mine", (base, Callback), {})
    for method in (staticmethod(print), classmethod(print), len):
        with pytest.raises(CallbackError, match=r"Mine\.after_los looks like.*after_loss\?"):
            type("Mine", (Callback,), {"after_los": method})
    cb = Callback()
    cb.after_bach = print
    with pytest.raises(CallbackError, match=r"Callback\.after_bach looks like.*after_batch\?"):
        tiny_learner(cbs=cb)


def test_the_methods_of_a_mixin_are_heard():
    class Mixin:
        def after_fit(self):
            self.fits = self.learn.n_epoch

    with pytest.warns(DeprecationWarning, match="begin_fit: .* called before_fit") as seen:
        Old = type("Old", (), {"begin_fit": lambda self: None})
        Mine = type("Mine", (Mixin, Old, Callback), {})
    assert type("Below", (Mine,), {})  # has been warned of
    assert len(seen) == 1
    mine = Mine()
    tiny_learner(cbs=mine).fit(2)
    assert mine.fits == 2
    assert [name for name in NAMES if mine.hears(name)] == ["before_fit", "after_fit"]


def test_none_in_the_place_of_a_method_takes_it_away():
    Less = type("Less", (TerminateOnNaNCallback,), {"before_fit": None})
    assert not Less().hears("before_fit")
    with pytest.raises(CallbackError, match=r"Mine\.after_fit is an event, and 3 is no method"):
        type("Mine", (Callback,), {"after_fit": 3})


def test_what_only_an_inner_name_resembles_is_left_alone():
    class Fine(Callback):
        afterwards = 1
        before_long = "not a method"

        def fit_line(self):
            return 1

        def reset(self):
            return 2

        def _before_all(self):
            return 3

    assert Fine().fit_line() + Fine().reset() + Fine()._before_all() == 6


@pytest.mark.parametrize("phase", ["fit", "epoch", "train", "batch", "validate"])
def test_a_retired_name_works_and_says_todays(phase):
    calls = []
    with pytest.warns(
        DeprecationWarning, match=rf"begin_{phase}: .* called before_{phase}"
    ) as seen:
        Old = type("Old", (Callback,), {f"begin_{phase}": lambda self: calls.append(self.iter)})
    assert len(seen) == 1
    tiny_learner(cbs=Old()).fit(1)
    assert len(calls) == {"fit": 1, "epoch": 1, "train": 1, "batch": 11, "validate": 1}[phase]


def test_the_warning_points_at_the_class():
    with pytest.warns(DeprecationWarning) as seen:

        class Old(Callback):
            def begin_fit(self):
                pass

    assert seen[0].filename == __file__


def test_both_names_at_once_are_refused():
    with pytest.raises(CallbackError, match="has both begin_fit and before_fit"):

        class Both(Callback):
            def begin_fit(self):
                pass

            def before_fit(self):
                pass


def test_a_subclass_hears_what_its_parents_hear():
    class Parent(Callback):
        def after_fit(self):
            pass

    class Child(Parent):
        def before_fit(self):
            pass

    assert [name for name in NAMES if Child().hears(name)] == ["before_fit", "after_fit"]


# Functions as callbacks


def test_functions_serve_as_callbacks():
    seen = []
    cb = Callback(
        after_loss=lambda cb: seen.append(cb.loss.item()),
        after_fit=lambda cb: seen.append("end"),
    )
    learn = tiny_learner(cbs=cb)
    learn.fit(1)
    assert len(seen) == 8 + 3 + 1
    assert seen[:8] == pytest.approx(learn.recorder.raw_losses)
    assert seen[-1] == "end"


def test_several_of_functions_stand_side_by_side():
    seen = []
    learn = tiny_learner(cbs=[Callback(after_fit=lambda cb, i=i: seen.append(i)) for i in range(3)])
    learn.fit(1)
    assert seen == [0, 1, 2]


def test_a_function_for_no_event_is_refused():
    with pytest.raises(CallbackError, match=r"Callback\(after_los=...\).*after_loss\?"):
        Callback(after_los=print)


# Attributes


def test_reading_finds_the_learners():
    class Look(Callback):
        own = 1

        def after_loss(self):
            self.seen = (self.model, self.training, self.iter, self.recorder, self.own)

    look = Look()
    learn = tiny_learner(cbs=look)
    learn.fit(1)
    assert look.seen == (learn.model, False, 2, learn.recorder, 1)
    with pytest.raises(AttributeError, match=r"neither Look nor its learner has .*'nothing'"):
        _ = look.nothing
    with pytest.raises(AttributeError, match="Look has no attribute 'model'"):
        _ = Look().model
    with pytest.raises(AttributeError, match=r"'rnn'; that would be a RNNCallback, which was not"):
        _ = look.rnn


@pytest.mark.parametrize("name", sorted(LOOP_STATE))
def test_assigning_the_learners_on_the_callback_is_refused(name):
    cb = Callback()
    with pytest.raises(CallbackError, match=rf"self\.{name}, .*self\.learn\.{name} = \.\.\."):
        setattr(cb, name, 0)


def test_a_class_that_would_hide_the_learners_is_refused():
    for what in (None, 3, lambda self: None, property(lambda self: None)):
        with pytest.raises(CallbackError, match=r"Mine defines loss, pred, which would hide"):
            type("Mine", (Callback,), {"pred": what, "loss": what, "mine": 1})
        mixin = type("Mixin", (), {"model": what})
        with pytest.raises(CallbackError, match=r"Mixin defines model, which would hide"):
            type("Mine", (mixin, Callback), {})


def test_the_error_reaches_the_caller_of_fit():
    class Wrong(Callback):
        def after_pred(self):
            self.pred = self.pred * 2

    with pytest.raises(CallbackError, match=r"Wrong assigns self\.pred") as caught:
        tiny_learner(cbs=Wrong()).fit(1)
    assert caught.value.__notes__ == ["This came from the callback Wrong at the event after_pred."]


def test_assigning_on_the_learner_changes_training():
    class Freeze(Callback):
        def after_loss(self):
            self.learn.loss_grad = self.loss_grad * 0

    learn = tiny_learner(cbs=Freeze())
    before = copy.deepcopy(learn.model.state_dict())
    learn.fit(1)
    assert all(t.equal(before[name]) for name, t in learn.model.state_dict().items())
    assert all(loss > 0 for loss in learn.recorder.raw_losses)


def test_copies_are_whole():
    cb = copy.deepcopy(RNNCallback())
    assert cb.name == "rnn"
    assert pickle.loads(pickle.dumps(cb)).order == 0


# Names on the learner


def test_callbacks_are_found_by_name():
    rnn, resetter, terminate = RNNCallback(), ModelResetter(), TerminateOnNaNCallback()
    learn = tiny_learner(cbs=[rnn, resetter, terminate])
    assert learn.rnn is rnn
    assert learn.model_resetter is resetter
    assert learn.terminate_on_na_n is terminate
    learn.remove_cb(rnn)
    assert not hasattr(learn, "rnn")


@pytest.mark.parametrize("name", ["Loss", "Validate", "Model", "Freeze", "Opt", "Path"])
def test_a_callback_does_not_hide_what_the_learner_calls_so(name):
    seen = []
    cb = type(name, (Callback,), {"after_loss": lambda self: seen.append(self.loss.item())})()
    learn = tiny_learner()
    before = getattr(learn, cb.name)
    with learn.added_cbs(cb):
        assert getattr(learn, cb.name) == before
        learn.fit(1)
    assert len(seen) == 11
    learn.fit(1)
    assert len(seen) == 11
    assert learn.validate()


# Order


class First(Callback):
    order = 5


class Second(Callback):
    order = 1


def test_order_then_wishes():
    first, second = First(), Second()
    assert sort_callbacks([first, second]) == [second, first]
    for field, holder, other in [("run_before", first, second), ("run_after", second, first)]:
        for ref in (type(other), other.name, type(other).__name__, [type(other)], (other.name,)):
            setattr(holder, field, ref)
            assert sort_callbacks([second, first]) == [first, second]
        setattr(holder, field, ())


def test_who_has_the_wish_moves_for_it():
    """The progress bar asks to run before the recorder; that must not put the recorder off."""
    seen = []
    watch = type("Watch", (Callback,), {"order": Recorder.order + 1})
    learn = tiny_learner(cbs=watch(after_epoch=lambda cb: seen.append(len(cb.recorder.values))))
    learn.fit(2)
    assert seen == [1, 2]
    # And through a chain, whose last goes back for the first
    kinds = KINDS[:5]
    cbs = [kind() for kind in kinds]
    for cb, order in zip(cbs, [9, 8, 1, 2, 0], strict=True):
        cb.order = order
    cbs[0].run_before, cbs[1].run_before, cbs[4].run_after = kinds[1], kinds[2], kinds[2]
    assert sort_callbacks(cbs) == [cbs[i] for i in (0, 1, 2, 4, 3)]


def test_equals_stay_as_they_were_added():
    cbs = [Callback() for _ in range(5)]
    assert sort_callbacks(cbs) == cbs


def test_a_contradiction_names_those_in_it_and_nobody_else():
    first, second = First(), Second()
    first.run_before, second.run_before = Second, "First"
    waits = type("Waits", (Callback,), {"run_after": First})()  # for the circle, but not in it
    free = type("Free", (Callback,), {"run_before": "Second"})()
    with pytest.raises(CallbackError) as caught:
        sort_callbacks([waits, first, free, second, Callback()])
    said = str(caught.value)
    assert "the callbacks First, Second cannot" in said or "Second, First cannot" in said
    assert "First asks to run before Second" in said
    assert "Second asks to run before First" in said
    assert "Waits" not in said
    assert "Free" not in said
    itself = First()
    itself.run_before = First
    assert sort_callbacks([itself]) == [itself]


def test_a_wish_about_the_absent_is_no_wish():
    first = First()
    first.run_after = ["Second", "model_resetter", RNNCallback]
    assert sort_callbacks([first]) == [first]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("Recoder", r"First\.run_after names 'Recoder', which is no callback; .* Recorder\?"),
        (["Second", "zzz"], r"names 'zzz', which is no callback; import the module that has it"),
        (3, r"First\.run_after names 3; give a class of callbacks"),
        ([int], r"names <class 'int'>; give a class of callbacks"),
        (RNNCallback(), r"names RNNCallback; give a class of callbacks"),
    ],
)
def test_a_wish_about_what_is_no_callback_is_refused(wish, said):
    first = First()
    first.run_after = wish
    with pytest.raises(CallbackError, match=said):
        tiny_learner(cbs=first)


def test_a_name_may_be_that_of_a_base():
    class Third(Second):
        pass

    first, third = First(), Third()
    third.run_after, first.run_before = "First", ()
    assert sort_callbacks([third, first]) == [first, third]
    third.run_after, first.run_before = (), "Second"
    assert sort_callbacks([third, first]) == [first, third]


# Ten classes that may wish for places relative to one another
KINDS = [type(f"Kind{i}", (Callback,), {}) for i in range(10)]


@st.composite
def wishes(draw):
    """Callbacks of different classes, and the pairs (earlier, later) that they ask for."""
    n = draw(st.integers(1, 10))
    cbs = [kind() for kind in KINDS[:n]]
    pairs = draw(st.sets(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=14))
    pairs = {(a, b) for a, b in pairs if a != b}
    for cb in cbs:
        cb.order = draw(st.integers(-2, 2))
    for a, b in pairs:
        if draw(st.booleans()):
            cbs[a].run_before = [*cbs[a].run_before, draw(st.sampled_from([KINDS[b], cbs[b].name]))]
        else:
            cbs[b].run_after = [*cbs[b].run_after, draw(st.sampled_from([KINDS[a], cbs[a].name]))]
    shuffled = draw(st.permutations(cbs))
    return cbs, pairs, shuffled


def is_acyclic(n, pairs):
    """Whether taking away what nothing precedes takes all away."""
    left = set(range(n))
    while free := {b for b in left if not any(c == b and a in left for a, c in pairs)}:
        left -= free
    return not left


@given(wishes())
def test_all_wishes_are_met_if_they_can_be(case):
    cbs, pairs, shuffled = case
    if not is_acyclic(len(cbs), pairs):
        with pytest.raises(CallbackError, match="contradict one another"):
            sort_callbacks(shuffled)
        return
    done = sort_callbacks(shuffled)
    assert sorted(map(id, done)) == sorted(map(id, cbs))
    place = {id(cb): i for i, cb in enumerate(done)}
    assert all(place[id(cbs[a])] < place[id(cbs[b])] for a, b in pairs)


@given(wishes())
def test_order_holds_where_no_wish_is_in_the_way(case):
    cbs, pairs, shuffled = case
    assume(is_acyclic(len(cbs), pairs))
    bound = {i for pair in pairs for i in pair}
    free = [cb for i, cb in enumerate(cbs) if i not in bound]
    orders = [cb.order for cb in sort_callbacks(shuffled) if any(cb is f for f in free)]
    assert all(a <= b for a, b in pairwise(orders))


# Switches


@pytest.mark.parametrize(
    ("switches", "batches", "fits"),
    [
        ({}, 8 + 3, 1),
        ({"run_valid": False}, 8, 1),
        ({"run_train": False}, 3, 1),
        ({"run_train": False, "run_valid": False}, 0, 1),
        ({"run": False}, 0, 0),
    ],
)
def test_switches(switches, batches, fits):
    class Count(Callback):
        def __init__(self):
            self.batches = self.fits = self.passes = 0

        def before_fit(self):
            self.fits += 1

        def before_train(self):
            self.passes += 1

        def before_validate(self):
            self.passes += 1

        def after_batch(self):
            self.batches += 1

    count = Count()
    vars(count).update(switches)
    tiny_learner(cbs=count).fit(1)
    assert (count.batches, count.fits, count.passes) == (batches, fits, 2 * fits)


def test_a_switch_may_be_thrown_while_training():
    class Once(Callback):
        seen = 0

        def after_batch(self):
            self.seen += 1
            self.run = False

    once = Once()
    tiny_learner(cbs=once).fit(2)
    assert once.seen == 1


def test_cancelling_carries_the_name_of_its_callback_and_skips_the_rest():
    class SkipOdd(Callback):
        run_valid = False

        def before_batch(self):
            if self.iter % 2:
                raise CancelBatchException

    fired = []
    watch = Callback(after_cancel_batch=lambda cb: fired.append(cb.iter))
    learn = tiny_learner(cbs=[SkipOdd(), watch])
    learn.fit(1)
    assert fired == [1, 3, 5, 7]
    assert len(learn.recorder.losses) == 4


def test_no_warning_without_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        type("Fine", (Callback,), {"before_fit": lambda self: None})
