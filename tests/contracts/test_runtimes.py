"""Every runtime: it takes what `artefact` names, computes the model, and leaves model and process as they were."""

import shutil
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from autoprune import plugins
from autoprune.errors import InputError, MissingPackage, ModelError
from autoprune.measuring.measure import artefact
from autoprune.measuring.onnx_slicing.slicer import export
from autoprune.measuring.quantization import convert
from autoprune.target import Target
from autoprune.testing.runtimes import LAWS, Scaled, Small, images, vectors

INPUTS, IMAGES = vectors(), images()


def loaded(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what packages of others warn of when they are imported
        try:
            return plugins.load("runtime", name)()
        except MissingPackage:
            return None


RUNTIMES = {name: loaded(name) for name in plugins.names("runtime")}
ABSENT = [name for name, runtime in RUNTIMES.items() if runtime is None]


def target_of(name, **settings):
    return Target(
        name="mine", runtime=name, device="cuda" if name == "tensorrt" else "cpu", **settings
    )


@pytest.fixture(params=[name for name, runtime in RUNTIMES.items() if runtime is not None])
def name(request):
    if request.param == "tensorrt" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param


def test_a_runtime_whose_package_is_absent_says_what_to_install():
    for name in ABSENT:
        with pytest.raises(
            MissingPackage,
            match=rf"runtime '{name}' needs the package '{name}.*': pip install {name}",
        ):
            plugins.load("runtime", name)
    assert {"onnxruntime", "eager", "compiled"} <= set(RUNTIMES) - set(ABSENT)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(name, law):
    law(RUNTIMES[name], target_of(name))


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "int8"])
def test_another_dtype_is_another_precision_or_refused_for_a_reason(name, dtype):
    """Of those that it knows only what this CPU would compute in another one in silence is refused."""
    runtime, model, target = RUNTIMES[name], Small().eval(), target_of(name, dtype=dtype, batch=4)
    try:
        (output,) = runtime.outputs(artefact(model, IMAGES, target), IMAGES, target)(IMAGES)
    except InputError:
        silent = dtype in ("bf16", "fp16")
        assert dtype not in runtime.dtypes or (
            silent and (runtime.artefact == "onnx" or name == "eager_sparse")
        )
        return
    with torch.no_grad():
        expected = IMAGES.call(model).numpy()
    assert np.abs(output - expected).max() > 1e-6 * np.abs(expected).max()


def test_eager_computes_the_model_in_eval_mode():
    model = Scaled()
    found = plugins.load("runtime", "eager")().prepare(
        model, INPUTS, Target(threads=torch.get_num_threads())
    )()
    with torch.no_grad():
        assert torch.equal(found, INPUTS.call(model.eval()))


@pytest.mark.parametrize(
    "onnx_runtime", [name for name in ("onnxruntime", "openvino") if name not in ABSENT]
)
def test_onnx_runtimes_take_arrays_in_the_order_of_the_graph(onnx_runtime):
    content, runtime = export(Scaled(), INPUTS), RUNTIMES[onnx_runtime]
    runtime.prepare(content, [t.numpy() for t in INPUTS.tensors()], Target())()
    with pytest.raises(InputError, match="takes 2 tensors"):
        runtime.prepare(content, [INPUTS.tensors()[0].numpy()], Target())


@pytest.mark.parametrize(
    "onnx_runtime", [name for name in ("onnxruntime", "openvino") if name not in ABSENT]
)
def test_a_graph_that_is_not_quantised_is_not_taken_for_int8(onnx_runtime):
    content, target = export(Small().eval(), IMAGES), Target(dtype="int8")
    with pytest.raises(ModelError, match=r"int8.*not quantised"):
        RUNTIMES[onnx_runtime].prepare(content, IMAGES, target)
    quantised = convert(content, "int8", [[tensor.numpy() for tensor in IMAGES.tensors()]])
    assert RUNTIMES[onnx_runtime].prepare(quantised, IMAGES, target)() is not NotImplemented


@pytest.mark.skipif("openvino" in ABSENT, reason="needs openvino")
def test_openvino_computes_fp32_in_fp32_and_refuses_threads_that_are_not_there():
    content = export(Small().eval(), IMAGES)
    found = RUNTIMES["openvino"].outputs(content, IMAGES, Target(dtype="fp32"))(IMAGES)[0]
    expected = RUNTIMES["onnxruntime"].outputs(content, IMAGES, Target())(IMAGES)[0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()  # bf16 is off by 1e-3
    with pytest.raises(InputError, match="asks for 4096 threads, OpenVINO takes"):
        RUNTIMES["openvino"].prepare(content, IMAGES, Target(threads=4096))
    with pytest.raises(InputError, match="runs on the CPU"):
        RUNTIMES["openvino"].prepare(content, IMAGES, Target(device="cuda"))


def test_a_compiled_call_never_compiles_again():
    target, before = target_of("compiled", batch=4), torch.get_num_threads()
    call = RUNTIMES["compiled"].prepare(Small().eval(), IMAGES, target)
    counted = dict(torch._dynamo.utils.counters["stats"])
    try:
        torch.set_num_threads(2)  # by default torch.compile guards on it
        with torch.no_grad():
            call()
        torch.set_default_dtype(torch.float64)
        call()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(before)
    assert counted["unique_graphs"] >= 1 and dict(torch._dynamo.utils.counters["stats"]) == counted


def test_compiled_takes_a_model_whose_widths_are_bound_anew():
    import autoprune

    class Literal(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16 * 4, 5)

        def forward(self, x):
            return self.second(
                nn.functional.adaptive_avg_pool2d(self.first(x), 2).view(x.shape[0], 16 * 4)
            )

    smaller = autoprune.prune(Literal().eval(), IMAGES.args[0], 0.5)
    assert smaller.first.out_channels == 8
    (found,) = RUNTIMES["compiled"].outputs(smaller, IMAGES, target_of("compiled", batch=4))(IMAGES)
    with torch.no_grad():
        assert np.allclose(found, IMAGES.call(smaller).numpy(), atol=1e-5)


def test_without_a_compiler_it_says_what_to_do(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert shutil.which("no-such-compiler") is None
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler.*no-such-compiler.*install one"):
        RUNTIMES["compiled"].prepare(Small().eval(), IMAGES, target_of("compiled"))
