"""Fine-tune Kandinsky 2.2 from cached features: encode once, then train without the frozen encoders."""

__version__ = "0.1.0"
