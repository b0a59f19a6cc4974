# SPDX-License-Identifier: Apache-2.0
"""What works with the detector and is no part of it: the command ``bevnext``, pictures, scores, ONNX."""
