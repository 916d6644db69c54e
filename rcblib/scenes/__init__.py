"""The embedded world: scenes with known ground truth, their COCO records and questions."""
