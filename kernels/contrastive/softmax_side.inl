// What a softmax loss keeps of each row of one side for its backward pass.

// Labels as wide as logits, with what equals no label past the end.
template <typename A>
struct Labels {
  using Bits = typename Vec<A>::bits;
  bool present;
  Scratch<Bits> value;

  Labels(const int32_t* labels, int64_t n) : present(labels), value(present ? padded_rows(n) : 0) {
    if (!present) return;
    std::copy(labels, labels + n, value.data);
    std::fill(value.data + n, value.data + padded_rows(n), Bits(-1));
  }
};

template <typename A>
struct SoftmaxSide {
  const Side<A>& side;
  const Labels<A>& labels;
  const int64_t count = side.rows.count, padded = padded_rows(count);
  const bool has_loss;
  // Shares are 2^(logit - lse) times `rest`, which makes up for the rounding of lse to powers of two; it is part of `grad`.
  Scratch<A> lse{padded}, grad{padded}, scale{padded};
  Scratch<A> share{labels.present ? padded : 0};  // gradient over the number of positives
  Scratch<double> exact_lse{count}, rest{count}, given{count};
  Scratch<double> sum{padded}, along{padded}, equal{labels.present ? padded : 0}, pull{side.distances ? padded : 0};
  GradientSum<A> gradient;

  // lse and grad are null for a side that has no loss of its own. Products are weighted with scale_factor.
  SoftmaxSide(
      const Side<A>& side, const Labels<A>& labels, const void* lse_of, const void* grad_of, const int32_t* positives,
      double scale_factor, void* out)
      : side(side), labels(labels), has_loss(lse_of), gradient(side.rows, out) {
    const A *lses = static_cast<const A*>(lse_of), *grads = static_cast<const A*>(grad_of);
    for (int64_t i = 0; i < count; ++i) {
      scale[i] = A(side.scale(i) * scale_factor);
      if (!has_loss) continue;
      // A row of nothing but holes has no exponentials to scale.
      exact_lse[i] = lses[i] == -std::numeric_limits<A>::infinity() ? 0.0 : double(lses[i]) * log2_of_e;
      lse[i] = A(exact_lse[i]);
      rest[i] = std::exp2(double(lse[i]) - exact_lse[i]);
      given[i] = double(grads[i]);
      grad[i] = A(given[i] * rest[i]);
      if (positives) share[i] = positives[i] ? grads[i] / A(positives[i]) : A(0);
    }
  }

  WeightSide<A> at(int64_t i) const {
    return {lse.data + i,   grad.data + i,  scale.data + i, share.data + i, labels.value.data + i,
            sum.data + i,   along.data + i, equal.data + i, pull.data + i};
  }

  // Gradient times 1 - p for the row's own positive and its logit: what all others have of it. Their sum is exact where p is near
  // 1, but it lacks the others that are in other processes; 1 - p is as exact as the log-sum-exp is rounded. Where both agree to
  // that rounding, the sum is taken.
  double lost(int64_t i, double logit) const {
    if (!has_loss) return 0;
    const double others = sum[i] * rest[i], one_less = -std::expm1((logit - exact_lse[i]) * natural_log_of_2);
    const double rounding = 8 * double(std::numeric_limits<A>::epsilon()) * (1 + std::abs(exact_lse[i]));
    return given[i] * (std::abs(one_less - others) <= rounding ? others : one_less);
  }

  // Sum of the side's weights times logits, without its own positives'.
  double total() const {
    double sum = 0;
    for (int64_t i = 0; has_loss && i < count; ++i) {
      sum += given[i] * rest[i] * along[i];
      if (labels.present) sum -= double(share[i]) * equal[i];
    }
    return sum;
  }
};
