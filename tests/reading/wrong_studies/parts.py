"""What the wrong studies beside it refer to."""


def build():
    raise AssertionError("never called: every study that names this is refused before")


def metric(outputs, targets):
    return 0.0


def data():
    return {"train": [(0, 0)]}


def adapter(batch):
    return batch[0], batch[1]
