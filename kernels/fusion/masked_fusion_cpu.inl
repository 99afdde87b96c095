// Two modalities become one, forward: a read of what is there and a write. A modality that a whole row lacks is not read.

// The part of a row from channel d on, up to a register of it.
template <typename T>
struct FusionRow {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>;

  const T* x;        // null where the row has none of this modality
  const bool* mask;  // of elements, or null
  const A* weight;   // or null: 1
  int64_t step;      // of the weight along channels, 0 or 1

  FusionRow(const void* data, int64_t depth, const FusionMask& m, const FusionWeight& w, int64_t r)
      : x(static_cast<const T*>(data) + r * depth), mask(nullptr),
        weight(w.data ? static_cast<const A*>(w.data) + r * w.stride_r : nullptr), step(w.stride_d) {
    if (!m.data) return;
    if (m.stride_d) mask = m.data + r * m.stride_r;
    else if (!m.data[r * m.stride_r]) x = nullptr;
  }

  M<A> there(int64_t d, int64_t left) const {
    M<A> on{};
    if (!x) return on;
    if (!mask) return ~on;
    for (int64_t i = 0; i < std::min(left, lanes); ++i) on[i] = mask[d + i] ? -1 : 0;
    return on;
  }
  // 0 where it is absent, whatever lies there.
  V<A> value(int64_t d, int64_t left, M<A> on) const {
    if (!x) return V<A>{};
    const V<A> found = load_up_to(x + d, left);
    return mask ? select<A>(on, found, V<A>{}) : found;
  }
  V<A> factor(int64_t d, int64_t left) const {
    if (!weight) return splat<A>(A(1));
    return step ? load_up_to(weight + d, left) : splat<A>(*weight);
  }
};

template <typename A>
inline V<A> sigmoid_v(V<A> x) {
  const V<A> e = exp_v<A>(select<A>(x > V<A>{}, -x, x)), one = splat<A>(A(1));
  return select<A>(x > V<A>{}, one, e) / (one + e);
}

// What each modality is multiplied by where it is: its weight, or those of both where it is alone.
template <typename T>
struct FusionFactors {
  using A = Acc<T>;
  V<A> own_a, own_v, a, v;

  FusionFactors(const FusionArgs& in, const FusionRow<T>& row_a, const FusionRow<T>& row_v, int64_t d, int64_t left, M<A> on_a, M<A> on_v) {
    own_a = row_a.factor(d, left);
    own_v = row_v.factor(d, left);
    if (in.mode == FusionArgs::gated) own_a = sigmoid_v<A>(own_a), own_v = splat<A>(A(1)) - own_a;
    a = own_a, v = own_v;
    if (!in.renormalize) return;
    const V<A> total = in.mode == FusionArgs::gated ? splat<A>(A(1)) : own_a + own_v;
    a = select<A>(on_v, own_a, total);
    v = select<A>(on_a, own_v, total);
  }
};

template <typename T>
struct FusionForward {
  using A = Acc<T>;
  static constexpr int64_t lanes = lanes_of<A>;
  using Row = FusionRow<T>;

  const FusionFwdArgs& args;
  const FusionArgs& in = args.in;

  void run(int64_t r) const {
    const Row a(in.a, in.depth_a, in.mask_a, in.weight_a, r), v(in.v, in.depth_v, in.mask_v, in.weight_v, r);
    T* out = static_cast<T*>(args.out) + r * in.depth_out();
    switch (in.mode) {
      case FusionArgs::concat: return alone(a, in.depth_a, out), alone(v, in.depth_v, out + in.depth_a);
      case FusionArgs::film: return film(a, v, out);
      default: return joined(a, v, out);
    }
  }

  void joined(const Row& a, const Row& v, T* out) const {
    for (int64_t d = 0; d < in.depth_a; d += lanes) {
      const int64_t left = in.depth_a - d;
      const M<A> on_a = a.there(d, left), on_v = v.there(d, left);
      const FusionFactors<T> by(in, a, v, d, left, on_a, on_v);
      V<A> sum{};
      if (a.x) sum = by.a * a.value(d, left, on_a);
      if (v.x) sum += by.v * v.value(d, left, on_v);
      store_up_to(out + d, sum, left);
    }
  }

  void alone(const Row& x, int64_t depth, T* out) const {
    for (int64_t d = 0; d < depth; d += lanes) {
      const int64_t left = depth - d;
      const V<A> value = x.value(d, left, x.there(d, left));
      store_up_to(out + d, x.x && x.weight ? value * x.factor(d, left) : value, left);
    }
  }

  void film(const Row& a, const Row& v, T* out) const {
    for (int64_t d = 0; d < in.depth_a; d += lanes) {
      const int64_t left = in.depth_a - d;
      const M<A> on_a = a.there(d, left), on_v = v.there(d, left);
      const V<A> absent = splat<A>(A(in.renormalize ? 1 : 0));
      const V<A> gamma = v.x ? select<A>(on_v, load_up_to(v.x + d, left), absent) : absent;
      const V<A> beta = v.x ? select<A>(on_v, load_up_to(v.x + in.depth_a + d, left), V<A>{}) : V<A>{};
      store_up_to(out + d, a.x ? gamma * a.value(d, left, on_a) + beta : beta, left);
    }
  }
};

inline void masked_fusion_fwd_cpu(const FusionFwdArgs& args, const Parallel& parallel) {
  with_type(args.in.dtype, [&](auto type) {
    const FusionForward<decltype(type)> forward{args};
    const int64_t blocks = (args.in.rows + fusion_block - 1) / fusion_block;
    for_tasks(parallel, blocks, args.in.rows * args.in.depth_out(), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin * fusion_block; r < std::min(end * fusion_block, args.in.rows); ++r) forward.run(r);
    });
  });
}
