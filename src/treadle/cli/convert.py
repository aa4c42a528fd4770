"""`treadle convert`: foreign weights to safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def convert(
    file: Path,
    out: Path | None = None,
    /,
    *,
    key: str | None = None,
    timeout: float = 300,
    debug: Flag = False,
) -> None:
    """Turn a .pth or .pt file of weights into safetensors; print the new file.

    The file is read in a process of its own that may build tensors and do nothing else.

    Args:
        file: A file that torch.save wrote.
        out: Where the safetensors file goes [default: beside FILE]
        key: The part of a larger checkpoint to take, such as state_dict.
        timeout: Seconds that reading may take.
        debug: Show the full traceback of an error.
    """
    from treadle.run.convert import convert_weights

    print(convert_weights(file, out, key, timeout))
