"""Families of ATen operators that several files name; a list of one file alone stays there."""

from torch import ops

aten = ops.aten

CONVS = (aten.conv1d, aten.conv2d, aten.conv3d)
TRANSPOSED_CONVS = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
LAYERS = (*CONVS, *TRANSPOSED_CONVS, aten.linear)

ARITHMETIC = (aten.mul, aten.div, aten.add, aten.sub, aten.rsub)
MATMULS = (aten.matmul, aten.mm, aten.bmm)
CLAMPS = (aten.clamp, aten.clip, aten.clamp_min, aten.clamp_max, aten.hardtanh)
CLIPS = (aten.relu, aten.relu6, *CLAMPS)

AVERAGE_POOLS = (aten.avg_pool1d, aten.avg_pool2d, aten.avg_pool3d)
ADAPTIVE_POOLS = (aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_avg_pool3d)
INTERPOLATIONS = (
    *(aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d),
    *(aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d),
    *(aten._upsample_nearest_exact3d, aten.upsample_linear1d, aten.upsample_bilinear2d),
    *(aten.upsample_trilinear3d, aten.upsample_bicubic2d, aten._upsample_bilinear2d_aa),
    aten._upsample_bicubic2d_aa,
)

COPIES = (aten.clone, aten.contiguous, aten.alias, aten.detach, aten.to, aten._to_copy)
RESHAPES = (aten.reshape, aten.flatten, aten.unflatten, aten.squeeze, aten.unsqueeze)
TRANSPOSES = (aten.permute, aten.transpose)
PADS = (aten.constant_pad_nd, aten.pad)
SHUFFLES = (aten.pixel_shuffle, aten.pixel_unshuffle)
SPLITS = (aten.split, aten.split_with_sizes, aten.chunk, aten.tensor_split)
