"""How a chain is executed.

`run_chain` is the definition: parameter by parameter, stepper by stepper. `Engine` gives the same
result at the speed of the memory: in each step it runs a chain once on stand-ins that write down
what is asked of them (`tape`, `value`, `record`), types the program that comes of it (`program`),
compiles one that is new (`codegen_c`, `build`), and launches it on all parameters that it is good
for (`plan`, `walk`, `bucket`, `fused`). A `guard` adds operations that clip, leave out and round.
Where nothing can be compiled, `eager` runs the program. Of parameters that are spread over
processes each steps its part (`spread`), or the whole, and keeps its part (`gathered`).
"""

from __future__ import annotations

from treadle.optim.engine.fused import Engine
from treadle.optim.engine.guard import COMPENSATION, Guard
from treadle.optim.engine.reference import run_chain

__all__ = ["COMPENSATION", "Engine", "Guard", "run_chain"]
