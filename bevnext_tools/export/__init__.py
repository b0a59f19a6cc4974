# SPDX-License-Identifier: Apache-2.0
"""The network for other programs: ONNX."""
