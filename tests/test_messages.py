"""What is told names the cause and the way out, whole."""

from __future__ import annotations

import pytest
import torch

from autoprune.errors import ModelError
from autoprune.reporting.output import Output
from autoprune.reporting.tables import plain
from autoprune.task import default_adapter


@pytest.mark.promise("messages")
def test_brackets_of_an_extra_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    hint = "pip install 'autoprune[energy]'"
    table = plain(hint, hint)
    table.add_column(hint)
    table.add_row(hint)
    Output().show({}, table, hint)
    assert capsys.readouterr().out.count(hint) == 5


@pytest.mark.promise("messages")
def test_a_list_of_images_is_told_as_that() -> None:
    images = [torch.zeros(3, 8, 9), torch.zeros(3, 7, 5)]
    with pytest.raises(
        ModelError, match=r"list of 2 inputs and one of as many targets.*collate_fn"
    ):
        default_adapter((images, [{"boxes": torch.zeros(1, 4)}, {"boxes": torch.zeros(2, 4)}]))


@pytest.mark.promise("messages")
def test_two_arguments_and_two_targets_are_a_batch() -> None:
    left, right = torch.zeros(5, 3), torch.zeros(5, 4)
    args, _, target = default_adapter(((left, right), (torch.zeros(5), torch.ones(5))))
    assert args == (left, right) and len(target) == 2
