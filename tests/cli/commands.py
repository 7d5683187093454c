"""Commands that several tests run."""

from cli.networks import FAST


def quantize(model, out, data, *more):
    """Half the size, little curvature."""
    return ["quantize", model, "-o", out, "--size", "0.5", "--data", data, *FAST, *more]
