"""Effective ranks of embeddings: RankMe and LiDAR. N clips, D features."""

import torch
from torch import Tensor

RANKME_EPSILON = 1e-7
LIDAR_DELTA = 1e-4
LIDAR_EPSILON = 1e-7


def rankme(embeddings: Tensor) -> float:
    """RankMe: exponential of the entropy of the singular values.

    RankMe = exp(-Σ p log p), where p is each singular value's share of their sum, plus ε (Garrido
    et al. 2023, arXiv 2210.02885, equations 1 and 2, with their ε for float32). Embeddings are not
    centred.

    Args:
        embeddings: `[N, D]`.

    Returns:
        Between 1 and min(N, D), but for ε.
    """
    return _effective(torch.linalg.svdvals(embeddings.double()), RANKME_EPSILON)


def lidar(embeddings: Tensor, classes: Tensor) -> float:
    """LiDAR: effective rank of the linear discriminant matrix.

    The matrix is Σ_w^(-1/2) Σ_b Σ_w^(-1/2), with the covariance Σ_b of the means of the surrogate
    classes, and Σ_w = the mean covariance within them + δ I; its eigenvalues are treated as RankMe
    treats singular values (Thilak et al. 2023, arXiv 2312.04000).

    In the paper a surrogate class is one clip and its members are the clip's views. Here it is a
    class of the labelled set and its members are the class's clips, so the rank is at most the
    number of classes less one, and labels are used.

    Args:
        embeddings: `[N, D]`.
        classes: `[N]` int64.
    """
    embeddings = embeddings.double()
    _, codes, counts = torch.unique(classes, return_inverse=True, return_counts=True)
    sums = embeddings.new_zeros(len(counts), embeddings.shape[1]).index_add(0, codes, embeddings)
    means = sums / counts.unsqueeze(1)
    inside = embeddings - means[codes]
    # Classes count alike, whatever their numbers of clips.
    within = (inside / counts[codes].unsqueeze(1)).T @ inside / len(counts)
    within += LIDAR_DELTA * torch.eye(len(within), dtype=within.dtype, device=within.device)
    between = means - means.mean(dim=0)
    # Eigenvalues of the matrix are the squared singular values of Σ_w^(-1/2) times the means.
    factor = torch.linalg.cholesky(within)
    whitened = torch.linalg.solve_triangular(factor, between.T, upper=False)
    return _effective(torch.linalg.svdvals(whitened).square(), LIDAR_EPSILON)


def _effective(values: Tensor, epsilon: float) -> float:
    total = values.sum()
    if total == 0:
        return 1.0
    p = values / total + epsilon
    return float((-(p * p.log()).sum()).exp())
