"""Find where a number that is none came from, by running its batch once more and looking.

`KeptState` remembers what each forward pass starts from. `replay` goes back there, runs the batch
with a hook on every module (`Watch`), and gives a `NonFinite`: which samples, which module, which
parameters.
`NonFiniteCallback` is what watches a fit, the base of the callbacks that say what follows.
"""

from treadle.callbacks.forensic.finding import NonFinite, spoilt_weights
from treadle.callbacks.forensic.policy import NonFiniteCallback, NonFiniteError, NonFiniteWarning

__all__ = ["NonFinite", "NonFiniteCallback", "NonFiniteError", "NonFiniteWarning", "spoilt_weights"]
