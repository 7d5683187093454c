"""What a user can do wrong, each with its exit code.

Every message is one sentence that names the file, node or option at fault and says what to do about it.
The command line prints the message alone; a traceback is for bugs of ours (exit code 70).
"""


class AMQError(Exception):
    """Base of everything that is the input's fault rather than ours."""

    exit_code = 2


class UsageError(AMQError):
    """An option that can't be honoured (exit code 2)."""


class ModelError(AMQError):
    """A model file that can't be read, checked or quantized (exit code 2)."""


class UnsupportedOperatorError(ModelError):
    """An operator that the executor lacks (exit code 2); the message names operator, opset and node."""


class DataError(AMQError):
    """Calibration or evaluation data that doesn't fit the model (exit code 2)."""


class GateError(AMQError):
    """The result is there but a quality gate failed (exit code 1)."""

    exit_code = 1


class BudgetError(AMQError):
    """No plan meets the budget (exit code 3); the message names the smallest size that is possible."""

    exit_code = 3


class ProviderError(AMQError):
    """The execution provider asked for isn't there or fell back (exit code 4)."""

    exit_code = 4


def first_line(error: BaseException, otherwise: str = "unknown reason") -> str:
    """The first line of what a library says went wrong; `otherwise` where it says nothing."""
    return (str(error).strip().splitlines() or [otherwise])[0]
