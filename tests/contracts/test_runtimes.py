"""Every runtime: it takes what `artefact` names, computes the model, and leaves model and process as they were."""

import pytest
import torch
from torch import nn

from autoprune import plugins
from autoprune.errors import InputError
from autoprune.measuring.slicing import export
from autoprune.target import Target
from autoprune.task import Inputs

INPUTS = Inputs((), {"x": torch.randn(2, 6), "scale": torch.ones(2, 1)})


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, scale):
        return self.drop(self.fc(x)) * scale


@pytest.fixture(params=plugins.names("runtime"))
def runtime(request):
    return plugins.load("runtime", request.param)()


def artefact(runtime, model):
    return export(model, INPUTS) if runtime.artefact == "onnx" else model


def test_it_says_what_it_takes_and_its_version(runtime):
    assert runtime.artefact in ("module", "onnx")
    name, version = runtime.version().split(" ")
    assert name and version[0].isdigit()


def test_a_prepared_call_runs_again_and_again(runtime):
    model = Scaled()
    threads = torch.get_num_threads()
    call = runtime.prepare(artefact(runtime, model), INPUTS, Target(threads=threads, batch=2))
    for _ in range(3):
        call()
    assert model.training and torch.get_num_threads() == threads


def test_an_unknown_dtype_is_refused(runtime):
    with pytest.raises(InputError, match="int3"):
        runtime.prepare(artefact(runtime, Scaled().eval()), INPUTS, Target(dtype="int3"))


def test_eager_computes_the_model_in_eval_mode():
    model = Scaled()
    found = plugins.load("runtime", "eager")().prepare(model, INPUTS, Target(threads=torch.get_num_threads()))()
    with torch.no_grad():
        assert torch.equal(found, INPUTS.call(model.eval()))


def test_onnxruntime_takes_arrays_in_the_order_of_the_graph():
    content = export(Scaled(), INPUTS)
    call = plugins.load("runtime", "onnxruntime")().prepare(content, [t.numpy() for t in INPUTS.tensors()], Target())
    call()
    with pytest.raises(InputError, match="takes 2 tensors"):
        plugins.load("runtime", "onnxruntime")().prepare(content, [INPUTS.tensors()[0].numpy()], Target())
