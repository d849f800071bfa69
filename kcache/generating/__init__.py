"""Pictures with what was trained, through the stock pipelines of diffusers: from prompts, pictures, or both mixed."""
