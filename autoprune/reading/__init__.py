"""From the text of a study to values that are checked against everything that can be known without
the model."""
