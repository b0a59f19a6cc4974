# SPDX-License-Identifier: Apache-2.0
"""What makes a stream of frames out of the network: preprocessing, history, decoding, acceleration."""
