// The ops as the dispatcher calls them, for both devices; schemas in avfast/ops/.
#pragma once

#include <optional>
#include <tuple>

#include "aligned.h"
#include "tensor_utils.h"

namespace avfast {

using Tensors2 = std::tuple<Tensor, Tensor>;
using Tensors3 = std::tuple<Tensor, Tensor, Tensor>;
using Tensors4 = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Tensors5 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Tensors6 = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensors4 channel_stats_fwd(Tensor x, double dead_threshold);

Tensors4 bn_scan(
    std::vector<Tensor> weight, std::vector<Tensor> bias, std::vector<Tensor> running_mean, std::vector<Tensor> running_var,
    double threshold);
int64_t bn_scan_plan(
    std::vector<Tensor> weight, std::vector<Tensor> bias, std::vector<Tensor> running_mean, std::vector<Tensor> running_var);
Tensors4 bn_scan_planned(Tensor anchor, int64_t plan, double threshold);
void bn_scan_release(Tensor anchor, int64_t plan);

Tensors3 blended_bn_fwd(
    Tensor x, Tensor weight, Tensor bias, Tensor new_weight, Tensor new_bias, Tensor alpha, double eps, bool relu);
Tensors6 blended_bn_bwd(
    Tensor grad, Tensor x, Tensor mean, Tensor var, Tensor weight, Tensor bias, Tensor new_weight, Tensor new_bias,
    Tensor alpha, double eps, bool relu);

Tensor channel_affine_fwd(Tensor x, Tensor scale, Tensor shift, bool relu);
Tensors3 channel_affine_bwd(Tensor grad, Tensor x, Tensor scale, Tensor shift, bool relu);

// Without a CUDA C++ kernel: Triton serves these on a GPU.
Tensors4 queue_nce_fwd(
    Tensor q, Tensor k, Tensor queue, std::optional<Tensor> match, double temperature, bool normalize, bool need_grad);
Tensor queue_nce_bwd_queue(
    Tensor grad, Tensor q, Tensor queue, Tensor lse, std::optional<Tensor> match, double temperature, bool normalize);

Tensors2 dense_match_fwd(Tensor feat_q, Tensor feat_k);

Tensors6 pair_nce_fwd(
    Tensor a, Tensor b, Tensor temperature, std::optional<Tensor> labels_a, std::optional<Tensor> labels_b, int64_t positive,
    int64_t exclude, int64_t distance, bool normalize, bool columns, bool keep);
Tensors3 pair_nce_bwd(
    Tensor grad_row, Tensor grad_col, Tensor a, Tensor b, Tensor temperature, Tensor row_lse, Tensor col_lse,
    std::optional<Tensor> labels_a, std::optional<Tensor> labels_b, Tensor count, int64_t positive, int64_t exclude,
    int64_t distance, bool normalize, bool columns, std::optional<Tensor> logits,
    std::optional<Tensor> lengths, bool need_a, bool need_b);
Tensors3 self_nce_fwd(Tensor z, Tensor temperature, std::optional<Tensor> labels, bool normalize);
Tensors2 self_nce_bwd(
    Tensor grad, Tensor z, Tensor temperature, Tensor lse, std::optional<Tensor> labels, Tensor count, bool normalize);
Tensor sigmoid_nce_fwd(Tensor a, Tensor b, Tensor scale, Tensor bias, int64_t positive, bool normalize);
Tensors5 sigmoid_nce_bwd(
    Tensor grad_row, Tensor a, Tensor b, Tensor scale, Tensor bias, int64_t positive, bool normalize);

Tensors3 correlate_fwd(Tensor q, Tensor k, Tensor v, std::optional<Tensor> key_mask, double scale, int64_t map);
Tensors3 correlate_bwd(
    Tensor grad_out, Tensor grad_map, Tensor q, Tensor k, Tensor v, std::optional<Tensor> key_mask, Tensor lse, double scale,
    int64_t map);
Tensor patch_mask_fwd(
    Tensor x, Tensor keys, Tensor counts, int64_t patch_h, int64_t patch_w, double value, std::optional<Tensor> scale,
    std::optional<Tensor> shift);
void patch_mask_(Tensor x, Tensor keys, Tensor counts, int64_t patch_h, int64_t patch_w, double value);

Tensor masked_fusion_fwd(
    Tensor a, Tensor v, std::optional<Tensor> mask_a, std::optional<Tensor> mask_v, std::optional<Tensor> weight_a,
    std::optional<Tensor> weight_v, int64_t mode, bool renormalize);
Tensors4 masked_fusion_bwd(
    Tensor grad, Tensor a, Tensor v, std::optional<Tensor> mask_a, std::optional<Tensor> mask_v, std::optional<Tensor> weight_a,
    std::optional<Tensor> weight_v, int64_t mode, bool renormalize);

Tensor concat_linear_fwd(
    Tensor a, Tensor v, Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> mask_a, std::optional<Tensor> mask_v);
Tensors4 concat_linear_bwd(
    Tensor grad, Tensor a, Tensor v, Tensor weight, std::optional<Tensor> mask_a, std::optional<Tensor> mask_v, bool need_inputs,
    bool need_weight, bool need_bias);

Tensor exemplar_crop(Tensor images, Tensor boxes, int64_t out, bool cubic, bool antialias);

Tensor yuv_to_rgb(
    std::vector<Tensor> y, std::vector<Tensor> u, std::vector<Tensor> v, std::vector<int64_t> box, int64_t height, int64_t width,
    bool centred, std::vector<int64_t> matrix, Tensor table);
Tensor recolour(
    Tensor pictures, std::optional<Tensor> factors, std::optional<Tensor> order, std::optional<Tensor> finish, Tensor affine);

Tensors2 box_bce_fwd(
    Tensor logits, std::optional<Tensor> boxes, std::optional<Tensor> mask, int64_t height, int64_t width, double source_size,
    bool align_corners, double shrink, bool need_grad);
Tensors3 upsample_ce_fwd(
    Tensor logits, Tensor target, std::optional<Tensor> weight, bool align_corners, int64_t ignore_index,
    double label_smoothing, bool per_pixel, bool need_grad);
Tensor upsample_ce_bwd(
    Tensor grad_pixels, Tensor logits, Tensor target, std::optional<Tensor> weight, bool align_corners, int64_t ignore_index,
    double label_smoothing);

}  // namespace avfast

#define AVFAST_BOX(op) TORCH_BOX((&avfast::Aligned<&avfast::op>::call))

// What every registration block lists: one place, so that CPU and CUDA cannot drift apart.
#define AVFAST_REGISTER_OPS(m) \
  m.impl("channel_stats_fwd", AVFAST_BOX(channel_stats_fwd)); \
  m.impl("bn_scan", AVFAST_BOX(bn_scan)); \
  m.impl("bn_scan_plan", TORCH_BOX(&avfast::bn_scan_plan)); \
  m.impl("bn_scan_planned", TORCH_BOX(&avfast::bn_scan_planned)); \
  m.impl("bn_scan_release", TORCH_BOX(&avfast::bn_scan_release)); \
  m.impl("blended_bn_fwd", AVFAST_BOX(blended_bn_fwd)); \
  m.impl("blended_bn_bwd", AVFAST_BOX(blended_bn_bwd)); \
  m.impl("channel_affine_fwd", AVFAST_BOX(channel_affine_fwd)); \
  m.impl("channel_affine_bwd", AVFAST_BOX(channel_affine_bwd))

#define AVFAST_REGISTER_CPU_OPS(m) \
  m.impl("queue_nce_fwd", AVFAST_BOX(queue_nce_fwd)); \
  m.impl("queue_nce_bwd_queue", AVFAST_BOX(queue_nce_bwd_queue)); \
  m.impl("dense_match_fwd", AVFAST_BOX(dense_match_fwd)); \
  m.impl("pair_nce_fwd", AVFAST_BOX(pair_nce_fwd)); \
  m.impl("pair_nce_bwd", AVFAST_BOX(pair_nce_bwd)); \
  m.impl("self_nce_fwd", AVFAST_BOX(self_nce_fwd)); \
  m.impl("self_nce_bwd", AVFAST_BOX(self_nce_bwd)); \
  m.impl("sigmoid_nce_fwd", AVFAST_BOX(sigmoid_nce_fwd)); \
  m.impl("sigmoid_nce_bwd", AVFAST_BOX(sigmoid_nce_bwd)); \
  m.impl("box_bce_fwd", AVFAST_BOX(box_bce_fwd)); \
  m.impl("upsample_ce_fwd", AVFAST_BOX(upsample_ce_fwd)); \
  m.impl("upsample_ce_bwd", AVFAST_BOX(upsample_ce_bwd)); \
  m.impl("correlate_fwd", AVFAST_BOX(correlate_fwd)); \
  m.impl("correlate_bwd", AVFAST_BOX(correlate_bwd)); \
  m.impl("patch_mask_fwd", AVFAST_BOX(patch_mask_fwd)); \
  m.impl("patch_mask_", TORCH_BOX(&avfast::patch_mask_)); \
  m.impl("masked_fusion_fwd", AVFAST_BOX(masked_fusion_fwd)); \
  m.impl("masked_fusion_bwd", AVFAST_BOX(masked_fusion_bwd)); \
  m.impl("concat_linear_fwd", AVFAST_BOX(concat_linear_fwd)); \
  m.impl("concat_linear_bwd", AVFAST_BOX(concat_linear_bwd)); \
  m.impl("exemplar_crop", AVFAST_BOX(exemplar_crop)); \
  m.impl("yuv_to_rgb", AVFAST_BOX(yuv_to_rgb)); \
  m.impl("recolour", AVFAST_BOX(recolour))
