"""What things look like: meshes and colours."""
