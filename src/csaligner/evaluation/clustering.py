"""Clustering metrics: do clusters of both modalities follow the categories or the modality?"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from csaligner.types import PairedFeatures


def clustering_metrics(features: PairedFeatures, *, seed: int = 0) -> dict[str, float]:
    """Adjusted mutual information of k-means clusters of all rows with the data's categories and with the modality.

    Categories are the folders of the image ids (the id up to its last "/"), k their number; a caption has the category
    of its image. clustering/ami_category: 1 = clusters equal categories, 0 = independent of them;
    clustering/ami_modality: the same for image and text, 0 is best. Empty with fewer than two categories.
    Source: Vinh et al. 2010; scikit-learn's KMeans, 3 starts.
    """
    folders = ["/".join(name.split("/")[:-1]) for name in features.image_ids]
    names = sorted(set(folders))
    if len(names) < 2:
        return {}
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_mutual_info_score

    of_image = torch.tensor([names.index(folder) for folder in folders])
    categories = torch.cat([of_image, of_image[features.text_to_image]])
    modality = torch.cat([torch.zeros(len(features.image)), torch.ones(len(features.text))])
    union = torch.cat([normalize(features.image, dim=1), normalize(features.text, dim=1)])
    clusters = KMeans(len(names), n_init=3, random_state=seed).fit_predict(union.numpy())
    return {
        "clustering/ami_category": float(adjusted_mutual_info_score(categories.numpy(), clusters)),
        "clustering/ami_modality": float(adjusted_mutual_info_score(modality.numpy(), clusters)),
    }
