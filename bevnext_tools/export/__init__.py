# SPDX-License-Identifier: Apache-2.0
"""The network for other programs: ONNX; and made-up input to try and measure it with."""
