"""What ships to the device: numpy and one engine, never torch."""
