"""The photographs world: real objects on real backgrounds, and a model of real pretrained parts."""
