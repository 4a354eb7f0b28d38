"""Test that torchmetrics stays complete, though Lightning loads two of its classes only."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.faults import ROOT

pytestmark = pytest.mark.usefixtures("starts_processes")

PROGRAM = """
import inspect, sys
from lm.system import lazy_torchmetrics
lazy_torchmetrics.defer()
lazy_torchmetrics.defer()  # a second command in the same process
{first}
import lightning, torch
import torchmetrics
assert not any(map(hasattr, [torchmetrics] * 2, ["__wrapped__", "__warningregistry__"]))
assert torchmetrics.__version__[0].isdecimal() and inspect.getfile(torchmetrics)
loaded = "torchmetrics.functional" in sys.modules
{then}

class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.accuracy = torchmetrics.Accuracy("binary")
    def training_step(self, batch, index):
        self.log("one", 1.0)
        self.accuracy(torch.ones(3), torch.tensor([1, 1, 0]))
        self.log("accuracy", self.accuracy, on_epoch=True)
        return self.layer(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())

trainer = lightning.Trainer(
    accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
)
trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(2, 1)))
logged = {{name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}}
assert logged["one"] == 1 and logged["accuracy_epoch"] == 0.6667, logged
assert torchmetrics.MetricCollection([torchmetrics.Accuracy("binary")])
print("loaded" if loaded else "deferred")
"""

# As if another version of torchmetrics had a name elsewhere.
MOVED = """
import types
sys.modules["torchmetrics.__about__"] = types.ModuleType("torchmetrics.__about__")
import torchmetrics
torchmetrics.__version__ = "1"
"""


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        ("", "", "deferred"),
        ("", "from torchmetrics.text import Perplexity", "deferred"),
        ("from torchmetrics import Accuracy", "", "loaded"),
        ("from torchmetrics.classification import BinaryAccuracy", "", "loaded"),
        (MOVED, "", "loaded"),
    ],
    ids=["lightning alone", "a part after", "a metric before", "a part before", "a new version"],
)
def test_metrics_work_in_lightning(first: str, then: str, expected: str) -> None:
    program = PROGRAM.format(first=first, then=then)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr
