"""Weights from elsewhere: files (as others save them), pretrained (a trunk to start from), official (the authors')."""
