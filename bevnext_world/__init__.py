# SPDX-License-Identifier: Apache-2.0
"""The synthetic world: drives in the nuScenes format, rendered and ray cast by this package alone."""
