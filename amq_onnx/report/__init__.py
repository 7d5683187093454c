"""One HTML file that shows what a quantization made, offline: figures, tables and the command to do it again."""

from amq_onnx.report.page import Run as Run
from amq_onnx.report.page import report_page as report_page
from amq_onnx.report.plotting import require_plotly as require_plotly
