"""Traces of second derivatives, estimated without forming a matrix. torch only; knows no graph and no model."""
