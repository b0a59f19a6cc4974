# SPDX-License-Identifier: Apache-2.0
"""Pictures: camera images with boxes, the scene from above, and videos of them."""
