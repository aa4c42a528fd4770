"""In a notebook: one table that is redrawn, and every figure exactly once."""

from __future__ import annotations

import nbclient
import nbformat
import pytest

CELLS = [
    "import sys; sys.path.insert(0, TESTS)\nfrom helpers import tiny_learner\n"
    "from treadle.all import *\nlearn = tiny_learner(metrics=accuracy)",
    "learn.fit_one_cycle(2, 0.1)",
    # a figure whose layout is another at its second drawing
    "from treadle.plots import plot_loss, show\n"
    "show(plot_loss([1 / (i + 1) for i in range(22)], [11, 22], [3.0, 1.8]))",
    "learn.lr_find(num_it=30)",
    "class Mine(Callback):\n    def before_epoch(self):\n        self.seen = True\n"
    "with learn.distributed(2):\n    learn.fit(2, cbs=Mine)",
    "figure = learn.recorder.plot_sched()\nfigure.axes[0].set_title('changed')\nfigure",
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook client's own parts
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_notebook_shows_each_thing_once(request):
    cells = [code.replace("TESTS", repr(str(request.path.parent))) for code in CELLS]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    nbclient.NotebookClient(book, timeout=120).execute()
    _, fit, loss, find, several, sched = (cell.outputs for cell in book.cells)

    for outputs in (fit, several):
        assert [out.output_type for out in outputs] == ["display_data"]
        table = outputs[0].data["text/html"]
        assert table.count("<tr>") == 3
        assert "<th>valid_loss</th>" in table
        assert "<progress" not in table  # the bar is gone when the fit is over

    assert kinds(loss) == ["image/png"]
    assert kinds(find) == ["image/png", "text/plain"]
    assert "SuggestedLRs(valley=" in find[1].data["text/plain"]
    assert kinds(sched) == ["image/png"] * 2  # shown, changed, and shown as it is now


def kinds(outputs):
    return ["image/png" if "image/png" in out.data else next(iter(out.data)) for out in outputs]
