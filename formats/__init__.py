"""File formats of others: Hugging Face's model folders and hub, peft's folders."""
