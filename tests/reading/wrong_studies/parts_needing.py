"""A model that needs a package that is nowhere."""

import autoprune_absent_package


def build():
    return autoprune_absent_package.model()
