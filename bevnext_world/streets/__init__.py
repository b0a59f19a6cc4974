"""What is where: roads, what stands at them, and what moves on them."""
