"""`amq`: reads the command line, runs the command, turns errors into one sentence and an exit code."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from amq_onnx.cli.memory import keep_freed_memory
from amq_onnx.errors import AMQError, UsageError

_COMMANDS = {
    "quantize": "the whole way: measure, choose every width for a size, write, verify",
    "inspect": "what can be quantized, what can't and why, and the sizes that are possible",
    "sensitivity": "measure the sensitivity table and save it",
    "frontier": "all sizes at once, from a sensitivity table",
    "apply": "write the file of a plan",
    "verify": "compare two files on data in onnxruntime",
    "compare": "rival ways to choose widths, at the same size",
    "spectrum": "eigenvalues of the Hessian, weight by weight",
    "export": "write a PyTorch model as .onnx",
    "demo": "quantize and verify the model that ships in models/",
}
_BUG = 70


class _Parser(argparse.ArgumentParser):
    """Its complaints are one sentence like every other, without the usage in front."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or that of the error (see amq_onnx.errors), or 70 for a bug of ours."""
    keep_freed_memory()
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog="amq", description="Automatic mixed-precision quantization of ONNX models, for onnxruntime.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # Only the command that is asked for is imported: `amq --help` needs neither torch nor onnxruntime.
    for entry, summary in _COMMANDS.items():
        command = commands.add_parser(entry, help=summary, description=summary)
        if given[:1] == [entry]:
            module = import_module(f"amq_onnx.cli.{entry}")
            module.add_options(command)
            command.set_defaults(run=module.run)
    name = f"amq {given[0]}" if given[:1] and given[0] in _COMMANDS else "amq"
    try:
        parsed = parser.parse_args(given, argparse.Namespace(given=given))
        parsed.run(parsed)
    except AMQError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return 130
    except (BrokenPipeError, MemoryError) as error:
        print(f"{name}: {type(error).__name__}", file=sys.stderr)
        return _BUG
    except OSError as error:
        print(f"{name}: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return AMQError.exit_code
    except Exception:
        traceback.print_exc()
        print(f"{name}: this is a bug of amq; please report the lines above", file=sys.stderr)
        return _BUG
    return 0
