"""fastgen: real-time feedforward image generation."""

__version__ = "0.1.0"
