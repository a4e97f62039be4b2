"""Every format: what is loaded computes what was saved, for any batch, and a damaged file is refused."""

import pytest
import torch
from torch import nn

from autoprune import plugins
from autoprune.errors import ModelError
from autoprune.task import Inputs
from autoprune.testing.formats import LAWS, Plain, images

NAMES = plugins.names("format")


@pytest.fixture(params=NAMES)
def form(request):
    return plugins.load("format", request.param)()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_law(form, law, tmp_path):
    law(form, tmp_path)


def test_values_are_saved_bit_for_bit(form, tmp_path):
    model = Plain().eval()
    form.save(model, images(), tmp_path / form.filename)
    content = (tmp_path / form.filename).read_bytes()
    for tensor in model.state_dict().values():
        assert tensor.numpy().tobytes() in content or tensor.dtype == torch.int64


@pytest.mark.parametrize("name", [name for name in NAMES if name != "safetensors"])
def test_a_fixed_batch_is_refused_when_saved(name, tmp_path):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.view(3, -1) * 2

    with pytest.raises(ModelError, match="dynamic batch"):
        plugins.load("format", name)().save(
            Fixed().eval(), Inputs.of(torch.randn(3, 4)), tmp_path / "file"
        )


def test_safetensors_names_what_does_not_fit(tmp_path):
    form, path = plugins.load("format", "safetensors")(), tmp_path / "model.safetensors"
    form.save(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), None, path)
    with pytest.raises(
        ModelError, match=r"missing 2.weight.*unknown 1.weight.*0.weight has shape \(4, 3\)"
    ):
        form.load(path, lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


def rewritten(path, change):
    """The same archive with `change(name, content)` in place of each entry."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for info, content in entries:
            archive.writestr(info, change(info.filename, content))


@pytest.mark.parametrize("attack", ["sample", "pickle", "expression", "target"])
def test_a_program_with_code_in_it_is_not_run(attack, tmp_path):
    import io
    import pickle

    def change(name, content):
        if attack == "sample" and "sample_inputs" in name:
            buffer = io.BytesIO()
            torch.save((Evil(),), buffer)
            return buffer.getvalue()
        if attack == "pickle" and name.endswith("weights_config.json"):
            return content.replace(b'"use_pickle": false', b'"use_pickle": true').replace(
                b'"use_pickle":false', b'"use_pickle":true'
            )
        if attack == "pickle" and name.endswith("weight_0"):
            return pickle.dumps(Evil())
        if attack == "expression" and "/models/" in name:
            assert b"expr_str" in content
            return content.replace(b"Symbol('", b"exec('raise SystemExit(1)#")
        if attack == "target" and "/models/" in name:
            return content.replace(b"torch.ops.aten.relu.default", b"torch.load")
        return content

    form, path = plugins.load("format", "program")(), tmp_path / "model.pt2"
    form.save(Plain().eval(), images(), path)
    rewritten(path, lambda name, content: content)
    form.load(path)(images())
    rewritten(path, change)
    with pytest.raises(ModelError):
        form.load(path)(images())
