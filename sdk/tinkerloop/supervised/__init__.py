"""What a Cookbook user types for supervised fine-tuning, thin over the loop."""
