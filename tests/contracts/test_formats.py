"""Every format: what is loaded computes what was saved, for any batch, and a damaged file is refused."""

import pytest
import torch
from torch import nn

from autoprune import plugins
from autoprune.errors import ModelError
from autoprune.task import Inputs

NAMES = plugins.names("format")


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Linear(4 * 16, 5),
        )

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).flatten(1))


class Rich(nn.Module):
    """Integer and keyword inputs, an argument that is None, tied weights, a buffer that is not saved, two outputs."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.out.weight = self.embedding.weight
        self.register_buffer("position", torch.linspace(0, 1, 8), persistent=False)

    def forward(self, ids, extra=None, *, mask):
        x = (self.embedding(ids) + self.position) * mask[..., None]
        return {"logits": self.out(x), "pooled": (x.mean(1),)}


MODELS = {
    "plain": (Plain, Inputs.of(torch.randn(3, 3, 4, 4))),
    "rich": (
        Rich,
        Inputs((torch.randint(0, 20, (3, 6)),), {"mask": torch.ones(3, 6), "extra": None}),
    ),
}


@pytest.fixture(params=NAMES)
def form(request):
    return plugins.load("format", request.param)()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_loaded_computes_what_was_saved(form, name, batch, tmp_path):
    build, inputs = MODELS[name]
    model = build().eval()
    form.save(model, inputs, tmp_path / form.filename)
    assert [file.name for file in tmp_path.iterdir()] == [form.filename]
    found = form.load(tmp_path / form.filename, build)(inputs.rows(batch))
    with torch.no_grad():
        output = inputs.rows(batch).call(model)
    expected = [output["logits"], output["pooled"][0]] if isinstance(output, dict) else [output]
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    assert all(float((a - b).abs().max()) <= 1e-5 for a, b in zip(found, expected, strict=True))


def test_saving_leaves_the_model_as_it_was(form, tmp_path):
    model = Plain()
    model.bn.eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    form.save(model, MODELS["plain"][1], tmp_path / form.filename)
    assert (model.training, model.bn.training) == (True, False)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_values_are_saved_bit_for_bit(form, tmp_path):
    model = Plain().eval()
    form.save(model, MODELS["plain"][1], tmp_path / form.filename)
    content = (tmp_path / form.filename).read_bytes()
    for tensor in model.state_dict().values():
        assert tensor.numpy().tobytes() in content or tensor.dtype == torch.int64


def test_a_truncated_file_is_refused(form, tmp_path):
    path = tmp_path / form.filename
    form.save(Plain().eval(), MODELS["plain"][1], path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ModelError, match=form.filename):
        form.load(path, Plain)(MODELS["plain"][1])


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
    form.save(Plain().eval(), MODELS["plain"][1], path)
    rewritten(path, lambda name, content: content)
    form.load(path)(MODELS["plain"][1])
    rewritten(path, change)
    with pytest.raises(ModelError):
        form.load(path)(MODELS["plain"][1])
