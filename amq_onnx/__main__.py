"""`python -m amq_onnx` is `amq`."""

import sys

from amq_onnx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
