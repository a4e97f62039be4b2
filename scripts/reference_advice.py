"""What an error means, or what to do, where its message does not say it: by its beginning."""

_EXPORTED = "`model.pt2` is damaged, or is not what autoprune exported; export it again"
_GRAPH = "try another runtime; `autoprune measure --target cpu_eager` runs the model itself"
_OTHER_MODEL = "give the dense model that the plan or artefact was made from"

ADVICE = {
    # reading
    "an alias that holds itself": "write the values out; anchors are followed within bounds",
    "the tag ": "plain YAML alone is read, without `!tags`",
    "this YAML has more than": "select layers by a pattern with `*` instead of one by one",
    "this YAML is nested": "a study has at most a few levels; see [every key](study.md)",
    "unknown key ‹name›": "see [every key of a study](study.md)",
    "‹name› is listed twice": "remove one of the two",
    "the goal of ‹name›": "leave `goal` out, or give a function of your own under another name",
    "module ‹module name› has no": "references are written `module:name`",
    "no module ": "modules are looked for in the study's folder, the current one and the Python "
    "path",
    "needs keys joined by dots": "of `--set KEY.PATH=VALUE`",
    # task
    "code of the study failed with": "the place in your code follows, and what it raised",
    "‹what› failed with": "the place in your code follows, and what it raised",
    "‹where› failed with": "the place in your code follows, and what it raised",
    "‹reference› failed with": "the place in your code follows, and what it raised",
    "the model's forward failed with": "the place in your code follows, and what it raised",
    "the model of ‹folder› cannot be built here": "run it where the modules of its study are",
    "the model's output holds no tensor: ": "return a tensor, or a tuple or dictionary of them",
    "the classes of ‹part›": "every split needs the same folders, one for each class",
    "no folder ‹folder› with images": "needed: a folder for each class, or `train/` and "
    "`validation/` with these",
    "‹folder›: its records are broken": "a file of the artefact is damaged; export it again",
    "these targets have no order": "never shown: whether the model guesses is then told by the "
    "loss alone",
    # groups
    "the model's forward failed on inputs": "call `model(inputs)` yourself; inputs have the batch "
    "first",
    "‹name› makes other calls than": "leave its layers whole (`techniques: []`), or take the "
    "branch on values out of its forward",
    "the recorded blocks": _OTHER_MODEL,
    "the recorded widths": _OTHER_MODEL,
    "‹name› cannot be cut from": _OTHER_MODEL,
    "‹name›: do not know which attributes": "leave the layer whole: `techniques: []`",
    "nothing is left to prune": "`autoprune check` gives the reason for every group",
    "is_causal is a hint": "said by the model's own attention, as torch says it",
    "it names replaced modules": "the artefact is of another release",
    # plans
    "‹pattern› and an earlier pattern": "write patterns of which each layer matches one",
    "the plan names the group": "keys are `LAYER:LEVEL`, as in `autoprune check`",
    "‹pattern›: the ratio is the share removed, in [0, 1); got 1": "1 is for residual blocks alone",
    # criteria
    "activations need at least one batch": "give `batches=`, or training data that is not empty",
    "gradients need at least one batch": "give `batches=`, or training data that is not empty",
    "a reconstruction needs at least": "give more inputs, or leave `repair` off",
    # measuring
    "ExecuTorch cannot": _GRAPH,
    "ONNX Runtime cannot": _GRAPH,
    "OpenVINO cannot": _GRAPH,
    "TensorRT cannot": _GRAPH,
    "torch.compile cannot": _GRAPH,
    "the runtime gives ‹number of tensors›": "the export dropped or merged an output",
    "a traced tensor has no shape": "FLOPs cannot be counted for this model",
    "off by ‹off›": "stands in a note: a sparse kernel with other outputs is not used",
    "this plan's graph cannot be sliced": "a search exports such a plan by itself",
    "the counter of energy did not move": "energy is shown as not available",
    "this machine has no counter": "energy is shown as not available",
    "the GPU ‹device› has no counter": "energy is shown as not available",
    "the model cannot be handed to a fresh process": "define its class in a module, not in "
    "`__main__` or a notebook",
    "unknown kernel ": "`load(folder, lowered=False)` gives dense layers",
    "the lowering record": "`load(folder, lowered=False)` gives dense layers",
    # training
    "the model has no parameter that can be trained": "set `requires_grad`, or `recovery: "
    "{epochs: 0}`",
    "‹name› on the ‹split› data is": "look for NaN in the data; lower the learning rate",
    # searching
    "target ‹name› answers what": "give the same model, data and seed as that run, or measure",
    "‹folder› was repeated from": "give the run that measured",
    "training this plan broke down": "lower `recovery.learning_rate`",
    "this score has no": "the figure was not measured at this stage",
    "search.storage ‹url› cannot be opened": "Optuna's own message follows",
    # exporting
    "the program ": _EXPORTED,
    "the program's ": _EXPORTED,
    "the entries of the program's archive": _EXPORTED,
    "the ONNX model has": "write other formats: `export: {formats: [safetensors, program]}`",
    "‹path› holds values only": "`autoprune.load(folder, model=MyNet())` builds it",
    "‹path› has the operator": "a graph with operators of other libraries is not opened",
    "‹path› keeps ‹name› in another file": "save the graph as one file",
    "‹path› does not fit the model": _OTHER_MODEL,
    "‹folder› does not fit the dense model": _OTHER_MODEL,
    "‹path›: verification broke down": "the fresh process died, often for lack of memory; "
    "`autoprune verify` tries again",
    "‹folder› failed ‹number of failed›": "`verification.json` has every check, with what was "
    "found and what the record says",
    "this is no JSON": "the file is damaged, or was edited",
    "this JSON": "the file is damaged, or was not written by autoprune",
}
