"""Find where a number that is none came from, by running its batch once more and looking.

`KeptState` remembers what each forward pass starts from. `replay` goes back there, runs the batch
with a hook on every module (`Watch`), and gives a `NonFinite`: which samples, which module, which
parameters.
"""

from treadle.callbacks.forensic.finding import NonFinite
from treadle.callbacks.forensic.replay import KeptState, Replayed, replay

__all__ = ["KeptState", "NonFinite", "Replayed", "replay"]
