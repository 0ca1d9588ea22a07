"""Fine-tuning on a Ray cluster: clips, augmentation, losses, the train loop around them."""
