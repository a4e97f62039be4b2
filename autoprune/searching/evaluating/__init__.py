"""One plan -> its costs and its quality, the cheapest first."""
