# SPDX-License-Identifier: Apache-2.0
"""What things look like: meshes and colours."""
