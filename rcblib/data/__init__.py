"""Turn photos, folders, COCO and videos into samples, and samples into questions."""
