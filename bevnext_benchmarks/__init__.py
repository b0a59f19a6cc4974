# SPDX-License-Identifier: Apache-2.0
"""What measures: ``bevnext benchmark`` (:mod:`.step`), and scripts; latency and training need the checkout."""

import logging

# torch.utils.benchmark imports torch's builder of extensions, which warns where there is nvcc and no GPU.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
