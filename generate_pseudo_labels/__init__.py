"""From a list of images and their embeddings to SDD-FIQA pseudo-labels."""

from generate_pseudo_labels.label_settings import LabelSettings
from generate_pseudo_labels.labels import pseudo_labels

__all__ = ["LabelSettings", "pseudo_labels"]
