"""Names that files may use: what is registered, written and made again."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import treadle
from treadle import registry
from treadle.errors import DataError, UsageError
from treadle.registry import described, known_names, register, remember, restored


@pytest.fixture(autouse=True)
def _own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_BY_NAME", dict(registry._BY_NAME))
    monkeypatch.setattr(registry, "_NAMES", dict(registry._NAMES))


def there_and_back(thing: Any) -> Any:
    return restored(json.loads(json.dumps(described(thing), allow_nan=False)))


def test_a_class_is_made_again_with_its_arguments() -> None:
    @register
    class Band:
        def __init__(self, low: float, *more: int, high: float = 2.0, **kwargs: Any) -> None:
            self.all = low, more, high, kwargs

    made = there_and_back(Band(0.1, 5, 6, high=1.0, odd=[1]))
    assert made.all == (0.1, (5, 6), 1.0, {"odd": [1]})
    assert Band.__init__.__doc__ is None
    assert Band.__name__ == "Band"


def test_a_subclass_is_what_it_is_and_not_its_base() -> None:
    @register
    class Base:
        def __init__(self, a: int) -> None:
            self.a = a

    class Unknown(Base):
        pass

    with pytest.raises(UsageError, match=r"@treadle.register.*Unknown"):
        described(Unknown(1))

    @register
    class Known(Base):
        def __init__(self, b: int) -> None:
            super().__init__(b + 1)

    made = there_and_back(Known(3))
    assert type(made) is Known
    assert made.a == 4


def test_a_module_keeps_its_arguments_and_its_state_dict() -> None:
    @register
    class Net(nn.Module):
        def __init__(self, width: int, act: nn.Module) -> None:
            super().__init__()
            self.layer, self.act = nn.Linear(2, width), act

    @register
    def gentle(slope: float) -> nn.Module:
        return nn.LeakyReLU(slope)

    net = Net(3, act=gentle(0.3))
    assert set(net.state_dict()) == {"layer.weight", "layer.bias"}
    assert repr(there_and_back(net)) == repr(net)


def test_a_function_of_the_user_makes_what_has_no_name_itself() -> None:
    @register
    def two_layers(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))

    model = two_layers(width=5)
    assert described(model) == {"make": "two_layers", "args": [], "kwargs": {"width": 5}}
    assert repr(there_and_back(model)) == repr(model)


def test_a_function_may_say_by_what_it_is_made_again() -> None:
    @register
    def trained(size: int, download: bool = False) -> nn.Module:
        assert not download or size < 10
        return remember(nn.Linear(size, 1), trained, size)

    assert described(trained(3, download=True)) == {"make": "trained", "args": [3], "kwargs": {}}


def test_functions_are_named() -> None:
    @register
    def double(x: int) -> int:
        return 2 * x

    assert described(double) == {"name": "double"}
    assert there_and_back(double) is double
    assert there_and_back(partial(double, 4))() == 8


def test_objects_that_learned_say_what_they_are_now() -> None:
    @register
    class Learned:
        def __init__(self, words: list[str] | None = None) -> None:
            self.words = words or []

        def as_arguments(self) -> dict[str, Any]:
            return {"words": self.words}

    thing = Learned()
    thing.words.append("sea")
    assert there_and_back(thing).words == ["sea"]


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.builds(Path, st.just("a/b")),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.frozensets(st.integers() | st.text()).map(set)
    ),
    max_leaves=8,
)


@given(plain)
def test_plain_values_come_back_as_they_were(value: Any) -> None:
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_small_tensors_come_back_bit_for_bit(dtype: torch.dtype) -> None:
    value = (torch.rand(3, 2) * 3).to(dtype)
    back = there_and_back(value)
    assert back.dtype == dtype
    assert torch.equal(back, value)


def test_numpy_comes_back() -> None:
    array = np.array([[1.5, 2]], np.float32)
    back = there_and_back({"a": array, "n": np.int64(3), "s": np.str_("x")})
    assert back["a"].dtype == np.float32
    assert (back["a"] == array).all()
    assert type(back["n"]) is int
    assert type(back["s"]) is str


def test_large_tensors_belong_to_the_weights() -> None:
    with pytest.raises(UsageError, match="register_buffer"):
        described(torch.zeros(200_000))


def test_what_is_not_registered_is_told_with_the_line_to_add() -> None:
    class Mine:
        pass

    def label(x: int) -> int:
        return x

    with pytest.raises(UsageError, match=r"Put `@treadle.register` on the line before .*Mine, in"):
        described(Mine(), "the model")
    with pytest.raises(UsageError, match=r"before the definition of .*label, in a file that"):
        described(label)
    with pytest.raises(UsageError, match="Write it as a function with a name"):
        described(lambda x: x)
    with pytest.raises(UsageError, match=r"the model holds a torch.nn.*Make it in a function"):
        described(nn.Sequential(nn.ReLU()), "the model")


def test_a_thing_made_from_itself_is_told() -> None:
    @register
    def frozen(model: nn.Module) -> nn.Module:
        return model

    with pytest.raises(UsageError, match="made from itself"):
        described(frozen(nn.Linear(1, 1)))


def test_a_missing_name_is_told_with_the_nearest() -> None:
    @register(name="my.pooling")
    class Pooling:
        pass

    assert "my.pooling" in known_names()
    with pytest.raises(DataError, match=r"@treadle.register.*did you mean my.pooling\?"):
        restored({"name": "my.poolng"}, "bundle.json")


def test_a_definition_may_be_run_again_and_another_may_not_take_its_name() -> None:
    def define(factor: int) -> Any:
        @register(name="scale")
        def scale(x: int) -> int:
            return factor * x

        return scale

    define(2), define(3)
    assert restored({"name": "scale"})(1) == 3
    with pytest.raises(UsageError, match="registered already"):
        register(name="scale")(there_and_back)
    with pytest.raises(UsageError, match="expected a class or a function"):
        register(3)


DOTTED = """os.system builtins.eval builtins.exec subprocess.Popen posix.system nt.system eval exec
    open __import__ importlib.import_module torch.load torch.hub.load pickle.loads builtins.getattr
    operator.attrgetter functools.partial shutil.rmtree socket.socket ctypes.CDLL code.interact
    torch.nn.Sequential treadle.registry._BY_NAME treadle.native.build numpy.load yaml.load
    runpy.run_path webbrowser.open urllib.request.urlopen __main__.main""".split()


@pytest.mark.parametrize("name", DOTTED)
def test_a_dotted_path_names_nothing(name: str) -> None:
    """30 of 30: a name is looked up in the table, and never imported."""
    assert len(DOTTED) == 30
    for json_form in ({"name": name}, {"make": name, "args": ["echo"], "kwargs": {}}):
        with pytest.raises(DataError, match="has not registered"):
            restored(json_form)


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"name": 3},
        {"name": ["x"]},
        {"name": "itself", "more": 1},
        {"make": "itself", "args": {}, "kwargs": {}},
        {"make": "Resize", "args": [], "kwargs": {"sise": 3}},
        {"tuple": "ab"},
        {"dict": [1, 2]},
        {"dict": [[[1], 2]]},
        {"set": [[1]]},
        {"path": 3},
        {"tensor": [[1], [2, 3]], "dtype": "float32"},
        {"tensor": [1], "dtype": "nn"},
        {"array": [1], "dtype": "nothing"},
        {"array": [None], "dtype": "object"},
        {"partial": 3, "args": [], "kwargs": {}},
    ],
)
def test_what_describes_nothing_is_refused(bad: Any) -> None:
    import treadle.data  # noqa: F401  (registers Resize)

    with pytest.raises(DataError):
        restored(bad)


def test_register_needs_no_torch() -> None:
    code = "import sys, treadle; treadle.register; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
    assert treadle.register is register
