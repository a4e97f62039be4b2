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
from autoprune.task import Inputs

INPUTS = Inputs((), {"x": torch.randn(2, 6), "scale": torch.ones(2, 1)})
IMAGES = Inputs.of(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
DTYPES = ("fp32", "bf16", "fp16", "int8")
TOLERANCES = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 5e-3, "int8": 5e-2}  # of the largest output


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, scale):
        return self.drop(self.fc(x)) * scale


class Small(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.second, self.fc = nn.Conv2d(width, width, 3, padding=1), nn.Linear(width, 5)

    def forward(self, x):
        return self.fc(torch.relu(self.second(torch.relu(self.norm(self.conv(x))))).mean((2, 3)))


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


def test_it_says_what_it_takes_and_its_version(name):
    runtime = RUNTIMES[name]
    assert runtime.artefact in ("module", "onnx")
    assert "fp32" in runtime.dtypes and set(runtime.converts) <= set(runtime.dtypes) <= set(DTYPES)
    spoken, version = runtime.version().split(" ")
    assert spoken and version[0].isdigit()


def test_a_prepared_call_runs_again_and_again(name):
    model = Scaled()
    threads = torch.get_num_threads()
    target = target_of(name, threads=threads, batch=2)
    call = RUNTIMES[name].prepare(artefact(model, INPUTS, target), INPUTS, target)
    for _ in range(3):
        call()
    assert model.training and torch.get_num_threads() == threads


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_are_the_models_within_the_precision_or_the_dtype_is_refused(name, dtype):
    """A dtype that it knows may still be refused, where this CPU would compute in another one in silence."""
    runtime, model, target = RUNTIMES[name], Small().eval(), target_of(name, dtype=dtype, batch=4)
    try:
        content = artefact(model, IMAGES, target)
        run = runtime.outputs(content, IMAGES, target)
        runtime.prepare(content, IMAGES, target)()
    except InputError as error:
        assert (
            dtype != "fp32" and f"asks for {dtype}" in str(error) and "give" in str(error).lower()
        )
        assert dtype not in runtime.dtypes or (
            dtype in ("bf16", "fp16") and (runtime.artefact == "onnx" or name == "eager_sparse")
        )
        return
    assert dtype in runtime.dtypes
    for inputs in (IMAGES, IMAGES.map(lambda x: -0.9 * x), IMAGES):
        (found,) = run(inputs)
        with torch.no_grad():
            expected = inputs.call(model).numpy()
        assert (
            found.dtype == np.float32
            and np.abs(found - expected).max() <= TOLERANCES[dtype] * np.abs(expected).max()
        )
    # it is another precision
    assert dtype == "fp32" or np.abs(found - expected).max() > 1e-6 * np.abs(expected).max()


def test_an_unknown_dtype_is_refused(name):
    with pytest.raises(InputError, match="asks for int3"):
        target = target_of(name, dtype="int3")
        RUNTIMES[name].prepare(artefact(Scaled().eval(), INPUTS, target), INPUTS, target)


def test_models_do_not_get_mixed_up(name):
    """Two of one class, prepared in one process; what a runtime caches must not be the other's."""
    first, second, target = Small().eval(), Small().eval(), target_of(name, batch=4)
    runs = [
        RUNTIMES[name].outputs(artefact(model, IMAGES, target), IMAGES, target)
        for model in (first, second)
    ]
    for model, run in zip((first, second), runs, strict=True):
        with torch.no_grad():
            assert np.allclose(run(IMAGES)[0], IMAGES.call(model).numpy(), atol=1e-5)


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
